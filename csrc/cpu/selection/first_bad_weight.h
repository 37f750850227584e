// SPDX-License-Identifier: Apache-2.0
// The position of the first invalid weight.
#pragma once

#include <atomic>

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "shared/ranking.h"

namespace dynprune {
namespace cpu {
namespace {

// Does not stop at an invalid weight: a loop without exits can be vectorised.
template <class Ranking>
DYNPRUNE_CLONES bool all_valid(const Ranking& ranking, Range range) {
  const Ranking local = ranking;
  bool bad = false;
  for (int64_t i = range.begin; i < range.end; i++) bad |= !local.valid(local.load(i));
  return !bad;
}

// Of samples 0 <= i < n. Returns n if all are valid, as for every ranking but that by weights.
template <class Ranking>
int64_t first_bad_weight(const Ranking& ranking, int64_t n, const Parallel& parallel) {
  if constexpr (!Ranking::kChecked) {
    return n;
  } else {
    std::atomic<int64_t> first_bad{n};
    for_each_range(parallel, n, num_tasks(parallel, n, 65536), [&](int, Range range) {
      if (all_valid(ranking, range)) return;
      int64_t i = range.begin;
      while (ranking.valid(ranking.load(i))) i++;
      int64_t seen = first_bad.load();
      while (i < seen && !first_bad.compare_exchange_weak(seen, i)) {
      }
    });
    return first_bad;
  }
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
