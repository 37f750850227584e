// SPDX-License-Identifier: Apache-2.0
// Selection by the total order on the CPU, in one read of the tensors that the ranking reads.
// 1. A random sample of the scores brackets the threshold (bracket.h).
// 2. One pass classifies each sample as in, out, or candidate (classify.h). A few percent are
//    candidates.
// 3. An exact selection among the candidates finds the threshold.
// 4. The bitmap of the subset becomes a list.
// If the threshold is not in the bracket, a second pass searches the side where it is. The subset
// is that of the CUDA kernels: both are exact, and both use shared/ranking.h.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/selection/bitmap.h"
#include "cpu/selection/bracket.h"
#include "cpu/selection/classify.h"
#include "cpu/selection/nth_greatest.h"
#include "cpu/selection/shuffle.h"
#include "shared/ranking.h"
#include "shared/selection.h"

namespace dynprune {
namespace cpu {
namespace {

// The `wanted` greatest samples that are not excluded, of which there are at least as many.
template <class Ranking>
Bitmap take_greatest(const Ranking& ranking, int64_t n, int64_t wanted, uint64_t seed,
                     const Bitmap* excluded, Bracket<typename Ranking::Key> bracket,
                     const Parallel& parallel) {
  using Key = typename Ranking::Key;
  using Packed = composite_t<Key>;
  Bitmap chosen(n);
  const uint64_t* others = excluded != nullptr ? excluded->words() : nullptr;
  while (true) {
    const std::vector<Classified<Key>> found =
        classify(ranking, n, seed, bracket, n, others, chosen.words(), parallel);
    int64_t missing = wanted, num_candidates = 0;
    for (const Classified<Key>& f : found) {
      missing -= f.num_in;
      num_candidates += f.num_candidates;
    }
    if (missing < 0 || missing > num_candidates) {
      bracket = missing < 0 ? bracket.above() : bracket.below();
      continue;
    }
    if (missing == 0) return chosen;
    const std::unique_ptr<Packed[]> candidates(new Packed[static_cast<size_t>(num_candidates)]);
    Packed* end = candidates.get();
    for (const Classified<Key>& f : found) {
      end = std::copy_n(f.candidates.get(), f.num_candidates, end);
    }
    nth_greatest(candidates.get(), num_candidates, missing - 1);
    const Packed last = candidates[missing - 1];
    for (const Classified<Key>& f : found) {
      for (int64_t c = 0; c < f.num_candidates; c++) {
        if (f.candidates[c] >= last) chosen.set(f.ids[c]);
      }
    }
    return chosen;
  }
}

// `wanted` samples uniformly from those that are not excluded, of which there are `eligible`.
inline Bitmap explore(int64_t n, int64_t eligible, int64_t wanted, uint64_t seed,
                      const Bitmap* excluded, const Parallel& parallel) {
  return take_greatest(ExploreRanking{}, n, wanted, seed, excluded,
                       bracket_of_hashes(eligible, wanted), parallel);
}

// Writes the ids of a bitmap, which has s.k() bits set, in the order of the request.
inline void emit(const Selection& s, const Bitmap& chosen, const Parallel& parallel) {
  if (s.order == Order::kAscending) {
    chosen.list(s.ids, parallel);
    return;
  }
  const std::unique_ptr<uint32_t[]> list(new uint32_t[static_cast<size_t>(s.k())]);
  chosen.list(list.get(), parallel);
  shuffle(list.get(), s.k(), s.k(), s.seed.get(), Stream::kOrder, s.ids, parallel);
}

template <class Ranking>
void select_ranked(const Ranking& ranking, const Selection& s, const Parallel& parallel) {
  if (s.k() == 0) return;
  const int64_t n = s.num_samples;
  const uint64_t seed = s.seed.get();
  if (s.k() == n) {  // nothing to choose
    if (s.order == Order::kAscending) {
      for_each_range(parallel, n, num_tasks(parallel, n, 65536), [&](int, Range range) {
        for (int64_t id = range.begin; id < range.end; id++) s.ids[id] = id;
      });
    } else {
      shuffle(nullptr, n, n, seed, Stream::kOrder, s.ids, parallel);
    }
    return;
  }
  if (s.num_greedy == 0) {
    emit(s, explore(n, n, s.num_random, seed, nullptr, parallel), parallel);
    return;
  }
  const auto bracket = sample_bracket(ranking, n, s.num_greedy, seed, parallel);
  Bitmap chosen = take_greatest(ranking, n, s.num_greedy, seed, nullptr, bracket, parallel);
  if (s.num_random > 0) {
    chosen.merge(explore(n, n - s.num_greedy, s.num_random, seed, &chosen, parallel));
  }
  emit(s, chosen, parallel);
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
