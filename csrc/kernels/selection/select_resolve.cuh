// SPDX-License-Identifier: Apache-2.0
// The exact thresholds, by a search among the candidates or, should a bracket have missed, among
// all samples.
#pragma once

#include "kernels/selection/select_task.cuh"

namespace dynprune {
namespace cuda {

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

  // Calls f(id, key, valid) for every candidate or, once a bracket has missed, for every sample;
  // whole warps together.
  bool missed = num_candidates > capacity;
  const auto each = [&](const auto& f) {
    const int64_t count = missed ? task.num_samples : num_candidates;
    const int64_t stride = int64_t{gridDim.x} * kSearchThreads;
#pragma unroll 1
    for (int64_t begin = int64_t{blockIdx.x} * kSearchThreads; begin < count; begin += stride) {
      const int64_t i = begin + threadIdx.x;
      int64_t id = 0;
      Key key = 0;
      if (i < count) {
        id = missed ? i : candidate_ids[i];
        if (task.has_greedy()) key = missed ? task.ranking.key(i, seed) : candidate_keys[i];
      }
      f(id, key, i < count);
    }
  };
  // Finds the threshold from what the bracket left open: `in` of the `wanted` are above it.
  const auto resolve = [&](auto bracket, auto last, int64_t wanted, unsigned long long in,
                           const auto& items) {
    const auto all = static_cast<unsigned long long>(wanted);
    auto found = bracket;
    const bool hit = !missed && in < all && search.narrow(&found, all - in, 0, items);
    if (hit && found.low <= last) return found.low;
    missed = true;
    found = decltype(found)::whole();
    search.narrow(&found, all, 0, items);
    return found.low;
  };

  Threshold<Key> greedy = {0, 0};
  if (task.has_greedy()) {
    const auto low = state->low.template composite<Key>();
    const auto high = state->high.template composite<Key>();
    const Composite found = resolve(
        Interval<Composite>::between(low, high), high, task.num_greedy, state->num_in,
        [&](const auto& visit) {
          each([&](int64_t id, Key key, bool valid) { visit(valid, compose(key, tie_hash(id))); });
        });
    greedy = {static_cast<Key>(found >> 32), static_cast<uint32_t>(found)};
  }
  uint32_t random = 0;
  if (task.has_random()) {
    // Of the samples that the greedy part refused. Those among the candidates may have any hash,
    // also one above the bracket.
    random = resolve(Interval<uint32_t>::between(task.hash.low, 0xffffffffu), task.hash.high,
                     task.num_random, state->num_in_random, [&](const auto& visit) {
                       each([&](int64_t id, Key key, bool valid) {
                         const bool taken = task.has_greedy() && greedy.admits(key, id, tie_hash);
                         visit(valid && !taken, explore_hash(id));
                       });
                     });
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    state->greedy = {static_cast<uint64_t>(greedy.key), greedy.tie};
    state->random = random;
    state->missed = missed;
  }
}

}  // namespace cuda
}  // namespace dynprune
