// SPDX-License-Identifier: Apache-2.0
// Launches whose blocks synchronise with each other. In a cooperative launch all blocks are
// resident at once. In a cluster (compute capability 9) they also access each other's shared
// memory. This is a separate file because few kernels need <cooperative_groups.h>.
//
// A green context owns a part of the multiprocessors, but the device's attribute counts them all. A
// cooperative launch that fills the device then returns cudaErrorCooperativeLaunchTooLarge. Under
// MIG and MPS the attribute counts the part.
//
//   cudaError_t DYNPRUNE_LAUNCH_COOPERATIVE((kernel<T>), grid, block, dynamic_shared_bytes, stream,
//                                           args...)   grid <= DYNPRUNE_RESIDENT_BLOCKS(...)
//   cudaError_t DYNPRUNE_LAUNCH_CLUSTERS((kernel<T>), grid, cluster, block, dynamic_shared_bytes,
//                                        stream, args...)   grid: a multiple of cluster <= 8
//   int DYNPRUNE_RESIDENT_BLOCKS((kernel<T>), block, dynamic_shared_bytes)   on the device at once
//   int DYNPRUNE_RESIDENT_CLUSTERS((kernel<T>), cluster, block, dynamic_shared_bytes)   0: the
//       device has none of that size, or the kernel was compiled for devices without
//   kHasClusters: false where a kernel is compiled for devices without; leave it empty there
//   grid_sync(): every thread of the grid; what was written before it is visible after it
//   cluster_sync(): the same of a cluster
//   cluster_shared(p, rank): where the block's shared variable *p lies in another of its cluster;
//       not before the first cluster_sync(), nor after that block has left
#pragma once

#include "device/launch.h"

#if !defined(DYNPRUNE_EMULATOR)
#include <cooperative_groups.h>

#include <algorithm>
#include <tuple>
#include <utility>

namespace dynprune {

__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasClusters = false;
#else
constexpr bool kHasClusters = true;
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_sync() { cooperative_groups::this_cluster().sync(); }
template <class T>
__device__ __forceinline__ T* cluster_shared(T* p, unsigned rank) {
  return cooperative_groups::this_cluster().map_shared_rank(p, static_cast<int>(rank));
}
#else
__device__ __forceinline__ void cluster_sync() { __trap(); }
template <class T>
__device__ __forceinline__ T* cluster_shared(T* p, unsigned) {
  return p;
}
#endif
constexpr int kFirstVersionWithClusters = 90;  // of PTX targets, as cudaFuncAttributes counts them

// A launch configuration and what it points to.
struct ClusterLaunch {
  cudaLaunchAttribute attribute = {};
  cudaLaunchConfig_t config = {};

  ClusterLaunch(unsigned grid, unsigned cluster, unsigned block, size_t shared_bytes,
                cudaStream_t stream) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.gridDim = dim3(grid);
    config.blockDim = dim3(block);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
};

// What residency depends on: device, kernel, blocks of a cluster, threads, bytes.
using ResidencyKey = std::tuple<int, const void*, unsigned, unsigned, size_t>;

// Both functions count what an idle device would hold. The driver is asked once. After an error
// they return 0 and clear it, so that the next cudaGetLastError does not report it.
inline int resident_blocks(const void* function, unsigned block, size_t shared_bytes) {
  static AnswerCache<ResidencyKey> cache;
  const int answer = cache.get({current_device(), function, 1, block, shared_bytes}, [&] {
    int per_multiprocessor = 0;
    if (device_attribute(cudaDevAttrCooperativeLaunch) == 0) return 0;
    if (allow_all_shared(function) != cudaSuccess ||
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &per_multiprocessor, function, static_cast<int>(block), shared_bytes) != cudaSuccess) {
      (void)cudaGetLastError();
      return -1;
    }
    return per_multiprocessor * multiprocessor_count();
  });
  return std::max(answer, 0);
}

inline int resident_clusters(const void* function, unsigned cluster, unsigned block,
                             size_t shared_bytes) {
  static AnswerCache<ResidencyKey> cache;
  const int answer = cache.get({current_device(), function, cluster, block, shared_bytes}, [&] {
    cudaFuncAttributes attributes = {};
    int clusters = 0;
    if (device_attribute(cudaDevAttrClusterLaunch) == 0) return 0;
    const ClusterLaunch launch(cluster, cluster, block, shared_bytes, nullptr);
    if (allow_all_shared(function) != cudaSuccess ||
        cudaFuncGetAttributes(&attributes, function) != cudaSuccess) {
      (void)cudaGetLastError();
      return -1;
    }
    if (attributes.ptxVersion < kFirstVersionWithClusters) return 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, function, &launch.config) != cudaSuccess) {
      (void)cudaGetLastError();
      return -1;
    }
    return clusters;
  });
  return std::max(answer, 0);
}

template <class... Parameters, size_t... I>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                               size_t shared_bytes, cudaStream_t stream,
                               std::tuple<Parameters...> arguments, std::index_sequence<I...>) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 0) {
    const cudaError_t error = allow_all_shared(function);
    if (error != cudaSuccess) return error;
  }
  void* pointers[] = {static_cast<void*>(&std::get<I>(arguments))...};
  return cudaLaunchCooperativeKernel(function, grid, block, pointers, shared_bytes, stream);
}

template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), unsigned grid, unsigned block,
                               size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
  return launch_cooperative(kernel, dim3(grid), dim3(block), shared_bytes, stream,
                            std::tuple<Parameters...>(arguments...),
                            std::index_sequence_for<Parameters...>());
}

// Only for kernels for which resident_clusters() returned at least 1; it allows their shared
// memory.
template <class... Parameters, size_t... I>
cudaError_t launch_clusters(void (*kernel)(Parameters...), const ClusterLaunch& launch,
                            std::tuple<Parameters...> arguments, std::index_sequence<I...>) {
  void* pointers[] = {static_cast<void*>(&std::get<I>(arguments))...};
  return cudaLaunchKernelExC(&launch.config, reinterpret_cast<const void*>(kernel), pointers);
}

template <class... Parameters, class... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), unsigned grid, unsigned cluster,
                            unsigned block, size_t shared_bytes, cudaStream_t stream,
                            Arguments... arguments) {
  return launch_clusters(kernel, ClusterLaunch(grid, cluster, block, shared_bytes, stream),
                         std::tuple<Parameters...>(arguments...),
                         std::index_sequence_for<Parameters...>());
}

#define DYNPRUNE_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...)          \
  ::dynprune::launch_cooperative(DYNPRUNE_UNPAREN kernel, grid, block, shared_bytes, stream, \
                                 __VA_ARGS__)
#define DYNPRUNE_LAUNCH_CLUSTERS(kernel, grid, cluster, block, shared_bytes, stream, ...)          \
  ::dynprune::launch_clusters(DYNPRUNE_UNPAREN kernel, grid, cluster, block, shared_bytes, stream, \
                              __VA_ARGS__)
#define DYNPRUNE_RESIDENT_BLOCKS(kernel, block, shared_bytes)                                  \
  ::dynprune::resident_blocks(reinterpret_cast<const void*>(DYNPRUNE_UNPAREN kernel), (block), \
                              (shared_bytes))
#define DYNPRUNE_RESIDENT_CLUSTERS(kernel, cluster, block, shared_bytes)                           \
  ::dynprune::resident_clusters(reinterpret_cast<const void*>(DYNPRUNE_UNPAREN kernel), (cluster), \
                                (block), (shared_bytes))

}  // namespace dynprune
#endif
