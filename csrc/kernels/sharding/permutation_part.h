// SPDX-License-Identifier: Apache-2.0
// permutation_part: the positions of a permutation that one process walks.
#pragma once

#include "device/cuda_types.h"
#include "shared/shard.h"

namespace dynprune {
namespace cuda {

// out: [part.count]: the elements of `permutation` (see functional.py) at the positions of the
// part; inverse: the positions of its elements. n <= kMaxSamples, all of the part below n.
cudaError_t launch_permutation_part(int64_t n, const Shard& part, bool inverse, Seed seed,
                                    int64_t* out, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
