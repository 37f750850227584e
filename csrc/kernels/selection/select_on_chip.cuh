// SPDX-License-Identifier: Apache-2.0
// Selection from as many samples as the shared memories of the multiprocessors hold: 7.3 million
// float32 scores with 132 of 227 KB. It takes one launch, in which every block keeps the keys of
// its share on chip. The scores are read once, the ids written once.
#pragma once

#include "device/device_errors.h"
#include "kernels/selection/load_batch.cuh"
#include "kernels/selection/select_task.cuh"
#include "shared/permutation.h"

namespace dynprune {
namespace cuda {

constexpr int kOnChipThreads = kSearchThreads;
constexpr int kOnChipWarps = kOnChipThreads / kWarpSize;

// The samples are cut into contiguous shares: one per block, and within it one per warp.
struct OnChipShares {
  int64_t num_samples, per_warp;  // per_warp: a multiple of 32

  static OnChipShares of(int64_t n, unsigned blocks) {
    const int64_t warps = int64_t{blocks} * kOnChipWarps;
    return {n, ((n + warps - 1) / warps + kWarpSize - 1) / kWarpSize * kWarpSize};
  }
  DYNPRUNE_HD int64_t per_block() const { return per_warp * kOnChipWarps; }
};

// One block's share of the samples.
template <class Key>
struct BlockShare {
  int64_t first, end;
  Key* keys;  // [end - first], in shared memory; not used without a greedy part

  // Calls f(id, valid) for the share, whole warps together.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    const int thread = threadIdx.x;
#pragma unroll 1
    for (int64_t begin = first; begin < end; begin += kOnChipThreads) {
      f(begin + thread, begin + thread < end);
    }
  }
};

__device__ __forceinline__ void clear_bins(MergedBins* merged) {
  for (int b = static_cast<int>(blockIdx.x) * kOnChipThreads + static_cast<int>(threadIdx.x);
       b < 3 * kNumBins; b += static_cast<int>(gridDim.x) * kOnChipThreads) {
    merged->bins[b / kNumBins][b % kNumBins] = 0;
  }
}

// From the least of some keys to the greatest.
template <class Key>
struct KeyRange {
  Key least, greatest;

  __device__ static KeyRange none() { return {static_cast<Key>(~Key{0}), 0}; }
  __device__ void add(Key low, Key high) {
    least = low < least ? low : least;
    greatest = high > greatest ? high : greatest;
  }
};

// Over all threads of a block, in every one of them. totals: [kOnChipWarps], shared memory.
template <class Key>
__device__ __forceinline__ KeyRange<Key> block_key_range(KeyRange<Key> range,
                                                         KeyRange<Key>* totals) {
  const auto over_warp = [](KeyRange<Key> r) {
#pragma unroll
    for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
      r.add(__shfl_xor_sync(kFullWarp, r.least, distance),
            __shfl_xor_sync(kFullWarp, r.greatest, distance));
    }
    return r;
  };
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  range = over_warp(range);
  if (lane == 0) totals[warp] = range;
  __syncthreads();
  return over_warp(totals[lane]);
}

// Loads the keys of a share. Returns the range of those of this thread.
template <class Ranking, class Key>
__device__ __forceinline__ KeyRange<Key> load_keys(const SelectTask<Ranking>& task, uint64_t seed,
                                                   const BlockShare<Key>& share) {
  constexpr int kBatch = kLoadsInFlight / Ranking::kLoads;
  const typename Ranking::Hash hash(seed);
  auto range = KeyRange<Key>::none();
#pragma unroll 1
  for (int64_t begin = share.first; begin < share.end; begin += kBatch * kOnChipThreads) {
    const auto count = static_cast<int>(share.end - begin);
    typename Ranking::Raw raw[kBatch];
    load_batch<kOnChipThreads>(task.ranking, begin, count, raw);
#pragma unroll
    for (int j = 0; j < kBatch; j++) {
      const int place = place_in_batch<kOnChipThreads>(j);
      if (place >= count) continue;
      const Key key = task.ranking.key_of(raw[j], begin + place, hash);
      if constexpr (Ranking::kChecked) {
        if (!Ranking::valid(raw[j])) record_error(task.errors, DataError::kWeight, begin + place);
      }
      share.keys[begin - share.first + place] = key;
      range.add(key, key);
    }
  }
  return range;
}

// Finds the thresholds among the keys of all blocks, which lie in this range. Of equal scores only
// the hashes are searched.
template <class Ranking, class Key>
__device__ __forceinline__ Thresholds<Key> search_on_chip(const SelectTask<Ranking>& task,
                                                          uint64_t seed,
                                                          const BlockShare<Key>& share,
                                                          const KeyRange<Key>& range,
                                                          DigitSearch search) {
  using Composite = composite_t<Key>;
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  Thresholds<Key> thresholds = {{0, 0}, 0};
  if (task.has_greedy()) {
    auto found = Interval<Composite>::between(compose(range.least, 0),
                                              compose(range.greatest, ~uint32_t{0}));
    search.narrow(
        &found, static_cast<unsigned long long>(task.num_greedy), 0, [&](const auto& visit) {
          share.for_each([&](int64_t id, bool valid) {
            visit(valid,
                  valid ? compose(share.keys[id - share.first], tie_hash(id)) : Composite{0});
          });
        });
    thresholds.greedy = Threshold<Key>::of(found.low);
  }
  if (task.has_random()) {
    auto found = Interval<uint32_t>::whole();
    search.narrow(
        &found, static_cast<unsigned long long>(task.num_random), 0, [&](const auto& visit) {
          share.for_each([&](int64_t id, bool valid) {
            const bool taken = valid && task.has_greedy() &&
                               thresholds.greedy.admits(share.keys[id - share.first], id, tie_hash);
            visit(valid && !taken, explore_hash(id));
          });
        });
    thresholds.random = found.low;
  }
  return thresholds;
}

