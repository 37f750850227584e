// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the hot loops, on the 16 bytes of logits that a thread reads at once. Written
// for few instructions an element: float32 takes powers of 2, and no element has a branch.
// `make kernels` counts them. float64 takes the C library's functions.
#pragma once

#include "device/fast_math.h"
#include "shared/cross_entropy_row.h"

namespace dynprune {
namespace cuda {

constexpr float kLog2E = 1.44269504f;
// Below any difference of logits whose exponential is above 0.
template <class A>
constexpr A kNoContribution = sizeof(A) == 4 ? -150 : -800;

template <class T>
struct Vector {
  static constexpr int kSize = 16 / sizeof(T);
  using A = compute_t<T>;
  T v[kSize];

  static __device__ __forceinline__ Vector from(uint4 raw) {
    Vector result;
    memcpy(result.v, &raw, 16);
    return result;
  }
  static __device__ __forceinline__ Vector filled(T value) {
    Vector result;
#pragma unroll
    for (int k = 0; k < kSize; k++) result.v[k] = value;
    return result;
  }
  __device__ __forceinline__ uint4 raw() const {
    uint4 result;
    memcpy(&result, v, 16);
    return result;
  }

  __device__ __forceinline__ void widen_to(A* x) const {
#pragma unroll
    for (int k = 0; k < kSize; k++) x[k] = widen(v[k]);
  }
  static __device__ __forceinline__ Vector narrowed(const A* x) {
    Vector result;
    if constexpr (sizeof(T) == 2) {
      uint32_t pairs[kSize / 2];
#pragma unroll
      for (int k = 0; k < kSize; k += 2) pairs[k / 2] = narrow_pair<T>(x[k], x[k + 1]);
      memcpy(result.v, pairs, 16);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; k++) result.v[k] = x[k];
    }
    return result;
  }
};

// e^x for a difference x of a logit from the greatest.
__device__ __forceinline__ float exp_below(float x) { return exp2_approx(x * kLog2E); }
__device__ __forceinline__ double exp_below(double x) { return exp_of(x); }

// Adds kNumber logits to the sums: one look at the maximum for up to kAddedAtOnce, which are all in
// registers.
template <class A>
constexpr int kAddedAtOnce = sizeof(A) == 4 ? 16 : 2;

template <int kNumber, class A>
__device__ __forceinline__ void add_all(RowStats<A>* stats, const A* x) {
  constexpr int kFew = kAddedAtOnce<A>;
  if constexpr (kNumber > kFew) {
    add_all<kFew>(stats, x);
    add_all<kNumber - kFew>(stats, x + kFew);
  } else {
    A greatest = x[0];
#pragma unroll
    for (int k = 1; k < kNumber; k++) greatest = max(greatest, x[k]);
    if (greatest > stats->m) stats->rescale(greatest);
#pragma unroll
    for (int k = 0; k < kNumber; k++) {
      const A shifted = x[k] - stats->m, e = exp_below(shifted);
      stats->s += e;
      stats->q = fma(e, e, stats->q);
      // Not 0 * -inf. A NaN is lost here, but reaches s and q.
      stats->t = fma(e, max(shifted, kNoContribution<A>), stats->t);
    }
  }
}

// The gradient at classes that are no target. What all of them share is computed once. kWeighted:
// label smoothing with class weights, which loads a weight for each class. float64 looks for
// targets and weights at each class.
template <class A, bool kWeighted>
struct OtherClasses {
  const RowGradient<A>& gradient;
  const A factor;  // of the softmax
  const A shift;   // in the exponent, of 2 for float32

  explicit __device__ __forceinline__ OtherClasses(const RowGradient<A>& row)
      : gradient(row),
        factor(row.softmax_weight()),
        shift(row.saved.log_normaliser * static_cast<A>(kLog2E)) {}

  // x: the logits of classes c, c + 1, ...; their gradient takes their place.
  template <int kSize>
  __device__ __forceinline__ void replace(int64_t c, A* x) const {
#pragma unroll
    for (int k = 0; k < kSize; k++) {
      if constexpr (sizeof(A) == 8) {
        x[k] = gradient.at(c + k, x[k]);
      } else {
        // The greatest logit comes off first: scaled, a great one would lose digits.
        const float e = exp2_approx(fmaf(x[k] - gradient.saved.max, kLog2E, -shift));
        const float uniform = kWeighted ? gradient.uniform_weight * gradient.class_weight[c + k]
                                        : gradient.uniform_weight;
        x[k] = fmaf(factor, e, -uniform);
      }
    }
  }
};

}  // namespace cuda
}  // namespace dynprune
