// SPDX-License-Identifier: Apache-2.0
// One process's part of a selection that many make together in one read of what they rank by: its
// share of a random sample, which brackets the threshold; its samples against that bracket; and the
// search among the few that are left, by the digits of their composite keys.
#pragma once

#include "cpu/parallel.h"
#include "shared/error_flags.h"
#include "shared/scalar_types.h"
#include "shared/shard.h"

namespace dynprune {
namespace cpu {

// The rankings of shared/ranking.h that a shard may have; Python passes them as numbers.
enum class RankingKind { kScore, kUcbVariance, kUcbStd, kUcb1, kWeight, kExplore };
constexpr int64_t kNumRankings = 6;

// What the samples of a shard are ranked by. values: [shard.count], float32 for kUcb1, not read for
// kExplore. second: [shard.count], the variance, of the type of the values, or the count.
struct ShardTask {
  RankingKind kind;
  ScalarType type;
  IndexType count_type;
  const void* values;
  const void* second;
  float c, log_step;
  Shard shard;
  uint64_t seed;
};

// sample: [size] out: the composite keys of `size` draws from the num_samples of all processes, 0
// where another process holds what was drawn. All processes' samples add up to the one that one
// process would take. Not for kExplore. If a weight is negative or NaN, tells which.
DataStatus draw_shard_sample(const ShardTask& task, int64_t num_samples, int64_t size,
                             uint64_t* sample, const Parallel& parallel);

// Samples that may be among the `wanted` greatest of num_samples, by whom they shall be sorted out.
struct Sought {
  int64_t num_samples, wanted;
  const uint64_t* sample;  // [sample_size], of all processes; not for kExplore
  int64_t sample_size;
  const uint64_t* excluded;  // [words of shard.count bits]: what does not take part; or null
};

// What is known of a shard's samples once they were read. Out.
struct SortedOut {
  uint64_t* bits;       // [words of shard.count bits]: which are above the bracket
  uint64_t* words;      // [capacity]: how far above `low` the keys of those in it, candidates, are
  uint32_t* positions;  // [capacity]: where they are in the shard, in no order
  int64_t capacity;
  int64_t num_above;
  int64_t num_candidates;  // more than capacity: not all were found, and no word is written
  uint64_t low, high;      // the bracket, both ends included
};
void sort_out(const ShardTask& task, const Sought& sought, SortedOut* out,
              const Parallel& parallel);

// counts: [digit.num_bins()] out: how many of words [count] fall into each bin.
void count_words(const uint64_t* words, int64_t count, const SearchState& state, Digit digit,
                 int64_t* counts, const Parallel& parallel);

// Sets the bits of the candidates from the threshold on; false if one lies beyond num_bits.
// words, positions: [count].
bool add_candidates(const uint64_t* words, const uint32_t* positions, int64_t count,
                    uint64_t threshold, uint64_t* bits, int64_t num_bits);

// ids: [k] out, ascending: those of the samples whose bits are set. Returns how many there are, and
// writes them only if that is k.
int64_t list_chosen(const uint64_t* bits, const Shard& shard, int64_t k, int64_t* ids,
                    const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
