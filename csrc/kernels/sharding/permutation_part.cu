// SPDX-License-Identifier: Apache-2.0
#include "kernels/sharding/permutation_part.h"

#include "kernels/sharding/fill.cuh"
#include "shared/permutation.h"

namespace dynprune {
namespace cuda {
namespace {

template <bool kInverse>
struct PermutationAt {
  uint64_t n;
  Shard part;
  Seed seed;

  __device__ int64_t operator()(int64_t i) const {
    const Permutation permutation(n, seed.get(), Stream::kPermutation);
    const auto x = static_cast<uint64_t>(part[i]);
    return static_cast<int64_t>(kInverse ? permutation.position_of(x) : permutation(x));
  }
};

}  // namespace

cudaError_t launch_permutation_part(int64_t n, const Shard& part, bool inverse, Seed seed,
                                    int64_t* out, cudaStream_t stream) {
  const auto size = static_cast<uint64_t>(n);
  return inverse ? launch_fill(PermutationAt<true>{size, part, seed}, part.count, out, stream)
                 : launch_fill(PermutationAt<false>{size, part, seed}, part.count, out, stream);
}

}  // namespace cuda
}  // namespace dynprune
