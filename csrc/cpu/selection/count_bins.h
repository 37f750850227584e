// SPDX-License-Identifier: Apache-2.0
// A histogram that several threads count.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"

namespace dynprune {
namespace cpu {
namespace {

// counts: [num_bins] out: how often bin_of(i), 0 <= i < n, was each bin; it may also be -1, none.
template <class BinOf>
void count_bins(int64_t n, int num_bins, const BinOf& bin_of, int64_t* counts,
                const Parallel& parallel) {
  std::fill_n(counts, num_bins, int64_t{0});
  const int tasks = num_tasks(parallel, n, 65536);
  // One more bin, for items in no bin: the loop has no condition.
  std::vector<std::vector<int64_t>> bins(tasks, std::vector<int64_t>(num_bins + 1));
  for_each_range(parallel, n, tasks, [&](int task, Range range) {
    int64_t* own = bins[task].data() + 1;
    const BinOf local = bin_of;
    for (int64_t i = range.begin; i < range.end; i++) own[local(i)]++;
  });
  for (const std::vector<int64_t>& own : bins) {
    for (int b = 0; b < num_bins; b++) counts[b] += own[b + 1];
  }
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
