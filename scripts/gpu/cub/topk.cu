// SPDX-License-Identifier: Apache-2.0
// CUB's DeviceTopK as a C function, for the benchmarks: the k greatest of n floats with their
// positions, in any order. CUB has it from CUDA 13.1 on; the headers come from the wheel
// nvidia-cuda-cccl.
#include <cuda_runtime.h>
#include <thrust/iterator/counting_iterator.h>

#include <cstdint>
#include <cub/device/device_topk.cuh>
#include <cuda/iterator>

// Without a workspace it only tells how many bytes it wants.
extern "C" cudaError_t cub_topk(void* workspace,  // [*num_bytes]
                                size_t* num_bytes,
                                const float* keys,  // [n]
                                float* greatest,    // [k]
                                int64_t* ids,       // [k]
                                int64_t n, int64_t k, cudaStream_t stream) {
  auto requirements = cuda::execution::require(cuda::execution::determinism::not_guaranteed,
                                               cuda::execution::output_ordering::unsorted);
  auto environment = cuda::std::execution::env{cuda::stream_ref{stream}, requirements};
  return cub::DeviceTopK::MaxPairs(workspace, *num_bytes, keys, greatest,
                                   thrust::counting_iterator<int64_t>(0), ids, n, k, environment);
}
