// SPDX-License-Identifier: Apache-2.0
// permutation_part: a part of a permutation, at equally spaced positions.
#pragma once

#include "device/cuda_types.h"
#include "shared/shard.h"

namespace dynprune {
namespace cuda {

// out: [part.count], the elements of the permutation of n samples at the positions of the part.
// inverse: the positions of these elements instead. n <= kMaxSamples; the part lies below n.
cudaError_t launch_permutation_part(int64_t n, const Shard& part, bool inverse, Seed seed,
                                    int64_t* out, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
