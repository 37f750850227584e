// SPDX-License-Identifier: Apache-2.0
// The rankings of shared/ranking.h for the samples of a shard. They take positions in the shard's
// tensors, and hash the ids that the samples have among those of all processes.
#pragma once

#include "shared/ranking.h"
#include "shared/shard.h"

namespace dynprune {

template <class Ranking>
struct ShardRanking {
  using Key = typename Ranking::Key;
  static constexpr bool kChecked = Ranking::kChecked;
  Ranking ranking;
  Shard shard;

  DYNPRUNE_HD Key key(int64_t i, uint64_t seed) const { return ranking.key(i, seed); }
};

template <class T>
struct ShardRanking<WeightRanking<T>> {
  using Key = typename WeightRanking<T>::Key;
  static constexpr bool kChecked = true;
  WeightRanking<T> ranking;
  Shard shard;

  DYNPRUNE_HD bool valid(int64_t i) const { return ranking.valid(i); }
  DYNPRUNE_HD Key key(int64_t i, uint64_t seed) const {
    return WeightRanking<T>::key_of(widen(ranking.weights[i]), shard[i], seed);
  }
};

template <class T, WeightPower kPower>
struct ShardRanking<ScoreWeightRanking<T, kPower>> {
  using Key = typename ScoreWeightRanking<T, kPower>::Key;
  static constexpr bool kChecked = false;
  ScoreWeightRanking<T, kPower> ranking;
  Shard shard;

  DYNPRUNE_HD Key key(int64_t i, uint64_t seed) const {
    return ScoreWeightRanking<T, kPower>::key_of(widen(ranking.scores[i]), shard[i], seed);
  }
};

template <>
struct ShardRanking<ExploreRanking> {
  using Key = ExploreRanking::Key;
  static constexpr bool kChecked = false;
  ExploreRanking ranking;
  Shard shard;

  DYNPRUNE_HD Key key(int64_t i, uint64_t seed) const { return ranking.key(shard[i], seed); }
};

// In 32 bits, which is what ids are hashed in, and what vector units multiply.
struct ShardHash {
  IdHash hash;
  uint32_t first, stride;

  DYNPRUNE_HD ShardHash(uint64_t seed, Stream stream, const Shard& shard)
      : hash(seed, stream),
        first(static_cast<uint32_t>(shard.first)),
        stride(static_cast<uint32_t>(shard.stride)) {}
  DYNPRUNE_HD uint32_t operator()(int64_t i) const {
    return hash(first + stride * static_cast<uint32_t>(i));
  }
};

template <class Ranking>
DYNPRUNE_HD ShardHash tie_hash_of(const ShardRanking<Ranking>& ranking, uint64_t seed) {
  return {seed, Stream::kTie, ranking.shard};
}

}  // namespace dynprune
