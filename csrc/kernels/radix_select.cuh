// SPDX-License-Identifier: Apache-2.0
// Exact selection by the total order, for any ranking: histogram the composite key digit by digit
// (11 bits a pass), narrow the threshold in the last block of each pass, then compact the ids at or
// above it and put them in order. No host synchronisation; a pass that is not needed ends at its
// first load. Each pass that runs reads what the ranking reads; the workspace is 8 bytes per tile
// of 2048 samples, 8 k for random order, 33 KB.
#pragma once

#include "kernels/selection.h"
#include "kernels/shuffle.cuh"
#include "primitives/compact.h"
#include "primitives/device_errors.h"
#include "primitives/ranking.h"

namespace dynprune {
namespace cuda {

constexpr int kHistogramThreads = 512;
// Left to itself, ptxas aims at 32 registers and spills for it on some architectures.
constexpr int kHistogramBlocksPerSm = 3;

// Of one threshold search; all zero before the first pass.
struct SearchState {
  uint64_t key;  // digits chosen so far
  uint32_t tie;
  unsigned done;        // the threshold is exact: later passes have nothing to do
  long long remaining;  // how many samples are still to be found below the digits chosen so far
  unsigned ticket;
  unsigned unused;
  unsigned long long bins[kNumBins];

  template <class Key>
  DYNPRUNE_HD Threshold<Key> threshold() const {
    return {static_cast<Key>(key), tie};
  }
};

// Where things lie in the workspace: what must be zero comes first.
struct SelectionWorkspace {
  SearchState* greedy;
  SearchState* random;
  CompactState* compact;
  int64_t* list;  // the ids in ascending order, before they are shuffled

  static size_t zero_bytes(const Selection& s) {
    return 2 * sizeof(SearchState) + CompactState::bytes(s.num_samples);
  }
  static size_t bytes(const Selection& s) {
    return zero_bytes(s) + (s.order == Order::kRandom ? static_cast<size_t>(s.k()) * 8 : 0);
  }
  SelectionWorkspace(void* base, const Selection& s) {
    char* p = static_cast<char*>(base);
    greedy = reinterpret_cast<SearchState*>(p);
    random = greedy + 1;
    compact = reinterpret_cast<CompactState*>(random + 1);
    list = s.order == Order::kRandom ? reinterpret_cast<int64_t*>(p + zero_bytes(s)) : s.ids;
  }
};

// The greedy search ranks every sample; bad data is reported once, by the first pass.
template <class Ranking>
struct GreedySearch {
  using Key = typename Ranking::Key;
  static constexpr bool kUnique = false;
  Ranking ranking;
  ErrorRecord* errors;  // [kNumDataErrors], used if the ranking is checked

  __device__ void begin(uint64_t) {}
  __device__ void check(int64_t id) const {
    if constexpr (Ranking::kChecked) {
      if (!ranking.valid(id)) record_error(errors, DataError::kWeight, id);
    }
  }
  __device__ bool eligible(int64_t) const { return true; }
  __device__ Key key(int64_t id, uint64_t seed) const { return ranking.key(id, seed); }
};

// The random search ranks what the greedy one left over, by a hash of its own: a uniform draw.
template <class Ranking>
struct RandomSearch {
  using Key = uint32_t;
  static constexpr bool kUnique = true;
  Ranking ranking;
  const SearchState* greedy;  // null: nothing was taken
  uint64_t seed;
  Threshold<typename Ranking::Key> taken;

