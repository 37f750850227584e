// SPDX-License-Identifier: Apache-2.0
// The interface between a kernel file and its target. One .cu source has two targets: nvcc turns
// these names into plain CUDA; with DYNPRUNE_EMULATOR, simt.h (tests/emulator) defines the same
// names for g++. The emulator runs every CUDA thread as a fiber on the CPU. Kernels use nothing
// else for launches, shared memory and ordered accesses:
//
//   DYNPRUNE_LAUNCH((kernel<T>), grid, block, dynamic_shared_bytes, stream, args...);
//   DYNPRUNE_ALLOW_SHARED((kernel<T>));          before a launch with more than 48 KB of it
//   DYNPRUNE_SHARED(float, tile, [32][33]);      a scalar: DYNPRUNE_SHARED(int, flag, );
//   DYNPRUNE_DYNAMIC_SHARED(T, name);            T* name, 16-byte aligned
//   load_acquire, load_relaxed, store_release, store_relaxed      device scope
//   multiprocessor_count(), shared_memory_limit()                 of the current device (driver.h);
//       the limit: bytes of shared memory that one block may have, static and dynamic
#pragma once

#if defined(DYNPRUNE_EMULATOR)
#include "simt.h"
#else
#include <cuda_runtime.h>

#define DYNPRUNE_UNPAREN(...) __VA_ARGS__
#define DYNPRUNE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  DYNPRUNE_UNPAREN kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define DYNPRUNE_SHARED(T, name, dims) __shared__ T name dims
#define DYNPRUNE_DYNAMIC_SHARED(T, name)                                    \
  extern __shared__ __align__(16) unsigned char dynprune_dynamic_shared_[]; \
  T* name = reinterpret_cast<T*>(dynprune_dynamic_shared_)

namespace dynprune {

// Inline PTX, because __nv_atomic_load and _store need nvcc 12.8. T: a word of 4 or 8 bytes.
#define DYNPRUNE_ORDERED_LOAD(name, order)                                             \
  template <class T>                                                                   \
  __device__ __forceinline__ T name(const T* p) {                                      \
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, #name ": a word of 4 or 8 bytes"); \
    if constexpr (sizeof(T) == 8) {                                                    \
      unsigned long long v;                                                            \
      asm volatile("ld." order ".gpu.b64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");    \
      return reinterpret_cast<T&>(v);                                                  \
    } else {                                                                           \
      unsigned v;                                                                      \
      asm volatile("ld." order ".gpu.b32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");    \
      return reinterpret_cast<T&>(v);                                                  \
    }                                                                                  \
  }
#define DYNPRUNE_ORDERED_STORE(name, order)                                            \
  template <class T>                                                                   \
  __device__ __forceinline__ void name(T* p, T v) {                                    \
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, #name ": a word of 4 or 8 bytes"); \
    if constexpr (sizeof(T) == 8) {                                                    \
      asm volatile("st." order ".gpu.b64 [%0], %1;"                                    \
                   :                                                                   \
                   : "l"(p), "l"(reinterpret_cast<unsigned long long&>(v))             \
                   : "memory");                                                        \
    } else {                                                                           \
      asm volatile("st." order ".gpu.b32 [%0], %1;"                                    \
                   :                                                                   \
                   : "l"(p), "r"(reinterpret_cast<unsigned&>(v))                       \
                   : "memory");                                                        \
    }                                                                                  \
  }
DYNPRUNE_ORDERED_LOAD(load_acquire, "acquire")
DYNPRUNE_ORDERED_LOAD(load_relaxed, "relaxed")
DYNPRUNE_ORDERED_STORE(store_release, "release")
DYNPRUNE_ORDERED_STORE(store_relaxed, "relaxed")
#undef DYNPRUNE_ORDERED_LOAD
#undef DYNPRUNE_ORDERED_STORE

}  // namespace dynprune
#endif

#include "device/driver.h"

// Lets a kernel be launched with more than 48 KB of shared memory; a cudaError_t.
#define DYNPRUNE_ALLOW_SHARED(kernel) \
  ::dynprune::allow_all_shared(reinterpret_cast<const void*>(kernel))

namespace dynprune {

// Loads before it are issued before what follows; else the compiler may move each to its use. It is
// no instruction.
__device__ __forceinline__ void issue_loads() { asm volatile("" ::: "memory"); }

// As many blocks as are resident at once, or fewer if there is less to do.
inline unsigned grid_for(int64_t n, int threads, int per_multiprocessor) {
  const int64_t blocks = (n + threads - 1) / threads;
  const int64_t resident = int64_t{multiprocessor_count()} * per_multiprocessor;
  return static_cast<unsigned>(blocks < resident ? blocks : resident);
}

}  // namespace dynprune
