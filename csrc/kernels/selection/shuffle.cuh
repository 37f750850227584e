// SPDX-License-Identifier: Apache-2.0
// A seeded random order, position by position: position j receives element pi(j) of a keyed
// permutation pi. One coalesced write per id, and what it takes to look an element up.
#pragma once

#include "device/launch.h"
#include "shared/permutation.h"

namespace dynprune {
namespace cuda {

constexpr int kShuffleThreads = 256;

// Elements are the numbers 0, 1, 2, ...
struct Identity {
  __device__ int64_t operator()(uint64_t element) const { return static_cast<int64_t>(element); }
};

// n: how many elements there are; k <= n: how many positions are filled.
template <class Elements>
__global__ void __launch_bounds__(kShuffleThreads)
    shuffle_kernel(Elements elements, int64_t n, int64_t k, Seed seed, Stream stream,
                   int64_t* out) {
  const Permutation permutation(static_cast<uint64_t>(n), seed.get(), stream);
  const int64_t stride = int64_t{gridDim.x} * kShuffleThreads;
  for (int64_t j = int64_t{blockIdx.x} * kShuffleThreads + threadIdx.x; j < k; j += stride) {
    out[j] = elements(permutation(static_cast<uint64_t>(j)));
  }
}

template <class Elements>
cudaError_t launch_shuffle(const Elements& elements, int64_t n, int64_t k, Seed seed, Stream use,
                           int64_t* out, cudaStream_t stream) {
  if (k == 0) return cudaSuccess;
  DYNPRUNE_LAUNCH((shuffle_kernel<Elements>), grid_for(k, kShuffleThreads, 8), kShuffleThreads, 0,
                  stream, elements, n, k, seed, use, out);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace dynprune
