// SPDX-License-Identifier: Apache-2.0
// How a kernel file talks to its target. One .cu source, two targets: nvcc turns these names into
// plain CUDA; with DYNPRUNE_EMULATOR, simt.h (tests/emulator) gives the same names to g++, which
// runs every CUDA thread as a fiber on the CPU. Kernels use nothing else for launches, shared
// memory and ordered accesses:
//
//   DYNPRUNE_LAUNCH((kernel<T>), grid, block, dynamic_shared_bytes, stream, args...);
//   DYNPRUNE_SHARED(float, tile, [32][33]);      a scalar: DYNPRUNE_SHARED(int, flag, );
//   DYNPRUNE_DYNAMIC_SHARED(T, name);            T* name, 16-byte aligned
//   load_acquire, load_relaxed, store_release, store_relaxed      device scope
//   multiprocessor_count()                                        of the current device
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

// The compiler's own atomics: <cuda/atomic> says the same but costs seconds per file.
template <class T>
__device__ __forceinline__ T load_acquire(const T* p) {
  T v;
  __nv_atomic_load(const_cast<T*>(p), &v, __NV_ATOMIC_ACQUIRE, __NV_THREAD_SCOPE_DEVICE);
  return v;
}
template <class T>
__device__ __forceinline__ T load_relaxed(const T* p) {
  T v;
  __nv_atomic_load(const_cast<T*>(p), &v, __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE);
  return v;
}
template <class T>
__device__ __forceinline__ void store_release(T* p, T v) {
  __nv_atomic_store(p, &v, __NV_ATOMIC_RELEASE, __NV_THREAD_SCOPE_DEVICE);
}
template <class T>
__device__ __forceinline__ void store_relaxed(T* p, T v) {
  __nv_atomic_store(p, &v, __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE);
}

inline int multiprocessor_count() {
  int device = 0, count = 1;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  }
  return count;
}

}  // namespace dynprune
#endif
