// SPDX-License-Identifier: Apache-2.0
// Binary cross-entropy of one row of logits x with targets t in [0, 1], a label per logit. w are
// the weights of the labels, v those of the positive part, as in
// torch.nn.functional.binary_cross_entropy_with_logits. With p = sigmoid(x):
//   loss = 1/L sum_j w_j ((1 - t_j) softplus(x_j) + v_j t_j softplus(-x_j))
//   d loss / d x_j = w_j / L ((1 - t_j) p_j - v_j t_j (1 - p_j))
//   EL2N = |p - t|       entropy = 1/L sum_j H(p_j)       margin = min_j (t_j > 1/2 ? x_j : -x_j)
// softplus(x) = max(x, 0) + log(1 + e^-|x|). All terms are positive, so that no digits cancel.
// A label of weight 0 counts for nothing, in the scores too. A factor of 0 times an infinite loss
// is 0: an infinite logit has its limit.
#pragma once

#include "shared/cross_entropy_row.h"

namespace dynprune {

// The first four as ScalarType has them.
enum class LabelType { kFloat32, kFloat16, kBFloat16, kFloat64, kBool };

// A bool target. Beside the other types' functions, which it must not hide.
DYNPRUNE_HD float widen(uint8_t flag) { return flag != 0 ? 1.0f : 0.0f; }

// Calls of scored_binary_cross_entropy and its backward, as their launchers take them.
// A = float, or double for float64 logits.
struct BinaryInput {
  const void* logits;  // [B, L] of type
  ScalarType type;
  int64_t batch_size;  // B
  int64_t num_labels;  // L
  int64_t row_stride;  // in elements; the labels of a row are neighbours
  const void* target;  // [B, L] of target_type
  LabelType target_type;
  int64_t target_stride;        // of rows
  const void* label_weight;     // [B, L] or [L] of A, or null
  int64_t label_weight_stride;  // of rows; 0: [L]
  const void* pos_weight;       // [L] of A, or null
};

struct BinaryGradient {
  const void* grad_loss;     // [B] of A
  int64_t grad_loss_stride;  // 0 for one gradient shared by all rows
  void* grad_logits;         // [B, L] of the input's type; out
};

// Squares of errors are added in a unit in which those down to 1e-34 are no subnormal numbers.
template <class A>
constexpr A kErrorScale = A(uint64_t{1} << 50);

// Vector code takes these functions with V = a vector of A; all its callees must be part of it.
#define DYNPRUNE_VECTOR_HD DYNPRUNE_HD __attribute__((always_inline))

// What a label needs of its logit.
template <class V>
struct DecayTerms {
  V below, e, log1p, reciprocal;  // -|x|, e^-|x|, log(1 + e), 1 / (1 + e)
};

// The polynomial of log(1 + e) / e has the least greatest relative error, below 4e-8; rounding
// makes it 3e-7. The reciprocal is below 2e-7 off: two steps of Newton's method, which need no
// division, and so no branch.
DYNPRUNE_HD void set_terms_of_decay(float e, DecayTerms<float>* terms) {
  terms->e = e;
  float p = 0.005232625175267458f * e - 0.029504962265491486f;
  p = p * e + 0.0782255083322525f;
  p = p * e - 0.13663208484649658f;
  p = p * e + 0.1910598874092102f;
  p = p * e - 0.2484297752380371f;
  p = p * e + 0.3331909775733948f;
  p = p * e - 0.4999949336051941f;
  p = p * e + 0.9999999403953552f;
  terms->log1p = p * e;
  const float x = e + 1.0f;
  float r = (0.3232271075248718f * x - 1.4545297622680664f) * x + 2.1212007999420166f;
  r = r * (2.0f - x * r);
  terms->reciprocal = r * (2.0f - x * r);
}
DYNPRUNE_HD void set_terms_of_decay(double e, DecayTerms<double>* terms) {
  terms->e = e, terms->log1p = log1p(e), terms->reciprocal = 1 / (1 + e);
}

// Above every |x| whose e^-|x| is not 0.
template <class A>
constexpr A kNoDoubt = sizeof(A) == 4 ? 200 : 800;

template <class A>
DYNPRUNE_HD bool is_probability(A t) {
  return t >= 0 && t <= 1;
}

// What one label adds to the sums of its row, and the slope of its loss. A: the type of a number.
template <class A, class V = A>
struct BinaryTerms {
  V loss, square, entropy, margin, slope;

  // w and v: the weights; kWeighted: not all of them are 1.
  template <bool kWeighted>
  static DYNPRUNE_VECTOR_HD BinaryTerms of(const V& x, const V& t, const DecayTerms<V>& decay,
                                           const V& w, const V& v) {
    const V zero{}, least = zero - kNoDoubt<A>, smaller = decay.e * decay.reciprocal;
    const V p = x > zero ? decay.reciprocal : smaller, q = x > zero ? smaller : decay.reciprocal;
    const V negative = 1 - t, weighted = kWeighted ? v * t : t;
    const V error = negative * p - t * q, scaled = error * kErrorScale<A>;
    // The part of the loss that a logit of the wrong sign has beside log(1 + e).
    const V share = x > zero ? negative : weighted;
    const V linear = share != zero ? share * decay.below : zero;
    const V loss = (kWeighted ? (negative + weighted) * decay.log1p : decay.log1p) - linear;
    const V slope = kWeighted ? w * (negative * p - weighted * q) : error;
    return {kWeighted ? w * loss : loss, scaled * scaled,
            decay.log1p - smaller * (decay.below < least ? least : decay.below),
            t > zero + A(0.5) ? x : -x, slope};
  }
};

template <class A>
struct BinarySums {
  A loss, squares, entropy, margin;  // squares: in units of kErrorScale
  A outside;    // one of the targets that are no probabilities, if there are any; else 0
  bool counts;  // whether a label has a weight other than 0

  static DYNPRUNE_HD BinarySums none() { return {0, 0, 0, Limits<A>::infinity(), 0, false}; }

  DYNPRUNE_HD void merge(const BinarySums& other) {
    loss += other.loss;
    squares += other.squares;
    entropy += other.entropy;
    margin = other.margin < margin ? other.margin : margin;
    if (is_probability(outside)) outside = other.outside;
    counts = counts || other.counts;
  }
  DYNPRUNE_HD RowKind kind() const {
    if (!is_probability(outside)) return RowKind::kOutOfRange;
    return counts ? RowKind::kScored : RowKind::kIgnored;
  }
};

// A NaN among the logits makes the entropy NaN, and then everything.
template <class A>
DYNPRUNE_HD RowResult<A> finish_binary_row(const BinarySums<A>& sums, int64_t labels) {
  RowResult<A> result{};
  const A nan = Limits<A>::nan(), number = static_cast<A>(labels);
  const bool broken = sums.entropy != sums.entropy;
  result.nll = broken ? nan : sums.loss / number;
  result.el2n = broken ? nan : sqrt_of(sums.squares) / kErrorScale<A>;
  result.entropy = broken ? nan : sums.entropy / number;
  result.margin = broken ? nan : sums.margin;
  return result;
}

// What a row's mean loss is multiplied with before the sample's weight: a sum is over all labels.
template <class A>
DYNPRUNE_HD A rows_factor(const BinaryInput& in, Reduction reduction) {
  return reduction == Reduction::kSum ? static_cast<A>(in.num_labels) : A{1};
}

}  // namespace dynprune
