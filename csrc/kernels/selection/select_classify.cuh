// SPDX-License-Identifier: Apache-2.0
// The first two steps of a streaming selection. Two members of a random sample bracket the
// threshold; then every sample is in, out, or a candidate.
#pragma once

#include "device/device_errors.h"
#include "kernels/selection/load_batch.cuh"
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
  DYNPRUNE_SHARED(SearchShared, shared, [2]);
  SelectState* state = task.state;
  const uint64_t seed = task.seed.get();
  const IdHash tie_hash(seed, Stream::kTie);
  const uint64_t base = stream_key(seed, Stream::kSample);
  const int64_t own = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x;
  if (own < sample_size) {
    const unsigned __int128 draw = mix64(base + static_cast<uint64_t>(own));
    const auto id = static_cast<int64_t>(draw * static_cast<uint64_t>(task.num_samples) >> 64);
    sample[own] = compose(key_at(task.ranking, id, typename Ranking::Hash(seed)), tie_hash(id));
  }
  if (!last_block_here(&state->bracket_ticket)) return;

  const auto members = [&](const auto& visit) {
    constexpr int kBatch = 4;
    for (int64_t begin = 0; begin < sample_size; begin += kBatch * kSearchThreads) {
      Composite batch[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; j++) {
        const int64_t i = begin + j * kSearchThreads + threadIdx.x;
        batch[j] = 0;
        if (i < sample_size) batch[j] = sample[i];
      }
      issue_loads();
#pragma unroll
      for (int j = 0; j < kBatch; j++) {
        visit(begin + j * kSearchThreads + threadIdx.x < sample_size, batch[j]);
      }
    }
  };
  // Of rank 0 nothing is searched: the bracket stays open.
  const auto wanted = [&](int64_t rank) {
    return static_cast<unsigned long long>(rank >= 0 && rank < sample_size ? rank + 1 : 0);
  };
  // The search stops at a bin of so few members.
  const unsigned long long enough = static_cast<unsigned long long>(sample_size / 512);
  DigitSearch below(&shared[0], nullptr), above(&shared[1], nullptr);
  Interval<Composite> low = Interval<Composite>::whole(), high = low;
  DigitSearch::narrow_both(&below, &low, wanted(ranks.below), &above, &high, wanted(ranks.above),
                           enough, members);
  if (threadIdx.x == 0) {
    state->low = StoredComposite::of<Key>(low.low);
    state->high = StoredComposite::of<Key>(high.last());
  }
}

constexpr int kClassifyThreads = 256;
constexpr int kClassifyRounds = static_cast<int>(kTile) / kClassifyThreads;
constexpr int kClassifyWarps = kClassifyThreads / kWarpSize;

// As many as fit beside the keys of a tile, which stay in registers.
template <class Key>
constexpr int kClassifyBlocksPerSm = sizeof(Key) == 8 ? 2 : 3;

// Of 32 samples, a bit each.
struct ClassifiedWord {
  uint32_t chosen;  // which are selected
  uint32_t listed;  // which are candidates
};

struct ClassifyShared {
  ClassifiedWord words[kWordsPerTile];
  uint32_t list_places[kWordsPerTile];     // where in the list the candidates of a word begin
  unsigned random_counts[kClassifyWarps];  // samples above the random bracket
  unsigned num_listed;                     // candidates of the tile; 0 if the list is full
};

// One block's tile of the samples.
struct Tile {
  int64_t first;
  int count;  // of samples, up to kTile

  __device__ static Tile of_block(int64_t num_samples) {
    const int64_t first = int64_t{blockIdx.x} * kTile, left = num_samples - first;
    return {first, static_cast<int>(left < kTile ? left : kTile)};
  }
  // The sample of this thread in a round, as its place in the tile.
  __device__ static int place(int round) { return place_in_batch<kClassifyThreads>(round); }
  // The word of this warp in a round.
  __device__ static int word(int round) {
    return round * kClassifyWarps + static_cast<int>(threadIdx.x / kWarpSize);
  }
};

// Computes the keys of the tile, and records its invalid samples.
template <class Ranking, class Key>
__device__ __forceinline__ void compute_keys(const SelectTask<Ranking>& task, uint64_t seed,
                                             const Tile& tile, Key (&keys)[kClassifyRounds]) {
  typename Ranking::Raw raw[kClassifyRounds];
  load_batch<kClassifyThreads>(task.ranking, tile.first, tile.count, raw);
  const typename Ranking::Hash hash(seed);
  unsigned invalid = 0;  // a bit for each round
#pragma unroll
  for (int r = 0; r < kClassifyRounds; r++) {
    keys[r] = task.ranking.key_of(raw[r], tile.first + Tile::place(r), hash);
    if constexpr (Ranking::kChecked) {
      if (!Ranking::valid(raw[r])) invalid |= 1u << r;
    }
  }
  for (unsigned rest = invalid; rest != 0; rest &= rest - 1) {
    const int place = Tile::place(__ffs(static_cast<int>(rest)) - 1);
    if (place < tile.count) record_error(task.errors, DataError::kWeight, tile.first + place);
  }
}

