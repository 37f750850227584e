// SPDX-License-Identifier: Apache-2.0
// The third step of a streaming selection: an exact search for the thresholds among the candidates,
// or among all samples if a bracket missed.
#pragma once

#include "kernels/selection/select_task.cuh"

namespace dynprune {
namespace cuda {

// The items of a search: every candidate or, once a bracket has missed, every sample.
template <class Ranking>
struct SearchItems {
  using Key = typename Ranking::Key;
  const SelectTask<Ranking>& task;
  typename Ranking::Hash hash;
  const Key* candidate_keys;      // [num_candidates]
  const uint32_t* candidate_ids;  // [num_candidates]
  int64_t num_candidates;
  bool missed;

  // Calls f(id, key, valid) for this block's items, whole warps together.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    const int64_t count = missed ? task.num_samples : num_candidates;
    const int64_t stride = int64_t{gridDim.x} * kSearchThreads;
#pragma unroll 1
    for (int64_t begin = int64_t{blockIdx.x} * kSearchThreads; begin < count; begin += stride) {
      const int64_t i = begin + threadIdx.x;
      int64_t id = 0;
      Key key = 0;
      if (i < count) {
        id = missed ? i : candidate_ids[i];
        if (task.has_greedy()) key = missed ? key_at(task.ranking, i, hash) : candidate_keys[i];
      }
      f(id, key, i < count);
    }
  }
};

// Returns the threshold of the `wanted` greatest words, of which num_above are above the bracket.
// If it is not in the bracket, which ends with `last`, sets *missed and searches all words.
template <class Word, class Items>
__device__ __forceinline__ Word resolve(DigitSearch* search, Interval<Word> bracket, Word last,
                                        int64_t wanted, unsigned long long num_above,
                                        const Items& items, bool* missed) {
  const auto all = static_cast<unsigned long long>(wanted);
  Interval<Word> found = bracket;
  const bool hit = !*missed && num_above < all && search->narrow(&found, all - num_above, 0, items);
  if (hit && found.low <= last) return found.low;
  *missed = true;
  found = Interval<Word>::whole();
  search->narrow(&found, all, 0, items);
  return found.low;
}

// More than one block only in a cooperative launch.
template <class Ranking>
__global__ void __launch_bounds__(kSearchThreads, 1)
    resolve_kernel(SelectTask<Ranking> task, int64_t capacity,
                   const typename Ranking::Key* candidate_keys, const uint32_t* candidate_ids) {
  using Key = typename Ranking::Key;
  DYNPRUNE_SHARED(SearchShared, shared, );
  SelectState* state = task.state;
  const uint64_t seed = task.seed.get();
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  const auto num_candidates = static_cast<int64_t>(state->num_candidates);
  DigitSearch search(&shared, gridDim.x > 1 ? &state->merged : nullptr);
  SearchItems<Ranking> items = {task,           typename Ranking::Hash(seed),
                                candidate_keys, candidate_ids,
                                num_candidates, num_candidates > capacity};

  Thresholds<Key> thresholds = {{0, 0}, 0};
  if (task.has_greedy()) {
    const auto low = state->low.template composite<Key>();
    const auto high = state->high.template composite<Key>();
    const auto visit_all = [&](const auto& visit) {
      items.for_each(
          [&](int64_t id, Key key, bool valid) { visit(valid, compose(key, tie_hash(id))); });
    };
    thresholds.greedy =
        Threshold<Key>::of(resolve(&search, Interval<composite_t<Key>>::between(low, high), high,
                                   task.num_greedy, state->num_in, visit_all, &items.missed));
  }
  if (task.has_random()) {
    // Only samples that the greedy part refused take part. If they are candidates, they may have
    // any hash, also one above the bracket.
    const auto visit_refused = [&](const auto& visit) {
      items.for_each([&](int64_t id, Key key, bool valid) {
        const bool taken = task.has_greedy() && thresholds.greedy.admits(key, id, tie_hash);
        visit(valid && !taken, explore_hash(id));
      });
    };
    thresholds.random =
        resolve(&search, Interval<uint32_t>::between(task.hash.low, 0xffffffffu), task.hash.high,
                task.num_random, state->num_in_random, visit_refused, &items.missed);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    state->greedy = {static_cast<uint64_t>(thresholds.greedy.key), thresholds.greedy.tie};
    state->random = thresholds.random;
    state->missed = items.missed;
  }
}

}  // namespace cuda
}  // namespace dynprune
