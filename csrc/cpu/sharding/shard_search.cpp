// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/shard_search.h"

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

#include "cpu/selection/bitmap.h"
#include "cpu/clones.h"
#include "cpu/selection/count_bins.h"
#include "cpu/selection/shuffle.h"
#include "shared/ranking.h"

namespace dynprune {
namespace cpu {
namespace {

constexpr int64_t kMinPerTask = 65536;

template <class Ranking>
DYNPRUNE_CLONES void fill_range(const Ranking& ranking, Range range, uint32_t* keys) {
  const Ranking local = ranking;
  for (int64_t i = range.begin; i < range.end; i++) keys[i] = local.key(i, 0);
}

template <class Ranking>
void fill_keys(const Ranking& ranking, int64_t n, uint32_t* keys, const Parallel& parallel) {
  for_each_range(parallel, n, num_tasks(parallel, n, kMinPerTask),
                 [&](int, Range range) { fill_range(ranking, range, keys); });
}

// Returns whether all weights are valid.
template <class T>
DYNPRUNE_CLONES bool fill_weight_keys(const T* weights, const Shard& shard, uint64_t seed,
                                      Range range, uint32_t* keys) {
  const Shard local = shard;
  bool bad = false;
  for (int64_t i = range.begin; i < range.end; i++) {
    const float w = widen(weights[i]);
    bad |= !(w >= 0);
    keys[i] = WeightRanking<T>::key_of(w, local[i], seed);
  }
  return !bad;
}

// Which of `count` <= 64 samples are selected, as bits; whole keys first, since hashes take longer.
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

void keys_by_score(const void* scores, ScalarType type, int64_t n, uint32_t* keys,
                   const Parallel& parallel) {
  dispatch(type, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (!std::is_same<T, double>::value) {
      fill_keys(ScoreRanking<T>{static_cast<const T*>(scores)}, n, keys, parallel);
    }
  });
}

void keys_by_ucb(const void* mean, const void* variance, ScalarType type, float c, bool sqrt_bonus,
                 int64_t n, uint32_t* keys, const Parallel& parallel) {
  dispatch(type, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (!std::is_same<T, double>::value) {
      const UcbRanking<T> ranking{static_cast<const T*>(mean), static_cast<const T*>(variance), c,
                                  sqrt_bonus};
      fill_keys(ranking, n, keys, parallel);
    }
  });
}

void keys_by_ucb1(const float* mean, const void* count, IndexType count_type, float c,
                  float log_step, int64_t n, uint32_t* keys, const Parallel& parallel) {
  const auto fill = [&](auto tag) {
    using Count = decltype(tag);
    const Ucb1Ranking<Count> ranking{mean, static_cast<const Count*>(count), c, log_step};
    fill_keys(ranking, n, keys, parallel);
  };
  if (count_type == IndexType::kInt32) {
    fill(int32_t{});
  } else {
    fill(int64_t{});
  }
}

DataStatus keys_by_weight(const void* weights, ScalarType type, const Shard& shard, uint64_t seed,
                          uint32_t* keys, const Parallel& parallel) {
  std::atomic<bool> all_valid{true};
  int64_t bad = shard.count;
  dispatch(type, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (!std::is_same<T, double>::value) {
      const T* values = static_cast<const T*>(weights);
      const int tasks = num_tasks(parallel, shard.count, kMinPerTask);
      for_each_range(parallel, shard.count, tasks, [&](int, Range range) {
        if (!fill_weight_keys(values, shard, seed, range, keys)) all_valid = false;
      });
      if (all_valid) return;
      for (bad = 0; widen(values[bad]) >= 0;) bad++;
    }
  });
  if (all_valid) return DataStatus{};
  return DataStatus{false, DataError::kWeight, bad, shard[bad]};
}

void digit_counts(const ShardWords& words, const SearchState& state, int round, uint64_t seed,
                  int64_t* counts, const Parallel& parallel) {
  const Digit digit = Digit::of_round(round);
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  const uint64_t prefix = state.prefix;
  count_bins(
      state.wanted == 0 ? 0 : words.shard.count, digit.num_bins(),
      [=](int64_t i) { return words.bin(i, digit, prefix, tie_hash, explore_hash); }, counts,
      parallel);
}

int64_t list_shard(const ShardSelected& selected, uint64_t seed, int64_t k, int64_t* positions,
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

void permutation_part(int64_t n, const Shard& part, bool inverse, uint64_t seed, int64_t* out,
                      const Parallel& parallel) {
  const auto size = static_cast<uint64_t>(n);
  const Permutation permutation(size, seed, Stream::kPermutation);
  for_each_range(parallel, part.count, num_tasks(parallel, part.count, 8192), [&](int, Range r) {
    uint32_t x[kPermuteBlock];
    for (int64_t begin = r.begin; begin < r.end; begin += kPermuteBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kPermuteBlock, r.end - begin));
      for (int i = 0; i < count; i++) x[i] = static_cast<uint32_t>(part[begin + i]);
      if (inverse) {
        permute_block<true>(permutation, size, x, count);
      } else {
        permute_block<false>(permutation, size, x, count);
      }
      for (int i = 0; i < count; i++) out[begin + i] = x[i];
    }
  });
}

}  // namespace cpu
}  // namespace dynprune
