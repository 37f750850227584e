// SPDX-License-Identifier: Apache-2.0
// The rankings of shared/ranking.h for the samples of a shard: asked by positions in the
// tensors, they hash the ids of all processes' samples.
#pragma once

#include "cpu/selection/bracket.h"
#include "shared/ranking.h"
#include "shared/shard.h"

namespace dynprune {
namespace cpu {
namespace {

// In 32 bits, which is what ids are hashed in, and what vector units multiply.
struct ShardHash {
  IdHash hash;
  uint32_t first, stride;

  ShardHash(uint64_t seed, Stream stream, const Shard& shard)
      : hash(seed, stream),
        first(static_cast<uint32_t>(shard.first)),
        stride(static_cast<uint32_t>(shard.stride)) {}
  uint32_t operator()(int64_t i) const { return hash(first + stride * static_cast<uint32_t>(i)); }
};

template <class Ranking>
struct ShardRanking {
  using Key = typename Ranking::Key;
  Ranking ranking;
  Shard shard;

  uint32_t key(int64_t i, uint64_t seed) const { return ranking.key(i, seed); }
};

template <class T>
struct ShardRanking<WeightRanking<T>> {
  using Key = uint32_t;
  WeightRanking<T> ranking;
  Shard shard;

  uint32_t key(int64_t i, uint64_t seed) const {
    return WeightRanking<T>::key_of(widen(ranking.weights[i]), shard[i], seed);
  }
};

template <>
struct ShardRanking<ExploreRanking> {
  using Key = uint32_t;
  ExploreRanking ranking;
  Shard shard;

  uint32_t key(int64_t i, uint64_t seed) const { return ranking.key(shard[i], seed); }
};

template <class Ranking>
ShardHash tie_hash_of(const ShardRanking<Ranking>& ranking, uint64_t seed) {
  return {seed, Stream::kTie, ranking.shard};
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
