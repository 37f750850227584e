// SPDX-License-Identifier: Apache-2.0
#include "kernels/sharding/shard_keys.h"

#include "device/device_errors.h"
#include "kernels/selection/load_batch.cuh"
#include "shared/shard_ranking.h"

namespace dynprune {
namespace cuda {
namespace {

constexpr int kKeyThreads = 256;
constexpr int kKeyBlocksPerSm = 4;  // so that ptxas allows the registers of a batch

// Samples that a thread loads before it computes their keys.
template <class Ranking>
constexpr int kKeyBatch = kLoadsInFlight / Ranking::kLoads;

template <class Ranking>
__global__ void __launch_bounds__(kKeyThreads, kKeyBlocksPerSm)
    shard_keys_kernel(ShardRanking<Ranking> ranking, Seed seed, uint32_t* keys,
                      ErrorRecord* errors) {
  constexpr int64_t kBlockBatch = kKeyThreads * kKeyBatch<Ranking>;
  const int64_t n = ranking.shard.count;
  const typename Ranking::Hash hash(seed.get());
  for (int64_t begin = blockIdx.x * kBlockBatch; begin < n; begin += gridDim.x * kBlockBatch) {
    const auto count = static_cast<int>(n - begin < kBlockBatch ? n - begin : kBlockBatch);
    typename Ranking::Raw raw[kKeyBatch<Ranking>];
    load_batch<kKeyThreads>(ranking, begin, count, raw);
#pragma unroll
    for (int j = 0; j < kKeyBatch<Ranking>; j++) {
      const int place = place_in_batch<kKeyThreads>(j);
      if (place >= count) continue;
      if constexpr (Ranking::kChecked) {
        if (!Ranking::valid(raw[j])) {
          record_error(errors, DataError::kWeight, ranking.shard[begin + place]);
        }
      }
      keys[begin + place] = ranking.key_of(raw[j], begin + place, hash);
    }
  }
}

}  // namespace

cudaError_t launch_shard_keys(const RankingSpec& spec, const Shard& shard, Seed seed,
                              uint32_t* keys, ErrorRecord* errors, cudaStream_t stream) {
  if (!is_supported(RankingUse::kKeys, spec.kind, spec.type)) return cudaErrorInvalidValue;
  return with_ranking<RankingUse::kKeys>(spec, [&](const auto& ranking) {
    using Ranking = std::decay_t<decltype(ranking)>;
    if (shard.count == 0) return cudaSuccess;
    const int64_t threads = (shard.count + kKeyBatch<Ranking> - 1) / kKeyBatch<Ranking>;
    DYNPRUNE_LAUNCH((shard_keys_kernel<Ranking>), grid_for(threads, kKeyThreads, 8), kKeyThreads, 0,
                    stream, ShardRanking<Ranking>{ranking, shard}, seed, keys, errors);
    return cudaGetLastError();
  });
}

}  // namespace cuda
}  // namespace dynprune
