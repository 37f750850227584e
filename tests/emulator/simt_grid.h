// SPDX-License-Identifier: Apache-2.0
// Blocks that meet: cooperative grids and clusters, out of parts that the checker knows. Included
// by simt.h.
#pragma once

#include "device/driver.h"

namespace emulator {

template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                               cudaStream_t, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
  const void* function = reinterpret_cast<const void*>(kernel);
  if (dynamic_shared_bytes > 0) {
    const cudaError_t error = dynprune::allow_all_shared(function);
    if (error != cudaSuccess) return error;
  }
  KernelCall<Parameters...> call(kernel, arguments...);
  return static_cast<cudaError_t>(emulator_launch_cooperative(
      name, function, grid, block, dynamic_shared_bytes, &KernelCall<Parameters...>::run, &call));
}

template <class... Parameters, class... Arguments>
cudaError_t launch_clusters(const char* name, dim3 grid, unsigned cluster, dim3 block,
                            size_t dynamic_shared_bytes, cudaStream_t,
                            void (*kernel)(Parameters...), Arguments... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
  KernelCall<Parameters...> call(kernel, arguments...);
  return static_cast<cudaError_t>(
      emulator_launch_clusters(name, reinterpret_cast<const void*>(kernel), grid, cluster, block,
                               dynamic_shared_bytes, &KernelCall<Parameters...>::run, &call));
}

// As the real ones, both allow the kernel its shared memory.
inline int resident_blocks(const void* kernel) {
  return dynprune::allow_all_shared(kernel) == cudaSuccess ? dynprune::multiprocessor_count() : 0;
}
inline int resident_clusters(const void* kernel, unsigned cluster) {
  const bool allowed = dynprune::allow_all_shared(kernel) == cudaSuccess;
  return allowed ? emulator_resident_clusters(cluster) : 0;
}

// `num_blocks` blocks wait for each other; one thread of each calls.
inline void meet(unsigned* counter, unsigned num_blocks) {
  emulator_fence(/*device_scope=*/1);
  const unsigned ticket = atomicAdd(counter, 1u);
  const unsigned full = (ticket / num_blocks + 1) * num_blocks;
  while (dynprune::load_acquire(counter) < full) {
  }
  emulator_fence(/*device_scope=*/1);
}

inline bool first_thread() { return threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0; }

}  // namespace emulator

#define DYNPRUNE_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...)  \
  ::emulator::launch_cooperative(#kernel, (grid), (block), (shared_bytes), (stream), \
                                 kernel, ##__VA_ARGS__)
#define DYNPRUNE_LAUNCH_CLUSTERS(kernel, grid, cluster, block, shared_bytes, stream, ...)    \
  ::emulator::launch_clusters(#kernel, (grid), (cluster), (block), (shared_bytes), (stream), \
                              kernel, ##__VA_ARGS__)
#define DYNPRUNE_RESIDENT_BLOCKS(kernel, block, shared_bytes) \
  ::emulator::resident_blocks(reinterpret_cast<const void*>(kernel))
#define DYNPRUNE_RESIDENT_CLUSTERS(kernel, cluster, block, shared_bytes) \
  ::emulator::resident_clusters(reinterpret_cast<const void*>(kernel), (cluster))

namespace dynprune {

constexpr bool kHasClusters = true;

inline void grid_sync(EMULATOR_SITE) {
  emulator_barrier(kBarrierPlain, 0, file, line);
  if (emulator::first_thread()) {
    emulator::meet(emulator_grid_barrier(), gridDim.x * gridDim.y * gridDim.z);
  }
  emulator_barrier(kBarrierPlain, 1, file, line);
}

inline void cluster_sync(EMULATOR_SITE) {
  emulator_barrier(kBarrierPlain, 0, file, line);
  if (emulator::first_thread()) {
    emulator::meet(emulator_cluster_barrier(), emulator_cluster_size());
  }
  emulator_barrier(kBarrierPlain, 1, file, line);
}

template <class T>
T* cluster_shared(T* p, unsigned rank, EMULATOR_SITE) {
  return static_cast<T*>(emulator_cluster_shared(p, rank, file, line));
}

}  // namespace dynprune
