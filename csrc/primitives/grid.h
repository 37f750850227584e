// SPDX-License-Identifier: Apache-2.0
// Kernels whose blocks meet: a cooperative launch, in which all blocks are on the machine at once,
// and its barrier. A file of its own because <cooperative_groups.h> costs seconds of compile time.
//
// A context that owns a part of the multiprocessors only ("green") refuses the launch, since the
// device's attribute counts them all; MIG and MPS divide what the attribute says.
//
//   cudaError_t DYNPRUNE_LAUNCH_COOPERATIVE((kernel<T>), grid, block, dynamic_shared_bytes, stream,
//                                           args...)     grid <= multiprocessor_count()
//   grid_sync()            every thread of the grid; what was written before it is visible after it
//   shared_memory_limit()  bytes of shared memory that one block may have, static and dynamic
#pragma once

#include "launch.h"

#if !defined(DYNPRUNE_EMULATOR)
#include <cooperative_groups.h>

#include <tuple>
#include <utility>

namespace dynprune {

__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

inline size_t shared_memory_limit() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  return static_cast<size_t>(bytes);
}

template <class... Parameters, size_t... I>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                               size_t shared_bytes, cudaStream_t stream,
                               std::tuple<Parameters...> arguments, std::index_sequence<I...>) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 0) {
    // More than 48 KB has to be allowed, which is not a stream operation and may happen while a
    // graph is captured. The most that is possible, whatever this launch needs: the allowance
    // belongs to the function, and other threads may be launching it too.
    cudaFuncAttributes attributes = {};
    cudaError_t error = cudaFuncGetAttributes(&attributes, function);
    if (error != cudaSuccess) return error;
    const auto most = static_cast<int>(shared_memory_limit() - attributes.sharedSizeBytes);
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
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

#define DYNPRUNE_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...)          \
  ::dynprune::launch_cooperative(DYNPRUNE_UNPAREN kernel, grid, block, shared_bytes, stream, \
                                 __VA_ARGS__)

}  // namespace dynprune
#endif
