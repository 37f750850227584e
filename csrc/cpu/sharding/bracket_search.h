// SPDX-License-Identifier: Apache-2.0
// One process's part of a selection that many make together, in one read of the values. A random
// sample of all processes brackets the threshold. Each process compares its samples with the
// bracket. All search among the few candidates in it, by the digits of their composite keys.
#pragma once

#include "cpu/parallel.h"
#include "shared/error_flags.h"
#include "shared/ranking_spec.h"
#include "shared/shard.h"

namespace dynprune {
namespace cpu {

// What the samples of a shard are ranked by. The ranking must be supported for RankingUse::kSearch;
// its tensors have shard.count elements.
struct ShardTask {
  RankingSpec ranking;
  Shard shard;
  uint64_t seed;
};

// sample: [size] out, the composite keys of `size` draws from the num_samples of all processes, 0
// where another process holds what was drawn. The sum over all processes is the sample that a
// single process would draw. If a weight is negative or NaN, returns which.
DataStatus shard_sample(const ShardTask& task, int64_t num_samples, int64_t size, uint64_t* sample,
                        const Parallel& parallel);

// The samples of all processes that take part in a search, and how many are wanted.
struct SearchRange {
  int64_t num_samples, wanted;  // the `wanted` greatest of num_samples
  const uint64_t* sample;       // [sample_size], of all processes; not read for kExplore
  int64_t sample_size;
  const uint64_t* excluded;  // [words of shard.count bits]: what does not take part; or null
};

// The samples of a shard, compared with the bracket. Out.
struct Bracketed {
  uint64_t* bits;       // [words of shard.count bits]: which are above the bracket
  uint64_t* words;      // [capacity]: how far above `low` the composite keys of candidates are
  uint32_t* positions;  // [capacity]: where the candidates are in the shard, in no order
  int64_t capacity;
  int64_t num_above;
  int64_t num_candidates;  // more than capacity: not all were found, and no word is written
  uint64_t low, high;      // the bracket, both ends included
};
void shard_bracket(const ShardTask& task, const SearchRange& range, Bracketed* out,
                   const Parallel& parallel);

// counts: [digit.num_bins()] out: how many of words [count] fall into each bin.
void shard_candidate_counts(const uint64_t* words, int64_t count, const SearchState& state,
                            Digit digit, int64_t* counts, const Parallel& parallel);

// Sets the bits of the candidates from the threshold on; false if one lies beyond num_bits.
// words, positions: [count].
bool shard_add_candidates(const uint64_t* words, const uint32_t* positions, int64_t count,
                          uint64_t threshold, uint64_t* bits, int64_t num_bits);

// ids: [k] out, ascending: those of the samples whose bits are set. Returns how many there are, and
// writes them only if that is k.
int64_t shard_list(const uint64_t* bits, const Shard& shard, int64_t k, int64_t* ids,
                   const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
