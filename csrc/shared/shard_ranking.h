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
  using Raw = typename Ranking::Raw;
  using Hash = typename Ranking::Hash;
  static constexpr int kLoads = Ranking::kLoads;
  static constexpr bool kChecked = Ranking::kChecked;
  Ranking ranking;
  Shard shard;

  DYNPRUNE_HD Raw load(int64_t i) const { return ranking.load(i); }
  DYNPRUNE_HD static bool valid(Raw raw) { return Ranking::valid(raw); }
  DYNPRUNE_HD Key key_of(Raw raw, int64_t i, const Hash& hash) const {
    return ranking.key_of(raw, shard[i], hash);
  }
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
