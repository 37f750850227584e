// SPDX-License-Identifier: Apache-2.0
// The exact thresholds, by a search among the candidates or, should a bracket have missed, among
// all samples.
#pragma once

#include "kernels/select_task.cuh"

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

}  // namespace cuda
}  // namespace dynprune
