// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/one_read.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/selection/bitmap.h"
#include "cpu/selection/classify.h"
#include "cpu/selection/count_bins.h"
#include "cpu/selection/first_bad_weight.h"
#include "cpu/sharding/shard_ranking.h"

namespace dynprune {
namespace cpu {
namespace {

// Calls body(ranking of the shard's samples).
template <class Body>
void dispatch_ranking(const ShardTask& task, const Body& body) {
  const auto call = [&](auto ranking) {
    body(ShardRanking<decltype(ranking)>{ranking, task.shard});
  };
  if (task.kind == RankingKind::kExplore) return call(ExploreRanking{});
  if (task.kind == RankingKind::kUcb1) {
    const auto* mean = static_cast<const float*>(task.values);
    if (task.count_type == IndexType::kInt32) {
      return call(Ucb1Ranking<int32_t>{mean, static_cast<const int32_t*>(task.second), task.c,
                                       task.log_step});
    }
    return call(Ucb1Ranking<int64_t>{mean, static_cast<const int64_t*>(task.second), task.c,
                                     task.log_step});
  }
  dispatch(task.type, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (!std::is_same<T, double>::value) {
      const T* values = static_cast<const T*>(task.values);
      if (task.kind == RankingKind::kScore) {
        call(ScoreRanking<T>{values});
      } else if (task.kind == RankingKind::kWeight) {
        call(WeightRanking<T>{values});
      } else {
        call(UcbRanking<T>{values, static_cast<const T*>(task.second), task.c,
                           task.kind == RankingKind::kUcbStd});
      }
    }
  });
}

// Of the draws [range), those that fall on the shard.
template <class Ranking>
void draw_own(const Ranking& ranking, const ShardTask& task, uint64_t num_samples, Range range,
              uint64_t* sample) {
  constexpr int kDrawBlock = 512;
  const IdHash draw_hash(task.seed, Stream::kSample);
  const auto tie_hash = tie_hash_of(ranking, task.seed);
  const Shard shard = task.shard;
  uint32_t ids[kDrawBlock], own[kDrawBlock], positions[kDrawBlock], ties[kDrawBlock],
      keys[kDrawBlock];
  for (int64_t begin = range.begin; begin < range.end; begin += kDrawBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kDrawBlock, range.end - begin));
    draw_ids(draw_hash, begin, count, num_samples, ids);
    int found = 0;
    for (int i = 0; i < count; i++) {
      const int64_t distance = ids[i] - shard.first;
      if (distance < 0 || distance % shard.stride != 0) continue;
      if (distance / shard.stride >= shard.count) continue;
      own[found] = static_cast<uint32_t>(i);
      positions[found++] = static_cast<uint32_t>(distance / shard.stride);
    }
    hash_listed_ids(tie_hash, positions, found, ties);
    build_listed_keys(ranking, positions, found, task.seed, keys);
    std::fill_n(sample + begin, count, uint64_t{0});
    for (int i = 0; i < found; i++) sample[begin + own[i]] = compose(keys[i], ties[i]);
  }
}

Bracket<uint32_t> bracket_of(const ShardTask& task, const Sought& sought) {
  if (task.kind == RankingKind::kExplore) {
    const HashBracket hashes(sought.num_samples, sought.wanted, 0);
    return {compose(hashes.low, 0), compose(hashes.high, ~uint32_t{0}), hashes.candidate_share,
            false};
  }
  std::vector<uint64_t> sample(sought.sample, sought.sample + sought.sample_size);
  return bracket_by_sample<uint32_t>(sample.data(), sought.sample_size, sought.num_samples,
                                     sought.wanted);
}

}  // namespace

DataStatus draw_shard_sample(const ShardTask& task, int64_t num_samples, int64_t size,
                             uint64_t* sample, const Parallel& parallel) {
  if (task.kind == RankingKind::kWeight) {
    const int64_t count = task.shard.count;
    const int64_t bad = dispatch(task.type, [&](auto tag) {
      return first_bad_weight(static_cast<const decltype(tag)*>(task.values), count, parallel);
    });
    if (bad < count) return DataStatus{false, DataError::kWeight, bad, task.shard[bad]};
  }
  dispatch_ranking(task, [&](const auto& ranking) {
    for_each_range(parallel, size, num_tasks(parallel, size, 8192), [&](int, Range range) {
      draw_own(ranking, task, static_cast<uint64_t>(num_samples), range, sample);
    });
  });
  return DataStatus{};
}

void sort_out(const ShardTask& task, const Sought& sought, SortedOut* out,
              const Parallel& parallel) {
  const Bracket<uint32_t> bracket = bracket_of(task, sought);
  out->low = bracket.low;
  out->high = bracket.high;
  out->num_above = out->num_candidates = 0;
  dispatch_ranking(task, [&](const auto& ranking) {
    const std::vector<Found<uint32_t>> found =
        classify(ranking, task.shard.count, task.seed, bracket, out->capacity, sought.excluded,
                 out->bits, parallel);
    for (const Found<uint32_t>& f : found) {
      out->num_above += f.num_in;
      out->num_candidates += f.num_candidates;
    }
    if (out->num_candidates > out->capacity) return;
    uint64_t* words = out->words;
    uint32_t* positions = out->positions;
    for (const Found<uint32_t>& f : found) {
      words = std::transform(f.candidates.get(), f.candidates.get() + f.num_candidates, words,
                             [&](uint64_t word) { return word - bracket.low; });
      positions = std::copy_n(f.ids.get(), f.num_candidates, positions);
    }
  });
}

void count_words(const uint64_t* words, int64_t count, const SearchState& state, Digit digit,
                 int64_t* counts, const Parallel& parallel) {
  const uint64_t prefix = state.prefix;
  count_bins(
      state.wanted == 0 ? 0 : count, digit.num_bins(),
      [=](int64_t i) { return digit.follows(words[i], prefix) ? digit.bin(words[i]) : -1; }, counts,
      parallel);
}

bool add_candidates(const uint64_t* words, const uint32_t* positions, int64_t count,
                    uint64_t threshold, uint64_t* bits, int64_t num_bits) {
  for (int64_t i = 0; i < count; i++) {
    const int64_t position = positions[i];
    if (position >= num_bits) return false;
    bits[position / kWordBits] |= static_cast<uint64_t>(words[i] >= threshold)
                                  << position % kWordBits;
  }
  return true;
}

int64_t list_chosen(const uint64_t* bits, const Shard& shard, int64_t k, int64_t* ids,
                    const Parallel& parallel) {
  const int64_t num_words = (shard.count + kWordBits - 1) / kWordBits;
  const int64_t found = count_set_bits(bits, num_words);
  if (found != k) return found;
  const bool dense = shard.stride == 1;
  list_bits(bits, num_words, dense ? shard.first : 0, ids, parallel);
  if (!dense) {
    for_each_range(parallel, k, num_tasks(parallel, k, 65536), [&](int, Range range) {
      for (int64_t i = range.begin; i < range.end; i++) ids[i] = shard[ids[i]];
    });
  }
  return found;
}

}  // namespace cpu
}  // namespace dynprune
