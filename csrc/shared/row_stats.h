// SPDX-License-Identifier: Apache-2.0
// One row of logits x with target y, in one pass, without cancellation. Every sum leaves the target
// class out. So 1 - p_y is a ratio of positive numbers instead of a difference of numbers near 1.
// With d = lse_{j!=y} - x_y:
//   loss = softplus(d)         1 - p_y = sigmoid(d)         EL2N = (1 - p_y) sqrt(1 + Q / S^2)
// S = sum e^(x_j - m), Q = sum e^(2(x_j - m)), T = sum e^(x_j - m) (x_j - m), m = max x_j, all over
// j != y.
#pragma once

#include "shared/portable.h"

namespace dynprune {

// Elementary functions of the compute type.
DYNPRUNE_HD float exp_of(float x) { return expf(x); }
DYNPRUNE_HD double exp_of(double x) { return exp(x); }
DYNPRUNE_HD float log_of(float x) { return logf(x); }
DYNPRUNE_HD double log_of(double x) { return log(x); }
DYNPRUNE_HD float log1p_of(float x) { return log1pf(x); }
DYNPRUNE_HD double log1p_of(double x) { return log1p(x); }
DYNPRUNE_HD float sqrt_of(float x) { return sqrtf(x); }
DYNPRUNE_HD double sqrt_of(double x) { return sqrt(x); }

template <class A>
struct Limits;
template <>
struct Limits<float> {
  static DYNPRUNE_HD float lowest() {
    return -3.402823466e38f;
  }  // finite: inf - inf must not arise
  static DYNPRUNE_HD float infinity() { return bit_cast<float>(0x7f800000u); }
  static DYNPRUNE_HD float nan() { return bit_cast<float>(0x7fc00000u); }
};
template <>
struct Limits<double> {
  static DYNPRUNE_HD double lowest() { return -1.7976931348623157e308; }
  static DYNPRUNE_HD double infinity() { return bit_cast<double>(uint64_t{0x7ff} << 52); }
  static DYNPRUNE_HD double nan() { return bit_cast<double>(uint64_t{0xfff} << 51); }
};

// The sums over the classes other than the target seen so far. A: float or double.
template <class A>
struct RowStats {
  A m, s, q, t;

  static DYNPRUNE_HD RowStats none() { return {Limits<A>::lowest(), 0, 0, 0}; }

  DYNPRUNE_HD void add(A x) {
    if (x > m) {
      rescale(x);
    }
    const A shifted = x - m;
    const A e = exp_of(shifted);
    s += e;
    q += e * e;
    t += e > 0 ? e * shifted : 0;  // 0 * -inf is no contribution; NaN still reaches s and q
  }
  DYNPRUNE_HD void merge(RowStats other) {
    const A max = other.m > m ? other.m : m;
    rescale(max);
    other.rescale(max);
    s += other.s;
    q += other.q;
    t += other.t;
  }
  // Moves the sums to another maximum.
  DYNPRUNE_HD void rescale(A max) {
    if (max == m) return;
    const A down = m - max, a = exp_of(down);
    t = a > 0 ? a * (t + s * down) : 0;
    s *= a;
    q *= a * a;
    m = max;
  }
};

// What a row gives. log_normaliser = log sum_j e^(x_j - max), max over all classes; miss = 1 - p_y.
template <class A>
struct RowResult {
  A nll, el2n, entropy, margin;
  A max, log_normaliser, miss;
};

// x_y: the target's logit. Only-target rows (one class, or all others -inf) have loss 0 and margin
// +inf.
template <class A>
DYNPRUNE_HD RowResult<A> finish_row(const RowStats<A>& r, A x_y) {
  const A infinity = Limits<A>::infinity(), nan = Limits<A>::nan();
  const bool broken = r.s != r.s || x_y != x_y || x_y == infinity || (r.s == 0 && x_y == -infinity);
  if (broken) return {nan, nan, nan, nan, nan, nan, nan};
  if (r.s == 0) return {0, 0, 0, infinity, x_y, 0, 0};
  const A log_s = log_of(r.s);
  const A ratio = 1 + r.q / (r.s * r.s);
  const A others_entropy = log_s - r.t / r.s;  // of the distribution over j != y
  if (x_y == -infinity) return {infinity, sqrt_of(ratio), others_entropy, -infinity, r.m, log_s, 1};
  const A d = r.m - x_y + log_s;
  const A e = exp_of(d > 0 ? -d : d);  // e^-|d|
  const A softplus = log1p_of(e);      // of -|d|
  const A hit = d > 0 ? e / (1 + e) : 1 / (1 + e), miss = d > 0 ? 1 / (1 + e) : e / (1 + e);
  const A nll = d > 0 ? d + softplus : softplus;
  const A other_nll = d > 0 ? softplus : softplus - d;  // -log(1 - p_y)
  const bool target_greatest = x_y >= r.m;
  RowResult<A> result;
  result.nll = nll;
  result.el2n = miss * sqrt_of(ratio);
  // p log p is 0 at p = 0, where the logarithm may have overflowed.
  result.entropy = (hit > 0 ? hit * nll : 0) + (miss > 0 ? miss * (other_nll + others_entropy) : 0);
  result.margin = x_y - r.m;
  result.max = target_greatest ? x_y : r.m;
  result.log_normaliser = target_greatest ? nll : log_s + softplus;  // x_y < m implies d > 0
  result.miss = miss;
  return result;
}

}  // namespace dynprune
