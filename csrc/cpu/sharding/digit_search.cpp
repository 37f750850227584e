// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/digit_search.h"

#include <algorithm>
#include <atomic>

#include "cpu/clones.h"
#include "cpu/selection/bitmap.h"
#include "cpu/selection/count_bins.h"

namespace dynprune {
namespace cpu {
namespace {

// Which of `count` <= 64 samples are selected, as bits; by hashes only where whole keys are equal.
DYNPRUNE_CLONES uint64_t select_word(const ShardSelected& selected, int64_t first, int count,
                                     const IdHash& tie_hash, const IdHash& explore_hash) {
  const ShardWords& words = selected.words;
  uint64_t bits = 0, equal = 0;
  if (words.greedy != nullptr) {
    const uint32_t key = static_cast<uint32_t>(*words.greedy >> 32);
    const uint32_t* keys = words.keys + first;
    for (int b = 0; b < count; b++) {
      bits |= static_cast<uint64_t>(keys[b] > key) << b;
      equal |= static_cast<uint64_t>(keys[b] == key) << b;
    }
    for (; equal != 0; equal &= equal - 1) {
      const int b = __builtin_ctzll(equal);
      bits |= static_cast<uint64_t>(words.is_greedy(first + b, tie_hash)) << b;
    }
  }
  if (selected.random != nullptr) {
    const uint32_t least = static_cast<uint32_t>(*selected.random >> 32);
    const IdHash hash = explore_hash;
    const Shard shard = words.shard;
    for (int b = 0; b < count; b++) {
      bits |= static_cast<uint64_t>(hash(shard[first + b]) >= least) << b;
    }
  }
  return bits;
}

}  // namespace

void shard_digit_counts(const ShardWords& words, const SearchState& state, int round, uint64_t seed,
                        int64_t* counts, const Parallel& parallel) {
  const Digit digit = Digit::of_round(round);
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  const uint64_t prefix = state.prefix;
  count_bins(
      state.wanted == 0 ? 0 : words.shard.count, digit.num_bins(),
      [=](int64_t i) { return words.bin(i, digit, prefix, tie_hash, explore_hash); }, counts,
      parallel);
}

int64_t shard_positions(const ShardSelected& selected, uint64_t seed, int64_t k, int64_t* positions,
                        const Parallel& parallel) {
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  const int64_t n = selected.words.shard.count;
  Bitmap chosen(n);
  const int64_t num_words = (n + kWordBits - 1) / kWordBits;
  std::atomic<int64_t> found{0};
  for_each_range(parallel, num_words, num_tasks(parallel, num_words, 1024), [&](int, Range words) {
    for (int64_t w = words.begin; w < words.end; w++) {
      const int64_t first = w * kWordBits;
      const int count = static_cast<int>(std::min<int64_t>(kWordBits, n - first));
      chosen.words()[w] = select_word(selected, first, count, tie_hash, explore_hash);
    }
    found += count_set_bits(chosen.words() + words.begin, words.end - words.begin);
  });
  if (found == k) chosen.list(positions, parallel);
  return found;
}

}  // namespace cpu
}  // namespace dynprune
