// SPDX-License-Identifier: Apache-2.0
// The launchers of csrc/kernels/sharding/shard_search.h for the CPU: same arguments, same results.
#pragma once

#include "cpu/parallel.h"
#include "shared/selection.h"
#include "shared/error_flags.h"
#include "shared/scalar_types.h"
#include "shared/shard.h"

namespace dynprune {
namespace cpu {

void keys_by_score(const void* scores, ScalarType type, int64_t n, uint32_t* keys,
                   const Parallel& parallel);
void keys_by_ucb(const void* mean, const void* variance, ScalarType type, float c, bool sqrt_bonus,
                 int64_t n, uint32_t* keys, const Parallel& parallel);
void keys_by_ucb1(const float* mean, const void* count, IndexType count_type, float c,
                  float log_step, int64_t n, uint32_t* keys, const Parallel& parallel);
// If a weight is negative or NaN, tells which; its position is that in the shard.
DataStatus keys_by_weight(const void* weights, ScalarType type, const Shard& shard, uint64_t seed,
                          uint32_t* keys, const Parallel& parallel);

void digit_counts(const ShardWords& words, const SearchState& state, int round, uint64_t seed,
                  int64_t* counts, const Parallel& parallel);
// Returns how many samples are selected, and writes them only if that is k.
int64_t list_shard(const ShardSelected& selected, uint64_t seed, int64_t k, int64_t* positions,
                   const Parallel& parallel);
void permutation_part(int64_t n, const Shard& part, bool inverse, uint64_t seed, int64_t* out,
                      const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
