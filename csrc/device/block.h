// SPDX-License-Identifier: Apache-2.0
// Scans over a thread block whose size is a multiple of 32. Every thread of the block must call
// them together.
#pragma once

#include "device/launch.h"

namespace dynprune {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;
constexpr int kCacheLine = 128;  // bytes

// Inclusive sum over the lanes of a warp; all 32 lanes take part.
template <class T>
__device__ __forceinline__ T warp_inclusive_sum(T value, int lane) {
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const T below = __shfl_up_sync(kFullWarp, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

// Exclusive sum over the threads of a block, in thread order. warp_totals holds one T per warp and
// may be reused after the next barrier.
template <class T>
__device__ __forceinline__ T block_exclusive_sum(T value, T* warp_totals) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const T inclusive = warp_inclusive_sum(value, lane);
  if (lane == kWarpSize - 1) warp_totals[warp] = inclusive;
  __syncthreads();
  T before = inclusive - value;
  for (int w = 0; w < warp; w++) before += warp_totals[w];
  return before;
}

// True in every thread of the last block of the grid that calls it. Everything that the other
// blocks wrote before their call is then visible. The ticket must be 0 before the launch. One
// thread fences, takes the ticket and fences again: fences by other threads would not order this
// thread's atomic.
__device__ __forceinline__ bool last_block_here(unsigned* ticket) {
  DYNPRUNE_SHARED(int, is_last, );
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return is_last != 0;
}

}  // namespace dynprune
