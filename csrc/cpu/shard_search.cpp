// SPDX-License-Identifier: Apache-2.0
#include "cpu/shard_search.h"

#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

#include "cpu/clones.h"
#include "cpu/shuffle.h"
#include "primitives/ranking.h"

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
  const int num_bins = digit.num_bins();
  std::fill_n(counts, num_bins, int64_t{0});
  if (state.wanted == 0) return;
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  const int64_t n = words.shard.count;
  const int tasks = num_tasks(parallel, n, kMinPerTask);
  // One bin more, for the samples that are out: a branch for each would be mispredicted.
  std::vector<std::vector<int64_t>> bins(tasks, std::vector<int64_t>(num_bins + 1));
  for_each_range(parallel, n, tasks, [&](int task, Range range) {
    int64_t* own = bins[task].data() + 1;
    const ShardWords local = words;
    for (int64_t i = range.begin; i < range.end; i++) {
      own[local.bin(i, digit, state.prefix, tie_hash, explore_hash)]++;
    }
  });
  for (const std::vector<int64_t>& own : bins) {
    for (int b = 0; b < num_bins; b++) counts[b] += own[b + 1];
  }
}

void list_shard(const ShardSelected& selected, uint64_t seed, int64_t k, int64_t* positions,
                const Parallel& parallel) {
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  const int64_t n = selected.words.shard.count;
  const int tasks = num_tasks(parallel, n, kMinPerTask);
  std::vector<int64_t> ends(tasks);
  for_each_range(parallel, n, tasks, [&](int task, Range range) {
    int64_t found = 0;
    for (int64_t i = range.begin; i < range.end; i++) {
      found += selected(i, tie_hash, explore_hash);
    }
    ends[task] = found;
  });
  for (int task = 1; task < tasks; task++) ends[task] += ends[task - 1];
  for_each_range(parallel, n, tasks, [&](int task, Range range) {
    int64_t next = task > 0 ? ends[task - 1] : 0;
    for (int64_t i = range.begin; i < range.end && next < k; i++) {
      if (selected(i, tie_hash, explore_hash)) positions[next++] = i;
    }
  });
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
