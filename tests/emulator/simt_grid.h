// SPDX-License-Identifier: Apache-2.0
// Blocks that meet: cooperative grids and clusters, out of parts that the checker knows. Included
// by simt.h.
#pragma once

namespace emulator {

template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                               cudaStream_t, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
  KernelCall<Parameters...> call(kernel, arguments...);
  return static_cast<cudaError_t>(emulator_launch_cooperative(
      name, grid, block, dynamic_shared_bytes, &KernelCall<Parameters...>::run, &call));
}

template <class... Parameters, class... Arguments>
cudaError_t launch_clusters(const char* name, dim3 grid, unsigned cluster, dim3 block,
                            size_t dynamic_shared_bytes, cudaStream_t,
                            void (*kernel)(Parameters...), Arguments... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
  KernelCall<Parameters...> call(kernel, arguments...);
  return static_cast<cudaError_t>(emulator_launch_clusters(
      name, grid, cluster, block, dynamic_shared_bytes, &KernelCall<Parameters...>::run, &call));
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
  (static_cast<void>(kernel), emulator_multiprocessor_count())
#define DYNPRUNE_RESIDENT_CLUSTERS(kernel, cluster, block, shared_bytes) \
  (static_cast<void>(kernel), emulator_resident_clusters(cluster))

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
