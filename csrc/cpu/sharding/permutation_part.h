// SPDX-License-Identifier: Apache-2.0
// The launcher of csrc/kernels/sharding/permutation_part.h for the CPU.
#pragma once

#include "cpu/parallel.h"
#include "shared/shard.h"

namespace dynprune {
namespace cpu {

void permutation_part(int64_t n, const Shard& part, bool inverse, uint64_t seed, int64_t* out,
                      const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
