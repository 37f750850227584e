// SPDX-License-Identifier: Apache-2.0
// How a selection is laid out in device memory. It reads the scores once: a random sample brackets
// the threshold, one pass over the scores sets a bit for every sample above the bracket and lists
// the few candidates within it, an exact search among the candidates finds the threshold, and the
// bits become ids. Should the bracket miss, the search goes over all scores instead.
//
// Bytes that move per sample, at 4-byte keys and k ids: 4 (the scores) + 0.25 (bitmap written and
// read) + 24 f (candidates written once, read once by the search and once for the list; f is their
// share, 2 to 4 %) + 8 k / N (ids). The search goes over the candidates 2 to 6 times; they stay in
// the L2 cache of a large GPU up to some 200 million samples, above which each time costs 8 f.
#pragma once

#include <algorithm>
#include <cmath>

#include "shared/selection.h"
#include "device/compact.h"
#include "device/digit_search.h"
#include "shared/ranking.h"

namespace dynprune {
namespace cuda {

// A threshold as it lies in device memory.
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

// What the launches of one selection tell each other; all zero at the start.
struct SelectState {
  MergedBins merged;
  StoredComposite low, high;  // bracket of the greedy threshold, both ends candidates
  StoredComposite greedy;     // thresholds
  uint32_t random;
  unsigned missed;                    // a bracket missed: only the thresholds are right
  unsigned long long num_in;          // samples above the greedy bracket
  unsigned long long num_in_random;   // samples below it whose explore hash is above its bracket
  unsigned long long num_candidates;  // of either bracket; above the capacity: not all are listed
  unsigned bracket_ticket, unused;
};

// Where the candidates of a tile lie in the list.
struct TileCandidates {
  uint32_t first, count;
};

// How many samples bracket the threshold, and by how many standard deviations. More samples cost a
// 32-byte sector each, fewer make more candidates; a miss costs a few reads of all scores, once in
// 2000 brackets of few samples and once in 150,000 of many.
struct BracketPlan {
  int64_t sample_size;
  double sigmas;

  static BracketPlan of(int64_t n) {
    constexpr int64_t kMany = 1 << 22, kMaxSampleSize = 1 << 15;
    const int64_t size = n / 128;
    return {size < kMaxSampleSize ? size : kMaxSampleSize, n < kMany ? 3.5 : 4.5};
  }
  static int64_t capacity(int64_t n) {
    constexpr int64_t kFew = 1 << 16;
    const int64_t share = n / 64 * 3;
    return n < kFew ? n : share < kFew ? kFew : share;
  }
};

// Which members of the sample, counted from the greatest, are the bracket's ends.
struct BracketRanks {
  int64_t above, below;  // 0-based; above < 0 and below >= sample_size: the bracket is open

  static BracketRanks of(int64_t n, int64_t wanted, const BracketPlan& plan) {
    const double share = static_cast<double>(wanted) / static_cast<double>(n);
    const double expected = share * static_cast<double>(plan.sample_size);
    const double slack = plan.sigmas * std::sqrt(expected * (1 - share)) + 2;
    return {static_cast<int64_t>(std::floor(expected - slack)),
            static_cast<int64_t>(std::ceil(expected + slack))};
  }
};

// The bracket of a hash, whose distribution is known: `wanted` of `eligible` 32-bit words.
struct HashBracket {
  uint32_t low, high;

  static HashBracket of(int64_t eligible, int64_t wanted) {
    HashBracket bracket{0, 0xffffffffu};
    if (wanted == 0) return bracket;
    const double share = static_cast<double>(wanted) / static_cast<double>(eligible);
    const double deviation = std::sqrt(share * (1 - share) * static_cast<double>(eligible));
    const double slack =
        (BracketPlan::of(eligible).sigmas * deviation + 2) / static_cast<double>(eligible);
    const auto word = [](double upper_share) {
      return static_cast<uint32_t>((1 - upper_share) * 4294967295.0);
    };
    if (share + slack < 1) bracket.low = word(share + slack);
    if (share - slack > 0) bracket.high = word(share - slack);
    return bracket;
  }
};

// The workspace: what must be zero comes first.
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
    const int64_t capacity = BracketPlan::capacity(n);
    take(state, 1);
    char* compact_state = nullptr;
    take(compact_state, static_cast<int64_t>(CompactState::bytes(n)));
    compact = reinterpret_cast<CompactState*>(compact_state);
    zero_bytes = static_cast<size_t>(next - static_cast<char*>(base));
    take(sample, BracketPlan::of(n).sample_size);
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
