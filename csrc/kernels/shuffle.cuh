// SPDX-License-Identifier: Apache-2.0
// The seeded random order of a list: position j receives element pi(j) of a keyed permutation pi.
// One random 8-byte read and one coalesced write per id; with no list, the list is 0, 1, 2, ... and
// nothing is read.
#pragma once

#include "primitives/launch.h"
#include "primitives/permutation.h"

namespace dynprune {
namespace cuda {

constexpr int kShuffleThreads = 256;

// n: the length of the list; k <= n: how many positions are filled.
static __global__ void __launch_bounds__(kShuffleThreads)
    shuffle_kernel(const int64_t* list, int64_t n, int64_t k, Seed seed, Stream stream,
                   int64_t* out) {
  const Permutation permutation(static_cast<uint64_t>(n), seed.get(), stream);
  const int64_t stride = int64_t{gridDim.x} * kShuffleThreads;
  for (int64_t j = int64_t{blockIdx.x} * kShuffleThreads + threadIdx.x; j < k; j += stride) {
    const int64_t element = static_cast<int64_t>(permutation(static_cast<uint64_t>(j)));
    out[j] = list != nullptr ? list[element] : element;
  }
}

inline cudaError_t launch_shuffle(const int64_t* list, int64_t n, int64_t k, Seed seed, Stream use,
                                  int64_t* out, cudaStream_t stream) {
  if (k == 0) return cudaSuccess;
  const int64_t blocks = (k + kShuffleThreads - 1) / kShuffleThreads;
  const int64_t resident = int64_t{multiprocessor_count()} * 8;
  const unsigned grid = static_cast<unsigned>(blocks < resident ? blocks : resident);
  DYNPRUNE_LAUNCH((shuffle_kernel), grid, kShuffleThreads, 0, stream, list, n, k, seed, use, out);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace dynprune
