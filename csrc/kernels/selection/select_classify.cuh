// SPDX-License-Identifier: Apache-2.0
// The first two steps of a streaming selection. Two members of a random sample bracket the
// threshold; then every sample is in, out, or a candidate.
#pragma once

#include "device/device_errors.h"
#include "kernels/selection/select_task.cuh"

namespace dynprune {
namespace cuda {

// Finds the two members of a random sample that bracket the threshold. All blocks write the sample,
// the last block searches it. sample: [sample_size], workspace. The bracket is open at an end whose
// rank is outside of the sample.
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
  // The search stops at a bin of so few members.
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

// As many as fit beside the keys of a tile, which stay in registers.
template <class Key>
constexpr int kClassifyBlocksPerSm = sizeof(Key) == 8 ? 2 : 3;

struct ClassifyShared {
  uint32_t listed_words[kWordsPerTile];  // which samples of the tile are candidates
  uint32_t chosen_words[kWordsPerTile];  // and which are selected
  unsigned offsets[kWordsPerTile];       // candidates of the tile before a word
  unsigned counts[2][kClassifyWarps];  // samples above the greedy bracket, and above the random one
  unsigned long long list_begin;
};

// Loads the keys of a tile. All loads are in flight before the first key is used.
template <class Ranking, class Key>
__device__ __forceinline__ void load_tile(const SelectTask<Ranking>& task, uint64_t seed,
                                          int64_t first, Key (&keys)[kClassifyRounds]) {
  const bool has_greedy = task.has_greedy();
#pragma unroll
  for (int r = 0; r < kClassifyRounds; r++) {
    const int64_t id = first + r * kClassifyThreads;
    keys[r] = has_greedy && id < task.num_samples ? task.ranking.key(id, seed) : 0;
  }
  if constexpr (Ranking::kChecked) {  // an invalid sample has the smallest key
    for (int r = 0; r < kClassifyRounds; r++) {
      const int64_t id = first + r * kClassifyThreads;
      if (keys[r] == 0 && id < task.num_samples && !task.ranking.valid(id)) {
        record_error(task.errors, DataError::kWeight, id);
      }
    }
  }
}

// Compares the samples with the brackets. Writes the words of the tile and the counts of a warp.
template <class Ranking, class Key>
__device__ __forceinline__ void classify_tile(const SelectTask<Ranking>& task, uint64_t seed,
                                              int64_t first, const Key (&keys)[kClassifyRounds],
                                              ClassifyShared* shared) {
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int64_t n = task.num_samples;
  const bool has_greedy = task.has_greedy(), has_random = task.has_random();
  const StoredComposite low = task.state->low, high = task.state->high;
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
      shared->chosen_words[r * kClassifyWarps + warp] = chosen_word;
      shared->listed_words[r * kClassifyWarps + warp] = listed_word;
    }
  }
  if (lane == 0) {
    shared->counts[0][warp] = num_in;
    shared->counts[1][warp] = num_in_random;
  }
}

// Reserves room in the list for the tile's candidates. Called by one whole warp.
__device__ __forceinline__ void take_room(SelectState* state, int64_t capacity,
                                          TileCandidates* tile, ClassifyShared* shared) {
  constexpr int kPerLane = kWordsPerTile / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  unsigned counts[kPerLane], sum = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; j++) {
    counts[j] = __popc(shared->listed_words[lane * kPerLane + j]);
    sum += counts[j];
  }
  const unsigned inclusive = warp_inclusive_sum(sum, lane);
  unsigned before = inclusive - sum;
#pragma unroll
  for (int j = 0; j < kPerLane; j++) {
    shared->offsets[lane * kPerLane + j] = before;
    before += counts[j];
  }
  if (lane == kWarpSize - 1) {
    const unsigned long long begin =
        inclusive > 0 ? atomicAdd(&state->num_candidates, 0ull + inclusive) : 0;
    shared->list_begin = begin;
    const bool fits = begin + inclusive <= static_cast<unsigned long long>(capacity);
    *tile = {static_cast<uint32_t>(begin), fits ? inclusive : 0};
  }
}

// Adds the counts of the tile's warps to those of the grid. Called by the first two lanes of a
// warp.
__device__ __forceinline__ void add_counts(const ClassifyShared& shared, int lane,
                                           SelectState* state) {
  unsigned count = 0;
  for (int w = 0; w < kClassifyWarps; w++) count += shared.counts[lane][w];
  if (count > 0) atomicAdd(lane == 0 ? &state->num_in : &state->num_in_random, 0ull + count);
}

template <class Key>
__device__ __forceinline__ void write_candidates(const ClassifyShared& shared, int64_t first,
                                                 const Key (&keys)[kClassifyRounds],
                                                 int64_t capacity, Key* candidate_keys,
                                                 uint32_t* candidate_ids) {
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
#pragma unroll
  for (int r = 0; r < kClassifyRounds; r++) {
    const unsigned word = shared.listed_words[r * kClassifyWarps + warp];
    const unsigned long long position = shared.list_begin +
                                        shared.offsets[r * kClassifyWarps + warp] +
                                        __popc(word & ((1u << lane) - 1));
    if ((word >> lane & 1u) != 0 && position < static_cast<unsigned long long>(capacity)) {
      candidate_keys[position] = keys[r];
      candidate_ids[position] = static_cast<uint32_t>(first + r * kClassifyThreads);
    }
  }
}

// One block per tile. Writes the tile's words of the bitmap, and appends its candidates to the
// list. tiles: [num_tiles] out, where they are in the list. Candidates that find no room are only
// counted.
template <class Ranking>
__global__ void __launch_bounds__(kClassifyThreads, kClassifyBlocksPerSm<typename Ranking::Key>)
    classify_kernel(SelectTask<Ranking> task, int64_t capacity, uint32_t* bitmap,
                    TileCandidates* tiles, typename Ranking::Key* candidate_keys,
                    uint32_t* candidate_ids) {
  DYNPRUNE_SHARED(ClassifyShared, shared, );
  SelectState* state = task.state;
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int64_t first = int64_t{blockIdx.x} * kTile + thread;
  const uint64_t seed = task.seed.get();

  typename Ranking::Key keys[kClassifyRounds];
  load_tile(task, seed, first, keys);
  classify_tile(task, seed, first, keys, &shared);
  __syncthreads();
  if (thread < kWordsPerTile) {
    bitmap[int64_t{blockIdx.x} * kWordsPerTile + thread] = shared.chosen_words[thread];
  }
  if (warp == 0) {
    take_room(state, capacity, &tiles[blockIdx.x], &shared);
  } else if (warp == 1 && lane < 2) {
    add_counts(shared, lane, state);
  }
  __syncthreads();
  write_candidates(shared, first, keys, capacity, candidate_keys, candidate_ids);
}

}  // namespace cuda
}  // namespace dynprune
