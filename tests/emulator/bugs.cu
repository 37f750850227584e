// SPDX-License-Identifier: Apache-2.0
// One planted bug per kernel, and its correct twin: kernel<true> has the bug, kernel<false> differs
// in that only. The emulator must report every bug and be silent about every twin (bug_matrix.py).
#include <cstring>

#include "device/launch.h"

namespace {

constexpr unsigned kFullMask = 0xffffffffu;
constexpr int kThreads = 256;

__device__ __forceinline__ int global_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- shared memory and barriers

// Reads what another thread wrote, without a barrier in between.
template <bool kBug>
__global__ void missing_barrier(const int* in, int* out, int*) {
  DYNPRUNE_SHARED(int, tile, [kThreads]);
  tile[threadIdx.x] = in[global_thread()];
  if (!kBug) __syncthreads();
  out[global_thread()] = tile[threadIdx.x ^ 1];
}

// The next iteration overwrites what slower threads still read.
template <bool kBug>
__global__ void missing_second_barrier(const int* in, int* out, int*) {
  DYNPRUNE_SHARED(int, tile, [kThreads]);
  int value = in[global_thread()];
  for (int i = 1; i <= 8; i++) {
    tile[threadIdx.x] = value;
    __syncthreads();
    value += tile[(threadIdx.x + 37 * i) % kThreads];
    if (!kBug) __syncthreads();
  }
  out[global_thread()] = value;
}

// A reduction that takes for granted that the lanes of a warp run in lockstep.
template <bool kBug>
__global__ void implicit_warp_sync(const int* in, int* out, int*) {
  DYNPRUNE_SHARED(int, sums, [64]);
  volatile int* lockstep = sums;
  const int lane = threadIdx.x;
  sums[lane] = in[global_thread()];
  sums[lane + 32] = 0;
  if (!kBug) __syncwarp();
  for (int offset = 16; offset > 0; offset /= 2) {
    const int sum = lockstep[lane] + lockstep[lane + offset];
    if (!kBug) __syncwarp();
    lockstep[lane] = sum;
    if (!kBug) __syncwarp();
  }
  if (lane == 0) out[blockIdx.x] = sums[0];
}

// A shuffle exchanges registers; only __syncwarp orders memory.
template <bool kBug>
__global__ void shuffle_as_barrier(const int* in, int* out, int*) {
  DYNPRUNE_SHARED(int, tile, [32]);
  const int lane = threadIdx.x;
  tile[lane] = in[lane];
  const int neighbour = __shfl_xor_sync(kFullMask, lane, 1);
  if (!kBug) __syncwarp();
  out[lane] = tile[neighbour];
}

// Half of the block waits at one barrier, half at another.
template <bool kBug>
__global__ void divergent_barrier(const int* in, int* out, int*) {
  DYNPRUNE_SHARED(int, tile, [kThreads]);
  tile[threadIdx.x] = in[threadIdx.x];
  if (kBug && threadIdx.x < 128) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = tile[kThreads - 1 - threadIdx.x];
}

// Some threads go around the loop, with its barriers, once more than others.
template <bool kBug>
__global__ void skipped_barrier(const int* in, int* out, int*) {
  DYNPRUNE_SHARED(int, shared_value, );
  int sum = 0;
  for (int i = kBug ? threadIdx.x : 0; i < 300; i += kThreads) {
    if (threadIdx.x == 0) shared_value = in[i];
    __syncthreads();
    sum += shared_value;
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}

// One thread of a warp waits at a barrier, the others for it in a warp operation.
template <bool kBug>
__global__ void barrier_within_warp(const int* in, int* out, int*) {
  int value = in[threadIdx.x];
  if (kBug && threadIdx.x == 5) {
    __syncthreads();
  } else {
    value += __shfl_sync(kBug ? kFullMask : __activemask(), value, threadIdx.x);
    if (!kBug) __syncthreads();
  }
  out[threadIdx.x] = value;
}

// ---- bounds, initialisation, alignment

template <bool kBug>
__global__ void shared_out_of_bounds(const int* in, int* out, int*) {
  DYNPRUNE_SHARED(int, tile, [kThreads]);
  DYNPRUNE_SHARED(int, other, [kThreads]);
  tile[threadIdx.x] = in[threadIdx.x];
  other[threadIdx.x] = 7;
  __syncthreads();
  const int next = threadIdx.x + 1;
  out[threadIdx.x] = tile[kBug ? next : next % kThreads] + other[threadIdx.x];
}

// One element more than the launch asked for.
template <bool kBug>
__global__ void dynamic_out_of_bounds(const int* in, int* out, int*) {
  DYNPRUNE_DYNAMIC_SHARED(int, tile);
  const int shift = kBug ? 1 : 0;
  tile[threadIdx.x + shift] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + shift];
}

template <bool kBug>
__global__ void global_out_of_bounds(const int* in, int* out, int*) {
  constexpr int kSize = 1024;
  const int i = global_thread();
  if (kBug ? i <= kSize : i < kSize) out[i] = in[i] + 1;
}

// Adds to shared memory that nobody has cleared.
template <bool kBug>
__global__ void uninitialised_shared(const int* in, int* out, int*) {
  DYNPRUNE_SHARED(int, sum, );
  if (!kBug && threadIdx.x == 0) sum = 0;
  if (!kBug) __syncthreads();
  atomicAdd(&sum, in[threadIdx.x]);
  __syncthreads();
  if (threadIdx.x == 0) out[0] = sum;
}

// The output is no input: it holds garbage until it is written.
template <bool kBug>
__global__ void uninitialised_global(const int* in, int* out, int*) {
  const int i = global_thread();
  const int value = in[i];
  if (!kBug) out[i] = 0;
  out[i] += value;
}

template <bool kBug>
__global__ void misaligned_vector(const int* in, int* out, int*) {
  const int4 v = __ldg(reinterpret_cast<const int4*>(in + 4 * threadIdx.x + (kBug ? 1 : 0)));
  out[threadIdx.x] = v.x + v.y + v.z + v.w;
}

// ---- warp operations

// Names lanes that take the other branch.
template <bool kBug>
__global__ void full_mask_in_branch(const int* in, int* out, int*) {
  int value = in[threadIdx.x];
  if (threadIdx.x < 24) value = __shfl_sync(kBug ? kFullMask : 0x00ffffffu, value, 3);
  out[threadIdx.x] = value;
}

// Lane 15 reads lane 23, which does not take part.
template <bool kBug>
__global__ void shuffle_outside_mask(const int* in, int* out, int*) {
  int value = in[threadIdx.x];
  if (threadIdx.x < 16) value += __shfl_down_sync(0x0000ffffu, value, 8, kBug ? 32 : 16);
  out[threadIdx.x] = value;
}

// Lane 31 calls an operation that its mask leaves out.
template <bool kBug>
__global__ void caller_not_in_mask(const int* in, int* out, int*) {
  const unsigned mask = kBug ? 0x7fffffffu : kFullMask;
  out[threadIdx.x] = __popc(__ballot_sync(mask, in[threadIdx.x] > 50));
}

// Two branches meet in different operations.
template <bool kBug>
__global__ void mixed_warp_operations(const int* in, int* out, int*) {
  const int value = in[threadIdx.x];
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __any_sync(kBug ? kFullMask : 0x0000ffffu, value > 50);
  } else {
    out[threadIdx.x] = __all_sync(kBug ? kFullMask : 0xffff0000u, value > 50);
  }
}

