// SPDX-License-Identifier: Apache-2.0
#include "kernels/select_uniform.h"

#include "kernels/radix_select.cuh"

namespace dynprune {
namespace cuda {
namespace {

// An id is in the subset if its position in the permutation is below k.
struct AmongFirst {
  Seed seed;
  int64_t n, k;

  struct Keeps {
    Permutation permutation;
    uint64_t k;
    __device__ bool operator()(int64_t id) const {
      return permutation.position_of(static_cast<uint64_t>(id)) < k;
    }
  };
  __device__ Keeps begin() const {
    return {Permutation(static_cast<uint64_t>(n), seed.get(), Stream::kPermutation),
            static_cast<uint64_t>(k)};
  }
};

}  // namespace

size_t select_uniform_workspace_bytes(const Selection& s) {
  return s.order == Order::kRandom ? 0 : CompactState::bytes(s.num_samples);
}

cudaError_t launch_select_uniform(const Selection& s, void* workspace, cudaStream_t stream) {
  if (s.k() == 0) return cudaSuccess;
  if (s.order == Order::kRandom) {
    return launch_shuffle(nullptr, s.num_samples, s.k(), s.seed, Stream::kPermutation, s.ids,
                          stream);
  }
  const cudaError_t error =
      cudaMemsetAsync(workspace, 0, select_uniform_workspace_bytes(s), stream);
  if (error != cudaSuccess) return error;
  return launch_compact(AmongFirst{s.seed, s.num_samples, s.k()}, s.num_samples,
                        static_cast<CompactState*>(workspace), s.ids, stream);
}

}  // namespace cuda
}  // namespace dynprune
