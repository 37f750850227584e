// SPDX-License-Identifier: Apache-2.0
// A realistic kernel with one line missing: the k-th smallest of n keys, eight bits a launch. Every
// block counts digits in shared memory and adds its counts to the grid's; the last block to finish
// picks the digit. Each Step below guards one line; a correct kernel has them all.
#include <cstdint>

#include "device/launch.h"

namespace {

constexpr int kThreads = 256;
constexpr int kBins = 256;

// The names are repeated in bug_matrix.py, in this order.
enum Step {
  kNothing,
  kBarrierAfterClearing,
  kBarrierAfterCounting,
  kBarrierBeforeTicket,
  kReleaseFence,
  kAcquireFence,
  kBarrierAfterTicket,
  kBarrierBeforeUpdate,
  kNumSteps,
};

struct State {
  unsigned prefix;  // the digits found so far, in place
  unsigned rank;    // of the wanted key among those with this prefix, from 1
  unsigned ticket;
  unsigned counts[kBins];
};

__global__ void start(State* state, unsigned k) {
  state->counts[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    state->prefix = 0;
    state->rank = k;
    state->ticket = 0;
  }
}

// state->counts -> the number of keys in smaller bins than this thread's.
__device__ __forceinline__ unsigned exclusive_count(unsigned own, unsigned* warp_sums) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  unsigned inclusive = own;
  for (unsigned offset = 1; offset < 32; offset *= 2) {
    const unsigned below = __shfl_up_sync(0xffffffffu, inclusive, offset);
    if (lane >= offset) inclusive += below;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  unsigned before = inclusive - own;
  for (unsigned w = 0; w < warp; w++) before += warp_sums[w];
  return before;
}

template <int kRemoved>
__global__ void __launch_bounds__(kThreads)
    find_digit(const uint32_t* __restrict__ keys, int n, int shift, State* state) {
  DYNPRUNE_SHARED(unsigned, counts, [kBins]);
  DYNPRUNE_SHARED(unsigned, warp_sums, [kThreads / 32]);
  DYNPRUNE_SHARED(bool, is_last, );
  const int t = threadIdx.x;
  const uint32_t known_bits = shift == 24 ? 0u : ~0u << (shift + 8);

  counts[t] = 0;
  if (kRemoved != kBarrierAfterClearing) __syncthreads();
  const unsigned prefix = state->prefix;
  for (int i = blockIdx.x * kThreads + t; i < n; i += gridDim.x * kThreads) {
    const uint32_t key = keys[i];
    if ((key & known_bits) == prefix) atomicAdd(&counts[key >> shift & 0xff], 1u);
  }
  if (kRemoved != kBarrierAfterCounting) __syncthreads();
  if (counts[t] != 0) atomicAdd(&state->counts[t], counts[t]);

  if (kRemoved != kBarrierBeforeTicket) __syncthreads();
  if (t == 0) {
    if (kRemoved != kReleaseFence) __threadfence();
    is_last = atomicAdd(&state->ticket, 1u) == gridDim.x - 1;
    if (kRemoved != kAcquireFence) __threadfence();
  }
  if (kRemoved != kBarrierAfterTicket) __syncthreads();
  if (!is_last) return;

  const unsigned own = state->counts[t];
  const unsigned before = exclusive_count(own, warp_sums);
  const unsigned rank = state->rank;
  if (kRemoved != kBarrierBeforeUpdate) __syncthreads();
  if (before < rank && rank <= before + own) {  // one thread
    state->prefix = prefix | static_cast<unsigned>(t) << shift;
    state->rank = rank - before;
    state->ticket = 0;
  }
  state->counts[t] = 0;
}

template <int kRemoved>
int select(const uint32_t* keys, int n, int k, void* workspace, int grid) {
  State* state = static_cast<State*>(workspace);
  DYNPRUNE_LAUNCH((start), 1, kBins, 0, 0, state, static_cast<unsigned>(k));
  for (int shift = 24; shift >= 0; shift -= 8) {
    DYNPRUNE_LAUNCH((find_digit<kRemoved>), grid, kThreads, 0, 0, keys, n, shift, state);
  }
  return cudaGetLastError();
}

using Select = int (*)(const uint32_t*, int, int, void*, int);
constexpr Select kSelects[kNumSteps] = {
    select<kNothing>,
    select<kBarrierAfterClearing>,
    select<kBarrierAfterCounting>,
    select<kBarrierBeforeTicket>,
    select<kReleaseFence>,
    select<kAcquireFence>,
    select<kBarrierAfterTicket>,
    select<kBarrierBeforeUpdate>,
};

}  // namespace

extern "C" int select_workspace_bytes() { return sizeof(State); }

// The result is the first word of the workspace.
extern "C" int launch_select(int removed, const uint32_t* keys, int n, int k, void* workspace,
                             int grid) {
  if (removed < 0 || removed >= kNumSteps) return cudaErrorInvalidValue;
  return kSelects[removed](keys, n, k, workspace, grid);
}
