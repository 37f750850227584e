// SPDX-License-Identifier: Apache-2.0
// Where the first weight is that no draw can be weighted by.
#pragma once

#include <atomic>

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "shared/ranking.h"

namespace dynprune {
namespace cpu {
namespace {

// To the end, without stopping at what is found: that is what vector units are good at.
template <class T>
DYNPRUNE_CLONES bool all_weights_valid(const T* weights, Range range) {
  const WeightRanking<T> ranking{weights};
  bool bad = false;
  for (int64_t i = range.begin; i < range.end; i++) bad |= !ranking.valid(i);
  return !bad;
}

// weights: [n]. Returns n if all are valid.
template <class T>
int64_t first_bad_weight(const T* weights, int64_t n, const Parallel& parallel) {
  std::atomic<int64_t> first_bad{n};
  for_each_range(parallel, n, num_tasks(parallel, n, 65536), [&](int, Range range) {
    if (all_weights_valid(weights, range)) return;
    int64_t i = range.begin;
    while (WeightRanking<T>{weights}.valid(i)) i++;
    int64_t seen = first_bad.load();
    while (i < seen && !first_bad.compare_exchange_weak(seen, i)) {
    }
  });
  return first_bad;
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
