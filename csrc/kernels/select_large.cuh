// SPDX-License-Identifier: Apache-2.0
// Selection from many samples, by any ranking: five launches, six for a random order. See
// select_plan.h for the idea and the bytes.
#pragma once

#include "kernels/select_plan.h"
#include "kernels/shuffle.cuh"
#include "primitives/device_errors.h"

namespace dynprune {
namespace cuda {

// Epsilon-greedy ranks by the score; no other ranking has a random part, or no greedy one.
template <class Ranking>
constexpr bool kMayBeRandom = false;
template <class T>
constexpr bool kMayBeRandom<ScoreRanking<T>> = true;

// What every kernel of one selection is told.
template <class Ranking>
struct SelectTask {
  Ranking ranking;
  int64_t num_samples, num_greedy, num_random;
  Seed seed;
  HashBracket hash;  // of the random part
  SelectState* state;
  ErrorRecord* errors;  // [kNumDataErrors], used if the ranking is checked

  __device__ bool has_greedy() const { return !kMayBeRandom<Ranking> || num_greedy > 0; }
  __device__ bool has_random() const { return kMayBeRandom<Ranking> && num_random > 0; }
};

// Is a sample in the subset, now that the thresholds are known?
template <class Ranking>
class Selected {
 public:
  using Key = typename Ranking::Key;

  __device__ Selected(bool has_greedy, bool has_random, uint64_t seed, Threshold<Key> greedy,
                      uint32_t random)
      : has_greedy_(has_greedy),
        has_random_(has_random),
        greedy_(greedy),
        random_(random),
        tie_hash_(seed, Stream::kTie),
        explore_hash_(seed, Stream::kExplore) {}

  __device__ bool operator()(Key key, int64_t id) const {
    return (has_greedy_ && greedy_.admits(key, id, tie_hash_)) ||
           (has_random_ && explore_hash_(id) >= random_);
  }

 private:
  bool has_greedy_, has_random_;
  Threshold<Key> greedy_;
  uint32_t random_;
  IdHash tie_hash_, explore_hash_;
};

// ---- 1: a random sample, two of whose members bracket the greedy threshold

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
  const int64_t i = int64_t{blockIdx.x} * kSearchThreads + threadIdx.x;
  if (i < sample_size) {
    const unsigned __int128 draw = mix64(base + static_cast<uint64_t>(i));
    const auto id = static_cast<int64_t>(draw * static_cast<uint64_t>(task.num_samples) >> 64);
    sample[i] = compose(task.ranking.key(id, seed), tie_hash(id));
  }
  if (!last_block_here(&state->bracket_ticket)) return;

