// SPDX-License-Identifier: Apache-2.0
#include "kernels/sharding/shard_keys.h"

#include "device/device_errors.h"
#include "kernels/sharding/fill.cuh"
#include "shared/shard_ranking.h"

namespace dynprune {
namespace cuda {
namespace {

template <class Ranking>
struct KeyOf {
  ShardRanking<Ranking> ranking;
  Seed seed;
  ErrorRecord* errors;

  __device__ uint32_t operator()(int64_t i) const {
    const uint32_t key = ranking.key(i, seed.get());
    if constexpr (Ranking::kChecked) {  // what is invalid has the smallest key
      if (key == 0 && !ranking.valid(i)) {
        record_error(errors, DataError::kWeight, ranking.shard[i]);
      }
    }
    return key;
  }
};

}  // namespace

cudaError_t launch_shard_keys(const RankingSpec& spec, const Shard& shard, Seed seed,
                              uint32_t* keys, ErrorRecord* errors, cudaStream_t stream) {
  if (!is_supported(RankingUse::kKeys, spec.kind, spec.type)) return cudaErrorInvalidValue;
  return with_ranking<RankingUse::kKeys>(spec, [&](const auto& ranking) {
    using Ranking = std::decay_t<decltype(ranking)>;
    const KeyOf<Ranking> key{{ranking, shard}, seed, errors};
    return launch_fill(key, shard.count, keys, stream);
  });
}

}  // namespace cuda
}  // namespace dynprune