// Compares the keys with the bracket's ends. Writes the words of a warp, without the samples whose
// keys are equal to that of an end. Their tie hash decides these, apart from the others.
template <class Key>
__device__ __forceinline__ void classify_keys(const StoredComposite& low,
                                              const StoredComposite& high, uint64_t seed,
                                              const Tile& tile, const Key (&keys)[kClassifyRounds],
                                              ClassifyShared* shared) {
  const int lane = threadIdx.x % kWarpSize;
  const Key low_key = static_cast<Key>(low.key), high_key = static_cast<Key>(high.key);
  ClassifiedWord words[kClassifyRounds];
  unsigned at_low = 0, at_high = 0;  // a bit for each round
#pragma unroll
  for (int r = 0; r < kClassifyRounds; r++) {
    const Key key = keys[r];
    words[r].chosen = __ballot_sync(kFullWarp, key > high_key);
    words[r].listed = __ballot_sync(kFullWarp, key < high_key && key > low_key);
    if (key == low_key) at_low |= 1u << r;
    if (key == high_key) at_high |= 1u << r;
  }
  if (lane == 0) {
#pragma unroll
    for (int r = 0; r < kClassifyRounds; r++) shared->words[Tile::word(r)] = words[r];
  }
  const unsigned ends = at_low | at_high;
  if (!__any_sync(kFullWarp, ends != 0)) return;
  const IdHash tie_hash(seed, Stream::kTie);
#pragma unroll 1
  for (int r = 0; r < kClassifyRounds; r++) {
    if (!__any_sync(kFullWarp, (ends >> r & 1u) != 0)) continue;
    const bool is_low = (at_low >> r & 1u) != 0, is_high = (at_high >> r & 1u) != 0;
    const uint32_t tie = tie_hash(tile.first + Tile::place(r));
    const bool above = is_high && tie > high.tie;
    const bool inside = !above && (is_high || is_low) && (!is_low || tie >= low.tie);
    const unsigned chosen = __ballot_sync(kFullWarp, above);
    const unsigned listed = __ballot_sync(kFullWarp, inside);
    if (lane == 0) {
      shared->words[Tile::word(r)].chosen |= chosen;
      shared->words[Tile::word(r)].listed |= listed;
    }
  }
}

// Clears the bits behind the tile's end in the words of a warp.
__device__ __forceinline__ void clear_behind_end(const Tile& tile, ClassifyShared* shared) {
  const int round = threadIdx.x % kWarpSize;  // a lane for each word
  __syncwarp();
  if (tile.count < kTile && round < kClassifyRounds) {
    ClassifiedWord* word = &shared->words[Tile::word(round)];
    const int count = tile.count - Tile::word(round) * kWarpSize;
    const uint32_t valid = count >= kWarpSize ? kFullWarp : count > 0 ? (1u << count) - 1 : 0;
    *word = {word->chosen & valid, word->listed & valid};
  }
  __syncwarp();
}

// Compares the explore hashes of the other samples with the bracket of the random part. Adds to the
// words of a warp, and writes its count.
template <class Ranking>
__device__ __forceinline__ void classify_hashes(const SelectTask<Ranking>& task, uint64_t seed,
                                                const Tile& tile, ClassifyShared* shared) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const IdHash explore_hash(seed, Stream::kExplore);
  unsigned count = 0;
#pragma unroll 4
  for (int r = 0; r < kClassifyRounds; r++) {
    const ClassifiedWord word = shared->words[Tile::word(r)];
    const int place = Tile::place(r);
    const bool below = place < tile.count && ((word.chosen | word.listed) >> lane & 1u) == 0;
    const uint32_t hash = explore_hash(tile.first + place);
    const unsigned chosen = __ballot_sync(kFullWarp, below && hash > task.hash.high);
    const unsigned listed =
        __ballot_sync(kFullWarp, below && hash <= task.hash.high && hash >= task.hash.low);
    __syncwarp();  // every lane has read the word
    if (lane == 0) {
      shared->words[Tile::word(r)] = {word.chosen | chosen, word.listed | listed};
    }
    count += __popc(chosen);
  }
  if (lane == 0) shared->random_counts[warp] = count;
}

