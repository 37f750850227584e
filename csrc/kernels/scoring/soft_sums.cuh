// SPDX-License-Identifier: Apache-2.0
// The sums of a row with probabilities as targets (shared/soft_row.h), from one read. The greatest
// logit is left out of them, whichever it turns out to be.
#pragma once

#include "kernels/scoring/logit_rows.cuh"
#include "shared/soft_row.h"

namespace dynprune {
namespace cuda {

template <class A>
__device__ __forceinline__ SoftSums<A> no_soft_sums() {
  const A least = -Limits<A>::infinity();
  return {least, least, 0, 0, 0, 0, least, -1};
}

// Makes a greater logit the greatest, or one that is as great: the old one joins the others.
template <class A>
__device__ __forceinline__ void raise(SoftSums<A>* r, A greatest) {
  if (r->max != -Limits<A>::infinity()) {
    const A down = r->max - greatest, a = exp_of(down);
    r->t = a > 0 ? a * (r->t + (r->s + 1) * down) : 0;
    r->s = a * (r->s + 1);
    if (r->weight != 0) r->distance -= r->weight * down;
    r->second = max(r->second, r->max);
  }
  r->max = greatest;
}

template <class A>
__device__ __forceinline__ void merge(SoftSums<A>* r, SoftSums<A> other) {
  if (other.max > r->max) {
    raise(r, other.max);
  } else {
    raise(&other, r->max);
  }
  r->second = max(r->second, other.second);
  r->s += other.s;
  r->t += other.t;
  r->weight += other.weight;
  r->distance += other.distance;
  const bool first = other.top == r->top && other.y >= 0 && (r->y < 0 || other.y < r->y);
  if (other.top > r->top || first) {
    r->top = other.top;
    r->y = other.y;
  }
}

// Adds the classes c, c + 1, ...: their logits, which it changes, and their probabilities.
template <int kNumber, bool kWeighted, class A>
__device__ __forceinline__ void add_soft(SoftSums<A>* r, int64_t c, A* x, const A* t,
                                         const SoftWeights<A>& weights) {
  A greatest = x[0];
#pragma unroll
  for (int k = 1; k < kNumber; k++) greatest = max(greatest, x[k]);
  const bool raised = greatest > r->max;
  if (raised) raise(r, greatest);
  // Without any number so far, all logits here are -inf or NaN: their exponentials are, too.
  const A base = r->max == -Limits<A>::infinity() ? A{0} : r->max;
#pragma unroll
  for (int k = 0; k < kNumber; k++) {
    const A u = weights.template at<kWeighted>(c + k, t[k]);
    r->weight += u;
    r->distance += u == 0 ? A{0} : u * (base - x[k]);
    if (t[k] > r->top) {
      r->top = t[k];
      r->y = static_cast<int32_t>(c) + k;
    }
  }
  if (raised) {  // the greatest itself is left out
    bool found = false;
#pragma unroll
    for (int k = 0; k < kNumber; k++) {
      const bool here = !found && x[k] == greatest;
      found = found || here;
      if (here) x[k] = -Limits<A>::infinity();
    }
  }
#pragma unroll
  for (int k = 0; k < kNumber; k++) {
    const A shifted = x[k] - base, e = exp_below(shifted);
    r->second = max(r->second, x[k]);
    r->s += e;
    r->t = fma(e, max(shifted, kNoContribution<A>), r->t);
  }
}

template <class A>
__device__ __forceinline__ SoftSums<A> shuffled(const SoftSums<A>& r, int distance) {
  SoftSums<A> other;
  other.max = __shfl_xor_sync(kFullWarp, r.max, distance);
  other.second = __shfl_xor_sync(kFullWarp, r.second, distance);
  other.s = __shfl_xor_sync(kFullWarp, r.s, distance);
  other.t = __shfl_xor_sync(kFullWarp, r.t, distance);
  other.weight = __shfl_xor_sync(kFullWarp, r.weight, distance);
  other.distance = __shfl_xor_sync(kFullWarp, r.distance, distance);
  other.top = __shfl_xor_sync(kFullWarp, r.top, distance);
  other.y = __shfl_xor_sync(kFullWarp, r.y, distance);
  return other;
}

}  // namespace cuda
}  // namespace dynprune
