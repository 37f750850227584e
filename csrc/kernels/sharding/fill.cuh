// SPDX-License-Identifier: Apache-2.0
// A loop that computes one number per sample of a shard.
#pragma once

#include "device/launch.h"

namespace dynprune {
namespace cuda {

constexpr int kFillThreads = 256;

// out[i] = f(i)
template <class F, class Out>
__global__ void __launch_bounds__(kFillThreads) fill_kernel(F f, int64_t n, Out* out) {
  const int64_t stride = int64_t{gridDim.x} * kFillThreads;
  for (int64_t i = int64_t{blockIdx.x} * kFillThreads + threadIdx.x; i < n; i += stride) {
    out[i] = f(i);
  }
}

template <class F, class Out>
cudaError_t launch_fill(const F& f, int64_t n, Out* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  DYNPRUNE_LAUNCH((fill_kernel<F, Out>), grid_for(n, kFillThreads, 8), kFillThreads, 0, stream, f,
                  n, out);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace dynprune
