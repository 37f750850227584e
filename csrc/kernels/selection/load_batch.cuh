// SPDX-License-Identifier: Apache-2.0
// Loading many samples before the key of the first is computed.
#pragma once

#include "device/launch.h"

namespace dynprune {
namespace cuda {

// How many loads of a thread are in flight at least. `make kernels` counts them.
constexpr int kLoadsInFlight = 12;

// The place of a thread's j-th sample in the batch of a block of kThreads threads.
template <int kThreads>
__device__ __forceinline__ int place_in_batch(int j) {
  return j * kThreads + static_cast<int>(threadIdx.x);
}

// Loads the samples begin, begin + 1, ... of a block, kBatch a thread. Those from begin + count on
// are not read, and zero.
template <int kThreads, class Ranking, int kBatch>
__device__ __forceinline__ void load_batch(const Ranking& ranking, int64_t begin, int count,
                                           typename Ranking::Raw (&raw)[kBatch]) {
  if (count >= kThreads * kBatch) {
#pragma unroll
    for (int j = 0; j < kBatch; j++) raw[j] = ranking.load(begin + place_in_batch<kThreads>(j));
  } else {
#pragma unroll
    for (int j = 0; j < kBatch; j++) {
      const int place = place_in_batch<kThreads>(j);
      raw[j] = {};
      if (place < count) raw[j] = ranking.load(begin + place);
    }
  }
  issue_loads();
}

}  // namespace cuda
}  // namespace dynprune