  __device__ void begin(uint64_t seed_value) {
    seed = seed_value;
    if (greedy != nullptr) taken = greedy->template threshold<typename Ranking::Key>();
  }
  __device__ void check(int64_t) const {}
  __device__ bool eligible(int64_t id) const {
    return greedy == nullptr ||
           !taken.admits(ranking.key(id, seed), id, IdHash(seed, Stream::kTie));
  }
  __device__ Key key(int64_t id, uint64_t) const { return IdHash(seed, Stream::kExplore)(id); }
};

// In the last block: finds the bin in which the remaining-th greatest sample lies, and clears the
// histogram.
template <class Key>
__device__ void choose_digit(const Digit<Key>& digit, long long remaining, SearchState* state) {
  constexpr int kBinsPerThread = kNumBins / kHistogramThreads;
  DYNPRUNE_SHARED(long long, warp_totals, [kHistogramThreads / kWarpSize]);
  long long counts[kBinsPerThread], sum = 0;
  const int top =
      kNumBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;  // greatest bins first
  for (int j = 0; j < kBinsPerThread; j++) {
    counts[j] = static_cast<long long>(state->bins[top - j]);
    state->bins[top - j] = 0;
    sum += counts[j];
  }
  long long above = block_exclusive_sum(sum, warp_totals);
  for (int j = 0; j < kBinsPerThread; j++) {
    if (above < remaining && remaining <= above + counts[j]) {
      Threshold<Key> threshold = state->template threshold<Key>();
      digit.append(static_cast<uint32_t>(top - j), &threshold);
      state->key = threshold.key;
      state->tie = threshold.tie;
      state->remaining = remaining - above;
      state->done = counts[j] == remaining - above;  // the whole bin is taken
      state->ticket = 0;
    }
    above += counts[j];
  }
}

template <class Search>
__global__ void __launch_bounds__(kHistogramThreads, kHistogramBlocksPerSm)
    histogram_kernel(Search search, int64_t n, Seed seed, int pass, int64_t wanted,
                     SearchState* state) {
  using Key = typename Search::Key;
  DYNPRUNE_SHARED(unsigned, bins, [kNumBins]);
  if (state->done != 0) return;
  const long long remaining = pass == 0 ? wanted : state->remaining;
  const Threshold<Key> so_far = state->template threshold<Key>();
  const Digit<Key> digit(pass);
  const uint64_t seed_value = seed.get();
  const IdHash tie_hash(seed_value, Stream::kTie);
  search.begin(seed_value);

  for (int b = threadIdx.x; b < kNumBins; b += kHistogramThreads) bins[b] = 0;
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * kHistogramThreads;
  for (int64_t id = int64_t{blockIdx.x} * kHistogramThreads + threadIdx.x; id < n; id += stride) {
    if (pass == 0) search.check(id);
    if (!search.eligible(id)) continue;
    const int bin = digit.bin(search.key(id, seed_value), id, tie_hash, so_far);
    if (bin >= 0) atomicAdd(&bins[bin], 1u);
  }
  __syncthreads();
  for (int b = threadIdx.x; b < kNumBins; b += kHistogramThreads) {
    if (bins[b] != 0) atomicAdd(&state->bins[b], static_cast<unsigned long long>(bins[b]));
  }
  if (last_block_here(&state->ticket)) choose_digit(digit, remaining, state);
}

template <class Search>
cudaError_t launch_search(const Search& search, const Selection& s, int64_t wanted,
                          SearchState* state, cudaStream_t stream) {
  const int64_t blocks = (s.num_samples + kHistogramThreads - 1) / kHistogramThreads;
  const int64_t resident = int64_t{multiprocessor_count()} * 4;
  const unsigned grid = static_cast<unsigned>(blocks < resident ? blocks : resident);
  // A search by a hash without equals is over when its key's digits are.
  const int passes = Search::kUnique ? Digit<typename Search::Key>::kKeyPasses
                                     : Digit<typename Search::Key>::kNumPasses;
  for (int pass = 0; pass < passes; pass++) {
    DYNPRUNE_LAUNCH((histogram_kernel<Search>), grid, kHistogramThreads, 0, stream, search,
                    s.num_samples, s.seed, pass, wanted, state);
  }
  return cudaGetLastError();
}

// Is a sample in the subset, now that the thresholds are known?
template <class Ranking>
struct Selected {
  Ranking ranking;
  Seed seed;
  const SearchState* greedy;  // null: that part of the subset is empty
  const SearchState* random;

  struct Keeps {
    Ranking ranking;
    uint64_t seed;
    bool has_greedy, has_random;
    Threshold<typename Ranking::Key> greedy;
    Threshold<uint32_t> random;

    __device__ bool operator()(int64_t id) const {
      if (has_greedy && greedy.admits(ranking.key(id, seed), id, IdHash(seed, Stream::kTie)))
        return true;
      return has_random && IdHash(seed, Stream::kExplore)(id) >= random.key;
    }
  };
  __device__ Keeps begin() const {
    Keeps keeps{ranking, seed.get(), greedy != nullptr, random != nullptr, {0, 0}, {0, 0}};
    if (greedy != nullptr) keeps.greedy = greedy->template threshold<typename Ranking::Key>();
    if (random != nullptr) keeps.random = random->template threshold<uint32_t>();
    return keeps;
  }
};

// workspace: SelectionWorkspace::bytes(s) bytes, 8-byte aligned.
template <class Ranking>
cudaError_t radix_select(const Ranking& ranking, const Selection& s, void* workspace,
                         ErrorRecord* errors, cudaStream_t stream) {
  if (s.k() == 0) return cudaSuccess;
  const SelectionWorkspace w(workspace, s);
  cudaError_t error = cudaMemsetAsync(workspace, 0, SelectionWorkspace::zero_bytes(s), stream);
  if (error != cudaSuccess) return error;
  const SearchState* greedy = s.num_greedy > 0 ? w.greedy : nullptr;
  const SearchState* random = s.num_random > 0 ? w.random : nullptr;
  if (greedy != nullptr) {
    error =
        launch_search(GreedySearch<Ranking>{ranking, errors}, s, s.num_greedy, w.greedy, stream);
    if (error != cudaSuccess) return error;
  }
  if (random != nullptr) {
    RandomSearch<Ranking> search{ranking, greedy, 0, {0, 0}};
    error = launch_search(search, s, s.num_random, w.random, stream);
    if (error != cudaSuccess) return error;
  }
  error = launch_compact(Selected<Ranking>{ranking, s.seed, greedy, random}, s.num_samples,
                         w.compact, w.list, stream);
  if (error != cudaSuccess || s.order == Order::kAscending) return error;
  return launch_shuffle(w.list, s.k(), s.k(), s.seed, Stream::kOrder, s.ids, stream);
}

}  // namespace cuda
}  // namespace dynprune
