// SPDX-License-Identifier: Apache-2.0
// The keyed permutation applied to many positions at once.
#pragma once

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "shared/permutation.h"

namespace dynprune {
namespace cpu {
namespace {

constexpr int kPermuteBlock = 1024;

// One evaluation of the Feistel network for `count` positions, round by round. The rounds of a
// single position depend on each other and would leave the vector units idle.
template <bool kInverse>
DYNPRUNE_CLONES void step_block(const Permutation& p, uint32_t* x, int count) {
  uint32_t high[kPermuteBlock], low[kPermuteBlock];
  for (int i = 0; i < count; i++) {
    high[i] = p.high_of(x[i]);
    low[i] = p.low_of(x[i]);
  }
  const int rounds = p.repeats() * Permutation::kNumRounds;
  for (int r = 0; r < rounds; r++) {
    const int step = kInverse ? rounds - 1 - r : r;
    const int round = step % Permutation::kNumRounds;
    const uint32_t key = p.key(step / Permutation::kNumRounds, round);
    if (round % 2 == 0) {
      for (int i = 0; i < count; i++) high[i] = p.next_high(high[i], low[i], key);
    } else {
      for (int i = 0; i < count; i++) low[i] = p.next_low(high[i], low[i], key);
    }
  }
  for (int i = 0; i < count; i++) x[i] = p.join<uint32_t>(high[i], low[i]);
}

// Replaces each x[i] < n by its image under the permutation of n elements, or under its inverse.
// All are evaluated together, then again those whose result is not below n.
template <bool kInverse>
void permute_block(const Permutation& p, uint64_t n, uint32_t* x, int count) {
  step_block<kInverse>(p, x, count);
  uint32_t walking[kPermuteBlock];
  int places[kPermuteBlock];
  int left = 0;
  for (int i = 0; i < count; i++) {
    places[left] = i;
    walking[left] = x[i];
    left += x[i] >= n;
  }
  while (left > 0) {
    step_block<kInverse>(p, walking, left);
    int still = 0;
    for (int i = 0; i < left; i++) {
      x[places[i]] = walking[i];
      places[still] = places[i];
      walking[still] = walking[i];
      still += walking[i] >= n;
    }
    left = still;
  }
}

// out[j] = list[pi(j)] for j < k, pi a keyed permutation of n <= 2^32 positions; without a list,
// pi(j).
inline void shuffle(const uint32_t* list, int64_t n, int64_t k, uint64_t seed, Stream stream,
                    int64_t* out, const Parallel& parallel) {
  const Permutation permutation(static_cast<uint64_t>(n), seed, stream);
  for_each_range(parallel, k, num_tasks(parallel, k, 8192), [&](int, Range range) {
    uint32_t x[kPermuteBlock];
    for (int64_t begin = range.begin; begin < range.end; begin += kPermuteBlock) {
      const int64_t left = range.end - begin;
      const int count = static_cast<int>(left < kPermuteBlock ? left : kPermuteBlock);
      for (int i = 0; i < count; i++) x[i] = static_cast<uint32_t>(begin + i);
      permute_block<false>(permutation, static_cast<uint64_t>(n), x, count);
      if (list != nullptr) {
        for (int i = 0; i < count; i++) out[begin + i] = list[x[i]];
      } else {
        for (int i = 0; i < count; i++) out[begin + i] = x[i];
      }
    }
  });
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
