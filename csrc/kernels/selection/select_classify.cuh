// SPDX-License-Identifier: Apache-2.0
// The one pass over the scores: a random sample, two of whose members bracket the threshold, then
// every sample is in, out, or a candidate.
#pragma once

#include "device/device_errors.h"
#include "kernels/selection/select_task.cuh"

namespace dynprune {
namespace cuda {

// A random sample, written by all blocks and searched by the last: the two members that bracket the
// threshold. sample: [sample_size], workspace. The bracket is open where a rank lies outside.
template <class Ranking>
__global__ void __launch_bounds__(kSearchThreads, 1)
    bracket_kernel(SelectTask<Ranking> task, int64_t sample_size, BracketRanks ranks,
                   composite_t<typename Ranking::Key>* sample) {
  using Key = typename Ranking::Key;
  using Composite = composite_t<Key>;
  DYNPRUNE_SHARED(SearchShared, shared, );
  SelectState* state = task.state;
  const uint64_t seed = task.seed.get();
  const IdHash tie_hash(seed, Stream::kTie);
  const uint64_t base = stream_key(seed, Stream::kSample);
  const int64_t own = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x;
  if (own < sample_size) {
    const unsigned __int128 draw = mix64(base + static_cast<uint64_t>(own));
    const auto id = static_cast<int64_t>(draw * static_cast<uint64_t>(task.num_samples) >> 64);
    sample[own] = compose(task.ranking.key(id, seed), tie_hash(id));
  }
  if (!last_block_here(&state->bracket_ticket)) return;

  const auto members = [&](const auto& visit) {
    for (int64_t begin = 0; begin < sample_size; begin += kSearchThreads) {
      const int64_t i = begin + threadIdx.x;
      visit(i < sample_size, i < sample_size ? sample[i] : Composite{0});
    }
  };
  // A bin of so few members is narrow enough.
  const unsigned long long enough = static_cast<unsigned long long>(sample_size / 512);
  DigitSearch search(&shared, nullptr);
  for (int end = 0; end < 2; end++) {
    const int64_t rank = end == 0 ? ranks.below : ranks.above;
    auto found = Interval<Composite>::whole();
    if (rank >= 0 && rank < sample_size) {
      search.narrow(&found, static_cast<unsigned long long>(rank) + 1, enough, members);
    }
    if (threadIdx.x == 0) {
      if (end == 0) state->low = StoredComposite::of<Key>(found.low);
      if (end == 1) state->high = StoredComposite::of<Key>(found.last());
    }
  }
}

constexpr int kClassifyThreads = 256;
constexpr int kClassifyRounds = static_cast<int>(kTile) / kClassifyThreads;
constexpr int kClassifyWarps = kClassifyThreads / kWarpSize;

// The keys of a tile stay in registers.
template <class Key>
constexpr int kClassifyBlocksPerSm = sizeof(Key) == 8 ? 2 : 3;

// One block per tile. Writes the tile's words of the bitmap, appends its candidates to the list and
// says in tiles[] where, and counts. More candidates than there is room for are counted only.
template <class Ranking>
__global__ void __launch_bounds__(kClassifyThreads, kClassifyBlocksPerSm<typename Ranking::Key>)
    classify_kernel(SelectTask<Ranking> task, int64_t capacity, uint32_t* bitmap,
                    TileCandidates* tiles, typename Ranking::Key* candidate_keys,
                    uint32_t* candidate_ids) {
  using Key = typename Ranking::Key;
  DYNPRUNE_SHARED(uint32_t, listed_words, [kWordsPerTile]);
  DYNPRUNE_SHARED(uint32_t, chosen_words, [kWordsPerTile]);
  DYNPRUNE_SHARED(unsigned, offsets, [kWordsPerTile]);
  DYNPRUNE_SHARED(unsigned, warp_counts, [2][kClassifyWarps]);
  DYNPRUNE_SHARED(unsigned long long, list_begin, );
  SelectState* state = task.state;
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int64_t first = int64_t{blockIdx.x} * kTile + thread;
  const int64_t n = task.num_samples;
  const uint64_t seed = task.seed.get();
  const bool has_greedy = task.has_greedy(), has_random = task.has_random();

  Key keys[kClassifyRounds];  // all loads are under way before the first key is looked at
#pragma unroll
  for (int r = 0; r < kClassifyRounds; r++) {
    const int64_t id = first + r * kClassifyThreads;
    keys[r] = has_greedy && id < n ? task.ranking.key(id, seed) : 0;
  }
  if constexpr (Ranking::kChecked) {  // what is invalid has the smallest key
    for (int r = 0; r < kClassifyRounds; r++) {
      const int64_t id = first + r * kClassifyThreads;
      if (keys[r] == 0 && id < n && !task.ranking.valid(id)) {
        record_error(task.errors, DataError::kWeight, id);
      }
    }
  }

  const StoredComposite low = state->low, high = state->high;
  const Key low_key = static_cast<Key>(low.key), high_key = static_cast<Key>(high.key);
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  unsigned num_in = 0, num_in_random = 0;
#pragma unroll
  for (int r = 0; r < kClassifyRounds; r++) {
    const int64_t id = first + r * kClassifyThreads;
    const Key key = keys[r];
    bool in = has_greedy && id < n && key > high_key, close = false;
    if (has_greedy && id < n && !in && key >= low_key) {
      const uint32_t tie = tie_hash(id);
      in = key == high_key && tie > high.tie;
      close = !in && (key > low_key || tie >= low.tie);
    }
    num_in += __popc(__ballot_sync(kFullWarp, in));
    bool listed = close;
    if (has_random) {
      const uint32_t hash = explore_hash(id);
      const bool below = id < n && !in && !close;
      const bool in_random = below && hash > task.hash.high;
      listed |= below && !in_random && hash >= task.hash.low;
      num_in_random += __popc(__ballot_sync(kFullWarp, in_random));
      in |= in_random;
    }
    const unsigned chosen_word = __ballot_sync(kFullWarp, in);
    const unsigned listed_word = __ballot_sync(kFullWarp, listed);
    if (lane == 0) {
      chosen_words[r * kClassifyWarps + warp] = chosen_word;
      listed_words[r * kClassifyWarps + warp] = listed_word;
    }
  }
  if (lane == 0) {
    warp_counts[0][warp] = num_in;
    warp_counts[1][warp] = num_in_random;
  }
  __syncthreads();

  if (thread < kWordsPerTile) {
    bitmap[int64_t{blockIdx.x} * kWordsPerTile + thread] = chosen_words[thread];
  }
  if (warp == 0) {
    constexpr int kPerLane = kWordsPerTile / kWarpSize;
    unsigned counts[kPerLane], sum = 0;
#pragma unroll
    for (int j = 0; j < kPerLane; j++) {
      counts[j] = __popc(listed_words[lane * kPerLane + j]);
      sum += counts[j];
    }
    const unsigned inclusive = warp_inclusive_sum(sum, lane);
    unsigned before = inclusive - sum;
#pragma unroll
    for (int j = 0; j < kPerLane; j++) {
      offsets[lane * kPerLane + j] = before;
      before += counts[j];
    }
    if (lane == kWarpSize - 1) {
      const unsigned long long begin =
          inclusive > 0 ? atomicAdd(&state->num_candidates, 0ull + inclusive) : 0;
      list_begin = begin;
      const bool fits = begin + inclusive <= static_cast<unsigned long long>(capacity);
      tiles[blockIdx.x] = {static_cast<uint32_t>(begin), fits ? inclusive : 0};
    }
  } else if (warp == 1 && lane < 2) {
    unsigned count = 0;
    for (int w = 0; w < kClassifyWarps; w++) count += warp_counts[lane][w];
    if (count > 0) atomicAdd(lane == 0 ? &state->num_in : &state->num_in_random, 0ull + count);
  }
  __syncthreads();

#pragma unroll
  for (int r = 0; r < kClassifyRounds; r++) {
    const unsigned word = listed_words[r * kClassifyWarps + warp];
    const unsigned long long position =
        list_begin + offsets[r * kClassifyWarps + warp] + __popc(word & ((1u << lane) - 1));
    if ((word >> lane & 1u) != 0 && position < static_cast<unsigned long long>(capacity)) {
      candidate_keys[position] = keys[r];
      candidate_ids[position] = static_cast<uint32_t>(first + r * kClassifyThreads);
    }
  }
}

}  // namespace cuda
}  // namespace dynprune
