// SPDX-License-Identifier: Apache-2.0
// Exact selection by the total order on the CPU: the same digits, thresholds and order as the CUDA
// kernels (kernels/radix_select.cuh). Each thread histograms its own range; a pass reads what the
// ranking reads.
#pragma once

#include <memory>
#include <vector>

#include "cpu/parallel.h"
#include "kernels/selection.h"
#include "primitives/permutation.h"
#include "primitives/ranking.h"

namespace dynprune {
namespace cpu {

constexpr int64_t kMinSamplesPerTask = 16384;

using Histogram = std::vector<int64_t>;  // [kNumBins]

// The threshold at or above which exactly `wanted` eligible samples lie. key(id) ranks,
// eligible(id) filters.
template <class Key, class Eligible, class KeyOf>
Threshold<Key> find_threshold(int64_t n, int64_t wanted, const IdHash& tie_hash,
                              const Eligible& eligible, const KeyOf& key,
                              const Parallel& parallel) {
  const int tasks = num_tasks(parallel, n, kMinSamplesPerTask);
  std::vector<Histogram> histograms(tasks);
  Threshold<Key> threshold{0, 0};
  for (int pass = 0; pass < Digit<Key>::kNumPasses; pass++) {
    const Digit<Key> digit(pass);
    for_each_range(parallel, n, tasks, [&](int task, Range range) {
      Histogram& bins = histograms[task];
      bins.assign(kNumBins, 0);
      for (int64_t id = range.begin; id < range.end; id++) {
        if (!eligible(id)) continue;
        const int bin = digit.bin(key(id), id, tie_hash, threshold);
        if (bin >= 0) bins[bin]++;
      }
    });
    int bin = kNumBins;
    int64_t in_bin = 0;
    while (true) {
      bin--;
      in_bin = 0;
      for (const Histogram& h : histograms) in_bin += h[bin];
      if (in_bin >= wanted) break;
      wanted -= in_bin;
    }
    digit.append(static_cast<uint32_t>(bin), &threshold);
    if (in_bin == wanted) break;  // the whole bin is taken
  }
  return threshold;
}

// The ids below n that keeps(id) accepts, ascending; list has room for all of them.
template <class Keeps>
void compact(int64_t n, const Keeps& keeps, int64_t* list, const Parallel& parallel) {
  const int tasks = num_tasks(parallel, n, kMinSamplesPerTask);
  if (tasks == 1) {
    for (int64_t id = 0; id < n; id++) {
      if (keeps(id)) *list++ = id;
    }
    return;
  }
  std::vector<std::vector<int64_t>> parts(tasks);
  for_each_range(parallel, n, tasks, [&](int task, Range range) {
    for (int64_t id = range.begin; id < range.end; id++) {
      if (keeps(id)) parts[task].push_back(id);
    }
  });
  std::vector<int64_t*> starts(tasks);
  for (int t = 0; t < tasks; t++) {
    starts[t] = list;
    list += parts[t].size();
  }
  for_each_range(parallel, tasks, tasks, [&](int, Range range) {
    for (int64_t t = range.begin; t < range.end; t++) {
      if (!parts[t].empty()) memcpy(starts[t], parts[t].data(), parts[t].size() * sizeof(int64_t));
    }
  });
}

// out[j] = list[pi(j)] for j < k, pi a keyed permutation of the list's n positions; without a list,
// pi(j).
inline void shuffle(const int64_t* list, int64_t n, int64_t k, uint64_t seed, Stream stream,
                    int64_t* out, const Parallel& parallel) {
  const Permutation permutation(static_cast<uint64_t>(n), seed, stream);
  for_each_range(
      parallel, k, num_tasks(parallel, k, kMinSamplesPerTask / 4), [&](int, Range range) {
        for (int64_t j = range.begin; j < range.end; j++) {
          const int64_t element = static_cast<int64_t>(permutation(static_cast<uint64_t>(j)));
          out[j] = list != nullptr ? list[element] : element;
        }
      });
}

// Compaction into the order that is asked for.
template <class Keeps>
void emit(const Selection& s, const Keeps& keeps, const Parallel& parallel) {
  if (s.order == Order::kAscending) {
    compact(s.num_samples, keeps, s.ids, parallel);
    return;
  }
  const std::unique_ptr<int64_t[]> list(new int64_t[static_cast<size_t>(s.k())]);
  compact(s.num_samples, keeps, list.get(), parallel);
  shuffle(list.get(), s.k(), s.k(), s.seed.get(), Stream::kOrder, s.ids, parallel);
}

template <class Ranking>
void radix_select(const Ranking& ranking, const Selection& s, const Parallel& parallel) {
  using Key = typename Ranking::Key;
  if (s.k() == 0) return;
  const uint64_t seed = s.seed.get();
  const IdHash tie_hash(seed, Stream::kTie), explore_hash(seed, Stream::kExplore);
  const auto key = [&](int64_t id) { return ranking.key(id, seed); };

  Threshold<Key> greedy{0, 0};
  if (s.num_greedy > 0) {
    greedy = find_threshold<Key>(
        s.num_samples, s.num_greedy, tie_hash, [](int64_t) { return true; }, key, parallel);
  }
  const auto taken = [&](int64_t id) {
    return s.num_greedy > 0 && greedy.admits(key(id), id, tie_hash);
  };
  if (s.num_random == 0) {
    emit(s, taken, parallel);
    return;
  }
  const Threshold<uint32_t> random = find_threshold<uint32_t>(
      s.num_samples, s.num_random, tie_hash, [&](int64_t id) { return !taken(id); }, explore_hash,
      parallel);
  emit(s, [&](int64_t id) { return taken(id) || explore_hash(id) >= random.key; }, parallel);
}

}  // namespace cpu
}  // namespace dynprune