// Counts the ids that every warp keeps. warp_counts: [kOnChipWarps] out, how many ids the warps
// before this one keep. *block_count: out, how many ids the block keeps.
template <class Keeps>
__device__ __forceinline__ void count_kept(const Keeps& keeps, int64_t first, int64_t end,
                                           unsigned* warp_counts, unsigned* block_count) {
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  unsigned count = 0;
#pragma unroll 1
  for (int64_t begin = first; begin < end; begin += kWarpSize) {
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
    *block_count = sum;
  }
}

// How many ids the blocks before this one keep. *total: shared memory.
__device__ __forceinline__ unsigned long long kept_before(const unsigned* block_counts,
                                                          unsigned long long* total) {
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  if (warp == 0) {
    unsigned long long before = 0;
    for (unsigned b = lane; b < blockIdx.x; b += kWarpSize) before += block_counts[b];
    before = warp_inclusive_sum(before, lane);
    if (lane == kWarpSize - 1) *total = before;
  }
  __syncthreads();
  return *total;
}

// Writes the ids that a warp keeps. rank: that of the first of them.
template <class Keeps>
__device__ __forceinline__ void write_kept(const Keeps& keeps, int64_t first, int64_t end,
                                           unsigned long long rank, const Permutation& order,
                                           bool random_order, int64_t* ids) {
  const int thread = threadIdx.x, lane = thread % kWarpSize;
  for (int64_t begin = first; begin < end; begin += kWarpSize) {
    const bool keep = keeps(begin + lane);
    const unsigned ballot = __ballot_sync(kFullWarp, keep);
    if (keep) {
      const unsigned long long own = rank + __popc(ballot & ((1u << lane) - 1));
      ids[random_order ? order.position_of(own) : own] = begin + lane;
    }
    rank += __popc(ballot);
  }
}

template <class Ranking>
__global__ void __launch_bounds__(kOnChipThreads, 1)
    select_on_chip_kernel(SelectTask<Ranking> task, OnChipShares shares, OnChipState* state,
                          bool random_order, int64_t* ids) {
  using Key = typename Ranking::Key;
  DYNPRUNE_SHARED(SearchShared, shared, );
  DYNPRUNE_SHARED(unsigned, warp_counts, [kOnChipWarps]);
  DYNPRUNE_SHARED(KeyRange<Key>, warp_ranges, [kOnChipWarps]);
  DYNPRUNE_SHARED(unsigned long long, base, );
  DYNPRUNE_DYNAMIC_SHARED(Key, keys);
  const int thread = threadIdx.x, warp = thread / kWarpSize;
  const uint64_t seed = task.seed.get();
  const int64_t n = task.num_samples, first = shares.per_block() * blockIdx.x;
  const int64_t end = first + shares.per_block() < n ? first + shares.per_block() : n;
  const BlockShare<Key> share = {first, end, keys};

  clear_bins(&state->merged);
  auto range = KeyRange<Key>::none();
  if (task.has_greedy()) {
    range = block_key_range(load_keys(task, seed, share), warp_ranges);
    if (thread == 0) {
      state->least[blockIdx.x] = range.least;
      state->greatest[blockIdx.x] = range.greatest;
    }
  }
  grid_sync();
  if (task.has_greedy()) {
    for (unsigned b = thread; b < gridDim.x; b += kOnChipThreads) {
      range.add(static_cast<Key>(state->least[b]), static_cast<Key>(state->greatest[b]));
    }
    range = block_key_range(range, warp_ranges);
  }
  const Thresholds<Key> thresholds =
      search_on_chip(task, seed, share, range, DigitSearch(&shared, &state->merged));

  // Ids ascend with (block, warp, round, lane). They are counted first, which gives every warp the
  // rank of its first id.
  const Selected<Ranking> selected(task, seed, thresholds);
  const bool has_greedy = task.has_greedy();
  const auto keeps = [&](int64_t id) {
    return id < end && selected(has_greedy ? keys[id - first] : 0, id);
  };
  const int64_t warp_first = first + shares.per_warp * warp;
  const int64_t warp_end = warp_first + shares.per_warp < end ? warp_first + shares.per_warp : end;
  count_kept(keeps, warp_first, warp_end, warp_counts, &state->block_counts[blockIdx.x]);
  grid_sync();
  const unsigned long long rank = kept_before(state->block_counts, &base) + warp_counts[warp];
  const Permutation order(static_cast<uint64_t>(task.num_greedy + task.num_random), seed,
                          Stream::kOrder);
  write_kept(keeps, warp_first, warp_end, rank, order, random_order, ids);
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
  // Every block takes part in every barrier of the grid: one with fewer samples is not added.
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
