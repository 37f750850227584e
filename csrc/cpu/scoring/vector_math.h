// SPDX-License-Identifier: Apache-2.0
// Elementary functions that the compiler can vectorise: no branches, no library calls. There are no
// fused operations, so that every clone of a function gives the same result.
#pragma once

#include "cpu/clones.h"
#include "shared/portable.h"

namespace dynprune {
namespace cpu {

// Where exponentials end: below this e^x counts as 0. For float e^x is a normal number down to
// here.
template <class A>
constexpr A kLeastExponent = A{-87};
template <>
inline constexpr double kLeastExponent<double> = -745;

// 1.5 * 2^23 + 127: adding it leaves the nearest integer, biased as an exponent, in the last bits.
constexpr float kRoundToExponent = 12583039.0f;

// e^x for kLeastExponent <= x <= 0; relative error below 2e-7. NaN gives NaN.
inline float exp_in_range(float x) {
  constexpr float kLog2e = 1.4426950408889634f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // n * kLn2High is exact
  const float shifted = x * kLog2e + kRoundToExponent;
  const float n = shifted - kRoundToExponent;
  const float r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  // e^r = 1 + r + r^2 p(r), with p fitted to the least greatest relative error, below 5e-9.
  // In an order of short chains.
  const float r2 = r * r;
  const float low = 0.16666520f * r + 0.49999993f, high = 0.008368745f * r + 0.04166839f;
  const float p = (high + 0.001381454f * r2) * r2 + low;
  const float power = p * r2 + r + 1.0f;
  return power * bit_cast<float>(bit_cast<uint32_t>(shifted) << 23);
}
inline double exp_in_range(double x) { return exp(x); }

// The same of a vector of floats for a third less work. Relative error below 3e-7 near 0 and below
// 4e-6 everywhere, and 1 at 0. For sums, in which the classes far below the greatest count little.
// Bits: as many uint32_t.
template <class Bits, class Floats>
DYNPRUNE_INLINE void exp_for_sums(const Floats& x, Floats* e) {
  constexpr float kLog2e = 1.4426950408889634f;
  const Floats t = x * kLog2e;
  const Floats shifted = t + kRoundToExponent;
  const Floats f = t - (shifted - kRoundToExponent);  // |f| <= 1/2
  // 2^f = 1 + f p(f), with p fitted to the least greatest relative error, below 1e-7.
  const Floats f2 = f * f;
  const Floats low = 0.693147f * f + 1.0f, middle = 0.05550734f * f + 0.24022242f;
  const Floats high = 0.0013264715f * f + 0.009671513f;
  const Floats power = (high * f2 + middle) * f2 + low;
  Bits bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 23;
  Floats scale;
  memcpy(&scale, &bits, sizeof(scale));
  *e = power * scale;
}

// e^x for x <= 0, and 0 where the result would be below the smallest normal number. NaN gives NaN.
inline float exp_nonpositive(float x) {
  constexpr float kLeast = kLeastExponent<float>;
  const uint32_t bits = bit_cast<uint32_t>(exp_in_range(x < kLeast ? kLeast : x));
  // A mask, since a second choice by x would become a branch; NaN is not below.
  return bit_cast<float>(bits & (static_cast<uint32_t>(x < kLeast) - 1));
}
inline double exp_nonpositive(double x) { return exp(x); }

// log x for normal x > 0; absolute error below 2e-7 + 1e-7 |log x|.
inline float log_positive(float x) {
  constexpr uint32_t kRootHalf = 0x3f3504f3u;
  const uint32_t bits = bit_cast<uint32_t>(x);
  const int32_t exponent = static_cast<int32_t>(bits - kRootHalf) >> 23;
  // x = m 2^exponent with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh((m - 1) / (m + 1)).
  const float m = bit_cast<float>(bits - (static_cast<uint32_t>(exponent) << 23));
  const float s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
  float p = 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  const float log_m = 2.0f * s + 2.0f * s * (s2 * p);
  return static_cast<float>(exponent) * 0.6931471805599453f + log_m;
}

// log(1 + x) for 0 <= x <= 1; relative error below 3e-7.
inline float log1p_unit(float x) {
  const float s = x / (2.0f + x), s2 = s * s;  // s <= 1/3
  float p = 1.0f / 17;
  p = p * s2 + 1.0f / 15;
  p = p * s2 + 1.0f / 13;
  p = p * s2 + 1.0f / 11;
  p = p * s2 + 1.0f / 9;
  p = p * s2 + 1.0f / 7;
  p = p * s2 + 1.0f / 5;
  p = p * s2 + 1.0f / 3;
  return 2.0f * s + 2.0f * s * (s2 * p);
}

// log(1 + x) and 1 / (1 + x) for 0 <= x <= 1, with one division for both; relative errors below
// 4e-7. Of one number or a vector.
template <class Floats>
DYNPRUNE_INLINE void set_log1p_terms(const Floats& x, Floats* log1p, Floats* reciprocal) {
  const Floats one_more = x + 1.0f, two_more = x + 2.0f;
  const Floats inverse = 1.0f / (one_more * two_more);
  *reciprocal = two_more * inverse;
  // 2 atanh(s) = s p(s^2), with p fitted to the least greatest relative error, below 5e-9.
  const Floats s = x * one_more * inverse, s2 = s * s;  // s <= 1/3
  Floats p = 0.28178358f * s2 + 0.27960598f;
  p = p * s2 + 0.4002491f;
  p = p * s2 + 0.66666317f;
  p = p * s2 + 2.0f;
  *log1p = p * s;
}

}  // namespace cpu
}  // namespace dynprune