// ---- global memory and other blocks

template <bool kBug>
__global__ void plain_counter(const int*, int*, int* aux) {
  if (kBug) {
    *aux = *aux + 1;
  } else {
    atomicAdd(aux, 1);
  }
}

// aux: [0] flag, [1] order of arrival. The first block to arrive passes in[0] to the others.
template <bool kBug>
__global__ void relaxed_message(const int* in, int* out, int* aux) {
  if (threadIdx.x != 0) return;
  const int arrival = atomicAdd(&aux[1], 1);
  if (arrival == 0) {
    out[0] = in[0];
    if (kBug) {
      dynprune::store_relaxed(&aux[0], 1);
    } else {
      dynprune::store_release(&aux[0], 1);
    }
  } else {
    while ((kBug ? dynprune::load_relaxed(&aux[0]) : dynprune::load_acquire(&aux[0])) == 0) {
    }
    out[arrival] = out[0] + 1;
  }
}

// Waits for something that nobody does: the first block to arrive forgets to raise the flag.
template <bool kBug>
__global__ void flag_never_raised(const int* in, int* out, int* aux) {
  const int lane = threadIdx.x;
  int arrival = lane == 0 ? atomicAdd(&aux[1], 1) : 0;
  arrival = __shfl_sync(kFullMask, arrival, 0);
  if (arrival == 0) {
    if (!kBug && lane == 0) dynprune::store_release(&aux[0], 1);
  } else {
    // The whole warp polls and votes, as a decoupled look-back does.
    while (!__all_sync(kFullMask, dynprune::load_acquire(&aux[0]) != 0)) {
    }
  }
  if (lane == 0) out[arrival] = in[arrival];
}

// aux: [0] ticket, [1...] flags. Each block waits for the one before it; in the order of blockIdx
// that one may not have started, and may have to wait for this one to leave.
template <bool kBug>
__global__ void look_back_by_block_index(const int*, int* out, int* aux) {
  if (threadIdx.x != 0) return;
  int* flags = aux + 1;
  const int tile = kBug ? static_cast<int>(blockIdx.x) : atomicAdd(&aux[0], 1);
  int before = 0;
  if (tile > 0) {
    do {
      before = dynprune::load_acquire(&flags[tile - 1]);
    } while (before == 0);
  }
  out[tile] = before + 1;
  dynprune::store_release(&flags[tile], before + 1);
}

enum class Fence { kNone, kBlock, kDevice };

