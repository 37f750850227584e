// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/shard_keys.h"

#include <atomic>

#include "cpu/clones.h"
#include "shared/shard_ranking.h"

namespace dynprune {
namespace cpu {
namespace {

// Returns whether all samples may be ranked.
template <class Ranking>
DYNPRUNE_CLONES bool fill_keys(const ShardRanking<Ranking>& ranking, uint64_t seed, Range range,
                               uint32_t* keys) {
  const ShardRanking<Ranking> local = ranking;
  const typename Ranking::Hash hash(seed);
  bool bad = false;
  for (int64_t i = range.begin; i < range.end; i++) {
    const auto raw = local.load(i);
    if constexpr (Ranking::kChecked) bad |= !local.valid(raw);
    keys[i] = local.key_of(raw, i, hash);
  }
  return !bad;
}

}  // namespace

DataStatus shard_keys(const RankingSpec& spec, const Shard& shard, uint64_t seed, uint32_t* keys,
                      const Parallel& parallel) {
  constexpr int64_t kMinPerTask = 65536;
  return with_ranking<RankingUse::kKeys>(spec, [&](const auto& ranking) {
    using Ranking = std::decay_t<decltype(ranking)>;
    const ShardRanking<Ranking> own{ranking, shard};
    std::atomic<bool> all_valid{true};
    for_each_range(parallel, shard.count, num_tasks(parallel, shard.count, kMinPerTask),
                   [&](int, Range range) {
                     if (!fill_keys(own, seed, range, keys)) all_valid = false;
                   });
    if constexpr (Ranking::kChecked) {
      if (!all_valid) {
        int64_t bad = 0;
        while (own.valid(own.load(bad))) bad++;
        return DataStatus{false, DataError::kWeight, bad, shard[bad]};
      }
    }
    return DataStatus{};
  });
}

}  // namespace cpu
}  // namespace dynprune
