// SPDX-License-Identifier: Apache-2.0
// How a selection is laid out in device memory. The streaming path reads the scores once:
// 1. A random sample of the scores brackets the threshold.
// 2. One pass sets a bit for every sample above the bracket and lists the candidates within it.
// 3. An exact search among the candidates finds the threshold.
// 4. The bits become ids.
// If the threshold is not in the bracket, the search in step 3 visits all scores.
//
// Bytes moved per sample, at 4-byte keys and k ids: 4 + 0.25 + 24 f + 8 k / N.
//   4        the scores
//   0.25     the bitmap, written and read
//   24 f     the candidates, a share f (BracketRanks), written once and read twice
//   8 k / N  the ids
// The search visits the candidates up to 6 times, 8 f bytes each time. The second visit and later
// ones are not counted above: a cache may serve them.
#pragma once

#include <algorithm>

#include "device/compact.h"
#include "device/digit_search.h"
#include "shared/bracket_plan.h"
#include "shared/ranking.h"
#include "shared/selection.h"

namespace dynprune {
namespace cuda {

// A composite key in device memory.
struct StoredComposite {
  uint64_t key;
  uint32_t tie;

  template <class Key>
  DYNPRUNE_HD static StoredComposite of(composite_t<Key> composite) {
    return {static_cast<uint64_t>(composite >> 32), static_cast<uint32_t>(composite)};
  }
  template <class Key>
  DYNPRUNE_HD composite_t<Key> composite() const {
    return compose(static_cast<Key>(key), tie);
  }
  template <class Key>
  DYNPRUNE_HD Threshold<Key> threshold() const {
    return {static_cast<Key>(key), tie};
  }
};

// State that the launches of one streaming selection share. All zero at the start. What every block
// adds to has a cache line of its own, apart from what every block reads.
struct SelectState {
  MergedBins merged;
  alignas(kCacheLine) StoredComposite low;  // bracket of the greedy threshold, both ends candidates
  StoredComposite high;
  StoredComposite greedy;  // thresholds
  uint32_t random;
  unsigned missed;  // a bracket missed: only the thresholds are valid
  // Samples above the greedy bracket, and those below it whose explore hash is above its bracket.
  alignas(kCacheLine) unsigned long long num_in;
  alignas(kCacheLine) unsigned long long num_in_random;
  // Of either bracket. Above the capacity, not all are listed.
  alignas(kCacheLine) unsigned long long num_candidates;
  alignas(kCacheLine) unsigned bracket_ticket;
};

// State that the blocks of a selection on the chip share. It needs no initial value.
constexpr int kMaxOnChipBlocks = 1024;
struct OnChipState {
  MergedBins merged;
  unsigned block_counts[kMaxOnChipBlocks];
  uint64_t least[kMaxOnChipBlocks], greatest[kMaxOnChipBlocks];  // keys of a block
};

// Where the candidates of a tile lie in the list.
struct TileCandidates {
  uint32_t first, count;
};

// How many candidates there is room for; more than these are a bracket that missed.
inline int64_t candidate_capacity(int64_t n) {
  constexpr int64_t kFew = 1 << 16;
  const int64_t share = n / 64 * 3;
  return n < kFew ? n : share < kFew ? kFew : share;
}

// The workspace. The part that must be zero comes first.
template <class Key>
struct SelectWorkspace {
  SelectState* state;
  CompactState* compact;
  composite_t<Key>* sample;  // [sample_size]
  uint32_t* bitmap;          // [num_tiles * kWordsPerTile]
  TileCandidates* tiles;     // [num_tiles]
  Key* candidate_keys;       // [capacity]
  uint32_t* candidate_ids;   // [capacity]
  RankDirectory directory;   // random order only
  size_t zero_bytes, bytes;

  SelectWorkspace(void* base, const Selection& s) {
    char* next = static_cast<char*>(base);
    const auto take = [&](auto*& p, int64_t count) {
      p = reinterpret_cast<std::remove_reference_t<decltype(p)>>(next);
      next += (static_cast<size_t>(count) * sizeof(*p) + 255) / 256 * 256;
    };
    const int64_t n = s.num_samples, tiles_count = num_tiles(n);
    const int64_t capacity = candidate_capacity(n);
    take(state, 1);
    char* compact_state = nullptr;
    take(compact_state, static_cast<int64_t>(CompactState::bytes(n)));
    compact = reinterpret_cast<CompactState*>(compact_state);
    zero_bytes = static_cast<size_t>(next - static_cast<char*>(base));
    take(sample, BracketPlan::of(n, kCudaBracket).sample_size);
    take(bitmap, tiles_count * kWordsPerTile);
    take(tiles, tiles_count);
    take(candidate_keys, capacity);
    take(candidate_ids, capacity);
    if (s.order == Order::kRandom) {
      take(directory.before, tiles_count * kGroupsPerTile);
      take(directory.samples, RankDirectory::num_samples(s.k()));
    }
    directory.bitmap = bitmap;
    directory.num_groups = tiles_count * kGroupsPerTile;
    directory.k = s.k();
    bytes = static_cast<size_t>(next - static_cast<char*>(base));
  }
};

}  // namespace cuda
}  // namespace dynprune
