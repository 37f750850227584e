// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/bracket_search.h"

#include <algorithm>
#include <vector>

#include "cpu/selection/bitmap.h"
#include "cpu/selection/classify.h"
#include "cpu/selection/count_bins.h"
#include "cpu/selection/first_bad_weight.h"
#include "shared/shard_ranking.h"

namespace dynprune {
namespace cpu {
namespace {

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

Bracket<uint32_t> bracket_of(const ShardTask& task, const SearchRange& range) {
  if (task.ranking.kind == RankingKind::kExplore) {
    return bracket_of_hashes(range.num_samples, range.wanted);
  }
  std::vector<uint64_t> sample(range.sample, range.sample + range.sample_size);
  return bracket_by_sample<uint32_t>(sample.data(), range.sample_size, range.num_samples,
                                     range.wanted);
}

}  // namespace

DataStatus shard_sample(const ShardTask& task, int64_t num_samples, int64_t size, uint64_t* sample,
                        const Parallel& parallel) {
  return with_ranking<RankingUse::kSearch>(task.ranking, [&](const auto& ranking) {
    const int64_t count = task.shard.count;
    const int64_t bad = first_bad_weight(ranking, count, parallel);
    if (bad < count) return DataStatus{false, DataError::kWeight, bad, task.shard[bad]};
    const ShardRanking<std::decay_t<decltype(ranking)>> own{ranking, task.shard};
    for_each_range(parallel, size, num_tasks(parallel, size, 8192), [&](int, Range range) {
      draw_own(own, task, static_cast<uint64_t>(num_samples), range, sample);
    });
    return DataStatus{};
  });
}

void shard_bracket(const ShardTask& task, const SearchRange& range, Bracketed* out,
                   const Parallel& parallel) {
  const Bracket<uint32_t> bracket = bracket_of(task, range);
  out->low = bracket.low;
  out->high = bracket.high;
  out->num_above = out->num_candidates = 0;
  const auto found = with_ranking<RankingUse::kSearch>(task.ranking, [&](const auto& ranking) {
    const ShardRanking<std::decay_t<decltype(ranking)>> own{ranking, task.shard};
    return classify(own, task.shard.count, task.seed, bracket, out->capacity, range.excluded,
                    out->bits, parallel);
  });
  for (const Classified<uint32_t>& f : found) {
    out->num_above += f.num_in;
    out->num_candidates += f.num_candidates;
  }
  if (out->num_candidates > out->capacity) return;
  uint64_t* words = out->words;
  uint32_t* positions = out->positions;
  for (const Classified<uint32_t>& f : found) {
    words = std::transform(f.candidates.get(), f.candidates.get() + f.num_candidates, words,
                           [&](uint64_t word) { return word - bracket.low; });
    positions = std::copy_n(f.ids.get(), f.num_candidates, positions);
  }
}

void shard_candidate_counts(const uint64_t* words, int64_t count, const SearchState& state,
                            Digit digit, int64_t* counts, const Parallel& parallel) {
  const uint64_t prefix = state.prefix;
  count_bins(
      state.wanted == 0 ? 0 : count, digit.num_bins(),
      [=](int64_t i) { return digit.follows(words[i], prefix) ? digit.bin(words[i]) : -1; }, counts,
      parallel);
}

bool shard_add_candidates(const uint64_t* words, const uint32_t* positions, int64_t count,
                          uint64_t threshold, uint64_t* bits, int64_t num_bits) {
  for (int64_t i = 0; i < count; i++) {
    const int64_t position = positions[i];
    if (position >= num_bits) return false;
    bits[position / kWordBits] |= static_cast<uint64_t>(words[i] >= threshold)
                                  << position % kWordBits;
  }
  return true;
}

int64_t shard_list(const uint64_t* bits, const Shard& shard, int64_t k, int64_t* ids,
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
