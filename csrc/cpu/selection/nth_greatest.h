// SPDX-License-Identifier: Apache-2.0
// The value of a given rank in an unordered array. Unlike std::nth_element, it moves every value
// whatever a comparison says, and picks pivots near the rank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

namespace dynprune {
namespace cpu {
namespace {

// Moves the values above the pivot to the front, and returns how many there are.
template <class T>
int64_t partition_above(T* values, int64_t count, T pivot) {
  int64_t above = 0;
  for (int64_t i = 0; i < count; i++) {
    const T value = values[i];
    values[i] = values[above];
    values[above] = value;
    above += value > pivot;
  }
  return above;
}

// Rearranges the values so that values[rank] is what it would be in descending order. No smaller
// value is before it, no greater one after it. Most values are distinct. 0 <= rank < count.
template <class T>
void nth_greatest(T* values, int64_t count, int64_t rank) {
  constexpr int kSpread = 15, kFew = 64;
  constexpr int kMaxRounds = 24;  // enough unless the values are arranged against the pivots
  for (int round = 0; round < kMaxRounds && count > kFew; round++) {
    // The pivot is one of some values, one step beyond the rank. The rank is then most likely in
    // the smaller part.
    T spread[kSpread];
    for (int i = 0; i < kSpread; i++) spread[i] = values[count * i / kSpread];
    std::sort(spread, spread + kSpread, std::greater<T>());
    const int near = static_cast<int>(rank * kSpread / count);
    const int aside = 2 * rank < count ? near + 1 : near - 1;
    const T pivot = spread[std::min(std::max(aside, 0), kSpread - 1)];
    const int64_t above = partition_above(values, count, pivot);
    if (rank < above) {
      count = above;
      continue;
    }
    // The pivot itself is among the rest: it goes first, so that every round makes progress.
    T* rest = values + above;
    std::swap(*rest, *std::find(rest, values + count, pivot));
    if (rank == above) return;
    values = rest + 1;
    count -= above + 1;
    rank -= above + 1;
  }
  std::nth_element(values, values + rank, values + count, std::greater<T>());
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