  const auto members = [&](const auto& visit) {
    for (int64_t begin = 0; begin < sample_size; begin += kSearchThreads) {
      const int64_t i = begin + threadIdx.x;
      visit(i < sample_size, i < sample_size ? sample[i] : Composite{0});
    }
  };
  const unsigned long long enough = static_cast<unsigned long long>(sample_size / 512);
  DigitSearch search(&shared, nullptr);
  auto low = Interval<Composite>::whole(), high = low;
  if (ranks.below < sample_size) {
    search.narrow(&low, static_cast<unsigned long long>(ranks.below) + 1, enough, members);
  }
  if (ranks.above >= 0) {
    search.narrow(&high, static_cast<unsigned long long>(ranks.above) + 1, enough, members);
  }
  if (threadIdx.x == 0) {
    state->low = StoredComposite::of<Key>(low.low);
    state->high = StoredComposite::of<Key>(high.last());
  }
}

// ---- 2: every sample is in, out, or a candidate

constexpr int kClassifyThreads = 256;
constexpr int kClassifyRounds = static_cast<int>(kTile) / kClassifyThreads;
constexpr int kClassifyWarps = kClassifyThreads / kWarpSize;

// The keys of a tile stay in registers.
template <class Key>
constexpr int kClassifyBlocksPerSm = sizeof(Key) == 8 ? 2 : 3;

// One block per tile.
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

// ---- 3: the exact thresholds, by a search among the candidates or, should a bracket have missed,
// among all samples

template <class Ranking>
__global__ void __launch_bounds__(kSearchThreads, 1)
    resolve_kernel(SelectTask<Ranking> task, int64_t capacity,
                   const typename Ranking::Key* candidate_keys, const uint32_t* candidate_ids) {
  using Key = typename Ranking::Key;
  using Composite = composite_t<Key>;
  DYNPRUNE_SHARED(SearchShared, shared, );
  SelectState* state = task.state;
  const uint64_t seed = task.seed.get();
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  const auto num_candidates = static_cast<int64_t>(state->num_candidates);
  DigitSearch search(&shared, &state->merged);

  // Calls f(id, valid) for every i < count, whole warps together.
  const auto each = [&](int64_t count, const auto& f) {
    const int64_t stride = int64_t{gridDim.x} * kSearchThreads;
#pragma unroll 1
    for (int64_t i = int64_t{blockIdx.x} * kSearchThreads; i < count; i += stride) {
      f(i + threadIdx.x, i + threadIdx.x < count);
    }
  };
  const auto candidates = [&](const auto& visit) {
    each(num_candidates, [&](int64_t i, bool valid) {
      visit(valid, valid ? compose(candidate_keys[i], tie_hash(candidate_ids[i])) : Composite{0});
    });
  };
  const auto all = [&](const auto& visit) {
    each(task.num_samples, [&](int64_t id, bool valid) {
      visit(valid, valid ? compose(task.ranking.key(id, seed), tie_hash(id)) : Composite{0});
    });
  };

  bool missed = num_candidates > capacity;
  Threshold<Key> greedy = {0, 0};
  if (task.has_greedy()) {
    const auto wanted = static_cast<unsigned long long>(task.num_greedy);
    auto found =
        Interval<Composite>::between(state->low.composite<Key>(), state->high.composite<Key>());
    missed = missed || state->num_in >= wanted ||
             !search.narrow(&found, wanted - state->num_in, 0, candidates);
    if (missed) {
      found = Interval<Composite>::whole();
      search.narrow(&found, wanted, 0, all);
    }
    greedy = {static_cast<Key>(found.low >> 32), static_cast<uint32_t>(found.low)};
  }
  const auto left_over = [&](Key key, int64_t id) {
    return !task.has_greedy() || !greedy.admits(key, id, tie_hash);
  };

  uint32_t random = 0;
  if (task.has_random()) {
    const auto wanted = static_cast<unsigned long long>(task.num_random);
    const auto refused = [&](const auto& visit) {
      each(num_candidates, [&](int64_t i, bool valid) {
        const int64_t id = valid ? candidate_ids[i] : 0;
        visit(valid && left_over(candidate_keys[i], id), explore_hash(id));
      });
    };
    const auto all_refused = [&](const auto& visit) {
      each(task.num_samples, [&](int64_t id, bool valid) {
        const Key key = valid && task.has_greedy() ? task.ranking.key(id, seed) : 0;
        visit(valid && left_over(key, id), explore_hash(id));
      });
    };
    // Among the candidates that the greedy part refused there may be any hash, also above the
    // bracket.
    auto found = Interval<uint32_t>::between(task.hash.low, 0xffffffffu);
    missed = missed || state->num_in_random >= wanted ||
             !search.narrow(&found, wanted - state->num_in_random, 0, refused) ||
             found.low > task.hash.high;
    if (missed) {
      found = Interval<uint32_t>::whole();
      search.narrow(&found, wanted, 0, all_refused);
    }
    random = found.low;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    state->greedy = {static_cast<uint64_t>(greedy.key), greedy.tie};
    state->random = random;
    state->missed = missed;
  }
}

// ---- 4: the ids, or the directory that finds the id of a rank

// Left to itself, ptxas aims at 32 registers and spills for it on some architectures.
constexpr int kListBlocksPerSm = 10;

// One block per tile, in the order in which blocks start. ids: [k], or null for a directory.
template <class Ranking>
__global__ void __launch_bounds__(kListThreads, kListBlocksPerSm)
    list_kernel(SelectTask<Ranking> task, CompactState* compact, uint32_t* bitmap,
                const TileCandidates* tiles, const typename Ranking::Key* candidate_keys,
                const uint32_t* candidate_ids, RankDirectory directory, int64_t* ids) {
  using Key = typename Ranking::Key;
  DYNPRUNE_SHARED(ListShared, shared, );
  const int64_t tile = take_tile(compact, &shared);
  const int thread = threadIdx.x, lane = thread % kWarpSize;
  const uint64_t seed = task.seed.get();
  const Selected<Ranking> selected(task.has_greedy(), task.has_random(), seed,
                                   task.state->greedy.template threshold<Key>(),
                                   task.state->random);
  if (task.state->missed == 0) {
    shared.words[thread] = bitmap[tile * kWordsPerTile + thread];
    const TileCandidates candidates = tiles[tile];
    __syncthreads();
    for (uint32_t c = thread; c < candidates.count; c += kListThreads) {
      const uint32_t id = candidate_ids[candidates.first + c];
      if (!selected(candidate_keys[candidates.first + c], id)) continue;
      const auto place = static_cast<uint32_t>(id - tile * kTile);
      atomicOr(&shared.words[place / 32], 1u << place % 32);
    }
  } else {
    for (int w = thread / kWarpSize; w < kWordsPerTile; w += kListThreads / kWarpSize) {
      const int64_t id = tile * kTile + w * kWarpSize + lane;
      bool keep = false;
      if (id < task.num_samples) {
        keep = selected(task.has_greedy() ? task.ranking.key(id, seed) : 0, id);
      }
      const unsigned word = __ballot_sync(kFullWarp, keep);
      if (lane == 0) shared.words[w] = word;
    }
  }
  count_tile(tile, compact, &shared);
  if (ids != nullptr) {
    write_tile(tile, &shared, ids);
  } else {
    write_directory(tile, &shared, bitmap, directory);
  }
}

// workspace: SelectWorkspace::bytes bytes, 256-byte aligned.
template <class Ranking>
cudaError_t select_large(const Ranking& ranking, const Selection& s, void* workspace,
                         ErrorRecord* errors, cudaStream_t stream) {
  using Key = typename Ranking::Key;
  const SelectWorkspace<Key> w(workspace, s);
  const int64_t n = s.num_samples;
  cudaError_t error = cudaMemsetAsync(workspace, 0, w.zero_bytes, stream);
  if (error != cudaSuccess) return error;
  const SelectTask<Ranking> task = {ranking,      n,
                                    s.num_greedy, s.num_random,
                                    s.seed,       HashBracket::of(n - s.num_greedy, s.num_random),
                                    w.state,      errors};
  if (s.num_greedy > 0) {
    const BracketPlan plan = BracketPlan::of(n);
    const BracketRanks ranks = BracketRanks::of(n, s.num_greedy, plan);
    const auto blocks =
        static_cast<unsigned>((plan.sample_size + kSearchThreads - 1) / kSearchThreads);
    DYNPRUNE_LAUNCH((bracket_kernel<Ranking>), std::max(blocks, 1u), kSearchThreads, 0, stream,
                    task, plan.sample_size, ranks, w.sample);
  }
  const auto tiles = static_cast<unsigned>(num_tiles(n));
  const int64_t capacity = BracketPlan::capacity(n);
  DYNPRUNE_LAUNCH((classify_kernel<Ranking>), tiles, kClassifyThreads, 0, stream, task, capacity,
                  w.bitmap, w.tiles, w.candidate_keys, w.candidate_ids);
  error = DYNPRUNE_LAUNCH_COOPERATIVE((resolve_kernel<Ranking>),
                                      static_cast<unsigned>(multiprocessor_count()), kSearchThreads,
                                      0, stream, task, capacity, w.candidate_keys, w.candidate_ids);
  if (error != cudaSuccess) return error;
  const bool lazy = s.order == Order::kRandom;
  DYNPRUNE_LAUNCH((list_kernel<Ranking>), tiles, kListThreads, 0, stream, task, w.compact, w.bitmap,
                  w.tiles, w.candidate_keys, w.candidate_ids, w.directory, lazy ? nullptr : s.ids);
  error = cudaGetLastError();
  if (error != cudaSuccess || !lazy) return error;
  return launch_shuffle(w.directory, s.k(), s.k(), s.seed, Stream::kOrder, s.ids, stream);
}

}  // namespace cuda
}  // namespace dynprune
