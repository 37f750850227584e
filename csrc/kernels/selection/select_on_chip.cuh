// SPDX-License-Identifier: Apache-2.0
// Selection from as many samples as the multiprocessors' shared memories hold (some 7 million
// float32 scores on the largest GPUs): one launch, in which every block keeps the keys of its share
// on chip. The scores are read once, the ids written once.
#pragma once

#include "device/device_errors.h"
#include "kernels/selection/select_task.cuh"
#include "shared/permutation.h"

namespace dynprune {
namespace cuda {

constexpr int kOnChipThreads = kSearchThreads;
constexpr int kOnChipWarps = kOnChipThreads / kWarpSize;

// Contiguous shares of the samples, one for every block, in it one for every warp.
struct OnChipShares {
  int64_t num_samples, per_warp;  // per_warp: a multiple of 32

  static OnChipShares of(int64_t n, unsigned blocks) {
    const int64_t warps = int64_t{blocks} * kOnChipWarps;
    return {n, ((n + warps - 1) / warps + kWarpSize - 1) / kWarpSize * kWarpSize};
  }
  DYNPRUNE_HD int64_t per_block() const { return per_warp * kOnChipWarps; }
};

template <class Ranking>
__global__ void __launch_bounds__(kOnChipThreads, 1)
    select_on_chip_kernel(SelectTask<Ranking> task, OnChipShares shares, OnChipState* state,
                          bool random_order, int64_t* ids) {
  using Key = typename Ranking::Key;
  using Composite = composite_t<Key>;
  DYNPRUNE_SHARED(SearchShared, shared, );
  DYNPRUNE_SHARED(unsigned, warp_counts, [kOnChipWarps]);
  DYNPRUNE_SHARED(unsigned long long, base, );
  DYNPRUNE_DYNAMIC_SHARED(Key, keys);
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int64_t n = task.num_samples;
  const uint64_t seed = task.seed.get();
  const bool has_greedy = task.has_greedy(), has_random = task.has_random();
  const int64_t first = shares.per_block() * blockIdx.x;  // of the block
  const int64_t end = first + shares.per_block() < n ? first + shares.per_block() : n;

  for (int b = blockIdx.x * kOnChipThreads + thread; b < 3 * kNumBins;
       b += static_cast<int>(gridDim.x) * kOnChipThreads) {
    state->merged.bins[b / kNumBins][b % kNumBins] = 0;
  }
  if (has_greedy) {
    for (int64_t id = first + thread; id < end; id += kOnChipThreads) {
      const Key key = task.ranking.key(id, seed);
      if constexpr (Ranking::kChecked) {
        if (key == 0 && !task.ranking.valid(id)) record_error(task.errors, DataError::kWeight, id);
      }
      keys[id - first] = key;
    }
  }
  grid_sync();

  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  DigitSearch search(&shared, &state->merged);
  // Calls f(id, valid) for the block's share, whole warps together.
  const auto each = [&](const auto& f) {
#pragma unroll 1
    for (int64_t begin = first; begin < end; begin += kOnChipThreads) {
      f(begin + thread, begin + thread < end);
    }
  };
  Threshold<Key> greedy = {0, 0};
  if (has_greedy) {
    auto found = Interval<Composite>::whole();
    search.narrow(&found, static_cast<unsigned long long>(task.num_greedy), 0,
                  [&](const auto& visit) {
                    each([&](int64_t id, bool valid) {
                      visit(valid, valid ? compose(keys[id - first], tie_hash(id)) : Composite{0});
                    });
                  });
    greedy = {static_cast<Key>(found.low >> 32), static_cast<uint32_t>(found.low)};
  }
  uint32_t random = 0;
  if (has_random) {
    auto found = Interval<uint32_t>::whole();
    search.narrow(
        &found, static_cast<unsigned long long>(task.num_random), 0, [&](const auto& visit) {
          each([&](int64_t id, bool valid) {
            const bool taken = valid && has_greedy && greedy.admits(keys[id - first], id, tie_hash);
            visit(valid && !taken, explore_hash(id));
          });
        });
    random = found.low;
  }

  // Ids ascend with (block, warp, round, lane): count, then write behind what comes before.
  const Selected<Ranking> selected(has_greedy, has_random, seed, greedy, random);
  const int64_t warp_first = first + shares.per_warp * warp;
  const auto keeps = [&](int64_t id) {
    return id < end && selected(has_greedy ? keys[id - first] : 0, id);
  };
  unsigned count = 0;
  for (int64_t begin = warp_first; begin < warp_first + shares.per_warp && begin < end;
       begin += kWarpSize) {
    count += __popc(__ballot_sync(kFullWarp, keeps(begin + lane)));
  }
  if (lane == 0) warp_counts[warp] = count;
  __syncthreads();
  if (thread == 0) {
    unsigned sum = 0;
    for (int w = 0; w < kOnChipWarps; w++) {
      const unsigned own = warp_counts[w];
      warp_counts[w] = sum;
      sum += own;
    }
    state->block_counts[blockIdx.x] = sum;
  }
  grid_sync();
  if (warp == 0) {
    unsigned long long before = 0;
    for (unsigned b = lane; b < blockIdx.x; b += kWarpSize) before += state->block_counts[b];
    before = warp_inclusive_sum(before, lane);
    if (lane == kWarpSize - 1) base = before;
  }
  __syncthreads();
  unsigned long long rank = base + warp_counts[warp];
  const Permutation order(static_cast<uint64_t>(task.num_greedy + task.num_random), seed,
                          Stream::kOrder);
  for (int64_t begin = warp_first; begin < warp_first + shares.per_warp && begin < end;
       begin += kWarpSize) {
    const bool keep = keeps(begin + lane);
    const unsigned ballot = __ballot_sync(kFullWarp, keep);
    if (keep) {
      const unsigned long long own = rank + __popc(ballot & ((1u << lane) - 1));
      ids[random_order ? order.position_of(own) : own] = begin + lane;
    }
    rank += __popc(ballot);
  }
}

// How many samples select_on_chip can take on this device.
template <class Key>
int64_t on_chip_capacity() {
  constexpr size_t kStaticBytes = sizeof(SearchShared) + 1024;  // with room for the rest
  const size_t limit = shared_memory_limit();
  if (limit <= kStaticBytes) return 0;
  const auto blocks = static_cast<int64_t>(std::min(multiprocessor_count(), kMaxOnChipBlocks));
  const auto keys = static_cast<int64_t>((limit - kStaticBytes) / sizeof(Key));
  return blocks * (keys / kOnChipThreads * kOnChipThreads);
}

// workspace: sizeof(OnChipState), 8-byte aligned, in any state. num_samples <= on_chip_capacity().
template <class Ranking>
cudaError_t select_on_chip(const Ranking& ranking, const Selection& s, void* workspace,
                           ErrorRecord* errors, cudaStream_t stream) {
  // A block more makes each pass shorter and each barrier longer.
  constexpr int64_t kWorthABlock = int64_t{kOnChipThreads} * 4;
  const int64_t wanted = (s.num_samples + kWorthABlock - 1) / kWorthABlock;
  const int64_t available = std::min(multiprocessor_count(), kMaxOnChipBlocks);
  const auto blocks = static_cast<unsigned>(std::min(wanted, available));
  const OnChipShares shares = OnChipShares::of(s.num_samples, blocks);
  const SelectTask<Ranking> task = {ranking, s.num_samples, s.num_greedy, s.num_random,
                                    s.seed,  {0, 0},        nullptr,      errors};
  return DYNPRUNE_LAUNCH_COOPERATIVE(
      (select_on_chip_kernel<Ranking>), blocks, kOnChipThreads,
      static_cast<size_t>(shares.per_block()) * sizeof(typename Ranking::Key), stream, task, shares,
      static_cast<OnChipState*>(workspace), s.order == Order::kRandom, s.ids);
}

}  // namespace cuda
}  // namespace dynprune