// Reserves room in the list for the tile's candidates. Called by one whole warp.
__device__ __forceinline__ void take_room(SelectState* state, int64_t capacity,
                                          TileCandidates* tile, ClassifyShared* shared) {
  constexpr int kPerLane = kWordsPerTile / kWarpSize;
  const int lane = threadIdx.x % kWarpSize;
  unsigned counts[kPerLane], sum = 0;
#pragma unroll
  for (int j = 0; j < kPerLane; j++) {
    counts[j] = __popc(shared->words[lane * kPerLane + j].listed);
    sum += counts[j];
  }
  const unsigned inclusive = warp_inclusive_sum(sum, lane);
  unsigned long long begin = 0;
  if (lane == kWarpSize - 1) {
    if (inclusive > 0) begin = atomicAdd(&state->num_candidates, 0ull + inclusive);
    const bool fits = begin + inclusive <= static_cast<unsigned long long>(capacity);
    shared->num_listed = fits ? inclusive : 0;
    *tile = {static_cast<uint32_t>(begin), fits ? inclusive : 0};
  }
  begin = __shfl_sync(kFullWarp, begin, kWarpSize - 1);
  uint32_t place = static_cast<uint32_t>(begin) + inclusive - sum;
#pragma unroll
  for (int j = 0; j < kPerLane; j++) {
    shared->list_places[lane * kPerLane + j] = place;
    place += counts[j];
  }
}

// Adds the counts of the tile to those of the grid. Called by one whole warp.
__device__ __forceinline__ void add_counts(const ClassifyShared& shared, bool has_random,
                                           SelectState* state) {
  const int lane = threadIdx.x % kWarpSize;
  unsigned chosen = 0, random = 0;
  for (int w = lane; w < kWordsPerTile; w += kWarpSize) chosen += __popc(shared.words[w].chosen);
  if (has_random && lane < kClassifyWarps) random = shared.random_counts[lane];
  chosen = warp_inclusive_sum(chosen, lane);
  random = warp_inclusive_sum(random, lane);
  if (lane != kWarpSize - 1) return;
  if (chosen > random) atomicAdd(&state->num_in, 0ull + chosen - random);
  if (random > 0) atomicAdd(&state->num_in_random, 0ull + random);
}

template <class Key>
__device__ __forceinline__ void write_candidates(const ClassifyShared& shared, const Tile& tile,
                                                 const Key (&keys)[kClassifyRounds],
                                                 Key* candidate_keys, uint32_t* candidate_ids) {
  if (shared.num_listed == 0) return;
  const unsigned own_bit = 1u << threadIdx.x % kWarpSize;
#pragma unroll
  for (int r = 0; r < kClassifyRounds; r++) {
    const unsigned word = shared.words[Tile::word(r)].listed;
    if ((word & own_bit) == 0) continue;
    const uint32_t place = shared.list_places[Tile::word(r)] + __popc(word & (own_bit - 1));
    candidate_keys[place] = keys[r];
    candidate_ids[place] = static_cast<uint32_t>(tile.first + Tile::place(r));
  }
}

// One block per tile. Writes the tile's words of the bitmap, and appends its candidates to the
// list. tiles: [num_tiles] out, where they are in the list. Those of a tile for which the list has
// no room are only counted.
template <class Ranking>
__global__ void __launch_bounds__(kClassifyThreads, kClassifyBlocksPerSm<typename Ranking::Key>)
    classify_kernel(SelectTask<Ranking> task, int64_t capacity, uint32_t* bitmap,
                    TileCandidates* tiles, typename Ranking::Key* candidate_keys,
                    uint32_t* candidate_ids) {
  DYNPRUNE_SHARED(ClassifyShared, shared, );
  SelectState* state = task.state;
  const int thread = threadIdx.x, warp = thread / kWarpSize;
  const Tile tile = Tile::of_block(task.num_samples);
  const uint64_t seed = task.seed.get();

  typename Ranking::Key keys[kClassifyRounds] = {};
  if (task.has_greedy()) {
    compute_keys(task, seed, tile, keys);
    classify_keys(state->low, state->high, seed, tile, keys, &shared);
    clear_behind_end(tile, &shared);
  } else {
    if (thread < kWordsPerTile) shared.words[thread] = {0, 0};
    __syncthreads();
  }
  if (task.has_random()) classify_hashes(task, seed, tile, &shared);
  __syncthreads();
  if (thread < kWordsPerTile) {
    bitmap[int64_t{blockIdx.x} * kWordsPerTile + thread] = shared.words[thread].chosen;
  }
  if (warp == 0) {
    take_room(state, capacity, &tiles[blockIdx.x], &shared);
  } else if (warp == 1) {
    add_counts(shared, task.has_random(), state);
  }
  __syncthreads();
  write_candidates(shared, tile, keys, candidate_keys, candidate_ids);
}

}  // namespace cuda
}  // namespace dynprune
