// SPDX-License-Identifier: Apache-2.0
// The launchers of csrc/kernels/sharding/digit_search.h for the CPU: same results.
#pragma once

#include "cpu/parallel.h"
#include "shared/shard.h"

namespace dynprune {
namespace cpu {

void shard_digit_counts(const ShardWords& words, const SearchState& state, int round, uint64_t seed,
                        int64_t* counts, const Parallel& parallel);
// Returns how many samples are selected, and writes them only if that is k.
int64_t shard_positions(const ShardSelected& selected, uint64_t seed, int64_t k, int64_t* positions,
                        const Parallel& parallel);
}  // namespace cpu
}  // namespace dynprune