// aux: [0] ticket, [1...] one partial result per block. The last block to draw a ticket adds them
// up.
template <Fence kRelease, Fence kAcquire>
__device__ __forceinline__ void last_block_sums(const int* in, int* out, int* aux) {
  if (threadIdx.x != 0) return;
  int* partial = aux + 1;
  partial[blockIdx.x] = in[blockIdx.x];
  if (kRelease == Fence::kDevice) __threadfence();
  if (kRelease == Fence::kBlock) __threadfence_block();
  const bool last = atomicAdd(&aux[0], 1) == static_cast<int>(gridDim.x) - 1;
  if (kAcquire == Fence::kDevice) __threadfence();
  if (!last) return;
  int sum = 0;
  for (unsigned b = 0; b < gridDim.x; b++) sum += partial[b];
  out[0] = sum;
}

template <bool kBug>
__global__ void no_release_fence(const int* in, int* out, int* aux) {
  last_block_sums<kBug ? Fence::kNone : Fence::kDevice, Fence::kDevice>(in, out, aux);
}
template <bool kBug>
__global__ void no_acquire_fence(const int* in, int* out, int* aux) {
  last_block_sums<Fence::kDevice, kBug ? Fence::kNone : Fence::kDevice>(in, out, aux);
}
template <bool kBug>
__global__ void block_fence_for_device(const int* in, int* out, int* aux) {
  last_block_sums<kBug ? Fence::kBlock : Fence::kDevice, Fence::kDevice>(in, out, aux);
}

// Within one block, a fence of block scope is enough; without one the flag promises nothing.
template <bool kBug>
__global__ void no_fence_in_block(const int* in, int* out, int* aux) {
  if (threadIdx.x == 0) {
    out[0] = in[0];
    if (!kBug) __threadfence_block();
    atomicExch(&aux[0], 1);
  } else if (threadIdx.x == 32) {
    while (dynprune::load_relaxed(&aux[0]) == 0) {
    }
    if (!kBug) __threadfence_block();
    out[1] = out[0] + 1;
  }
}

}  // namespace

#define LAUNCH_IF_NAMED(kernel, grid, block, dynamic_bytes)                          \
  if (strcmp(name, #kernel) == 0) {                                                  \
    if (bug) {                                                                       \
      DYNPRUNE_LAUNCH((kernel<true>), grid, block, dynamic_bytes, 0, in, out, aux);  \
    } else {                                                                         \
      DYNPRUNE_LAUNCH((kernel<false>), grid, block, dynamic_bytes, 0, in, out, aux); \
    }                                                                                \
    return cudaGetLastError();                                                       \
  }

// in: [1024] any numbers; out: [1024] written; aux: [1024] zeros.
extern "C" int launch_bug(const char* name, int bug, const int* in, int* out, int* aux) {
  LAUNCH_IF_NAMED(missing_barrier, 4, kThreads, 0)
  LAUNCH_IF_NAMED(missing_second_barrier, 4, kThreads, 0)
  LAUNCH_IF_NAMED(implicit_warp_sync, 4, 32, 0)
  LAUNCH_IF_NAMED(shuffle_as_barrier, 1, 32, 0)
  LAUNCH_IF_NAMED(divergent_barrier, 1, kThreads, 0)
  LAUNCH_IF_NAMED(skipped_barrier, 1, kThreads, 0)
  LAUNCH_IF_NAMED(barrier_within_warp, 1, 64, 0)
  LAUNCH_IF_NAMED(shared_out_of_bounds, 1, kThreads, 0)
  LAUNCH_IF_NAMED(dynamic_out_of_bounds, 1, kThreads, kThreads * sizeof(int))
  LAUNCH_IF_NAMED(global_out_of_bounds, 5, kThreads, 0)
  LAUNCH_IF_NAMED(uninitialised_shared, 1, kThreads, 0)
  LAUNCH_IF_NAMED(uninitialised_global, 4, kThreads, 0)
  LAUNCH_IF_NAMED(misaligned_vector, 1, 32, 0)
  LAUNCH_IF_NAMED(full_mask_in_branch, 1, 32, 0)
  LAUNCH_IF_NAMED(shuffle_outside_mask, 1, 32, 0)
  LAUNCH_IF_NAMED(caller_not_in_mask, 1, 32, 0)
  LAUNCH_IF_NAMED(mixed_warp_operations, 1, 32, 0)
  LAUNCH_IF_NAMED(plain_counter, 4, 64, 0)
  LAUNCH_IF_NAMED(relaxed_message, 4, 32, 0)
  LAUNCH_IF_NAMED(flag_never_raised, 4, 32, 0)
  LAUNCH_IF_NAMED(look_back_by_block_index, 200, 32, 0)
  LAUNCH_IF_NAMED(no_release_fence, 8, 32, 0)
  LAUNCH_IF_NAMED(no_acquire_fence, 8, 32, 0)
  LAUNCH_IF_NAMED(block_fence_for_device, 8, 32, 0)
  LAUNCH_IF_NAMED(no_fence_in_block, 1, 64, 0)
  return cudaErrorInvalidValue;
}
