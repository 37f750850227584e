// SPDX-License-Identifier: Apache-2.0
// Where the threshold of a selection most likely lies, from a random sample of the scores.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "cpu/clones.h"
#include "cpu/selection/nth_greatest.h"
#include "cpu/parallel.h"
#include "shared/ranking.h"

namespace dynprune {
namespace cpu {
namespace {

template <class Key>
Key key_of(composite_t<Key> packed) {
  return static_cast<Key>(packed >> 32);
}

// Samples above `high` are in, below `low` out; those between, both ends included, are candidates.
template <class Key>
struct Bracket {
  composite_t<Key> low, high;
  double candidate_share;  // how many of all samples are candidates, roughly
  bool many_equal;         // the keys alone leave many undecided

  static Bracket everything() { return {0, ~composite_t<Key>{0}, 1, false}; }
  // Where else the threshold can be; how many candidates there are is learnt on the way.
  Bracket above() const { return {high, ~composite_t<Key>{0}, 0, false}; }
  Bracket below() const { return {0, low, 0, false}; }
};

// Whether so many samples are undecided by their keys that all are better compared by their hashes
// too.
constexpr bool is_many(int64_t undecided, int64_t count) { return undecided > count / 8; }

// How large a random sample brackets the threshold, and how wide the bracket is in standard
// deviations. n^(2/3) balances the work on the sample with that on the candidates it leaves. A miss
// costs a second pass: 1 time in 10^8 for many samples, where that would take long; 1 in 200 for
// few, where a narrow bracket saves more.
struct BracketPlan {
  static constexpr int64_t kMinSampleSize = 256;  // fewer tell nothing
  int64_t sample_size;
  double sigmas;

  static BracketPlan of(int64_t n) {
    constexpr int64_t kMany = 1 << 20, kMaxSampleSize = 1 << 16;
    const auto size = static_cast<int64_t>(std::pow(static_cast<double>(n), 2.0 / 3));
    return {std::min(kMaxSampleSize, size), n < kMany ? 2.8 : 6};
  }
};

// The hash that breaks ties between the samples of a ranking, by what the ranking calls them.
template <class Ranking>
IdHash tie_hash_of(const Ranking&, uint64_t seed) {
  return {seed, Stream::kTie};
}

template <class Hash>
DYNPRUNE_CLONES void hash_listed_ids(const Hash& hash, const uint32_t* ids, int count,
                                     uint32_t* hashes) {
  const Hash local = hash;
  for (int i = 0; i < count; i++) hashes[i] = local(ids[i]);
}

template <class Ranking>
DYNPRUNE_CLONES void build_listed_keys(const Ranking& ranking, const uint32_t* ids, int count,
                                       uint64_t seed, typename Ranking::Key* keys) {
  const Ranking local = ranking;
  for (int i = 0; i < count; i++) keys[i] = local.key(ids[i], seed);
}

// How many composite keys have a key in [low, high].
template <class Key>
DYNPRUNE_CLONES int64_t count_keys(const composite_t<Key>* packed, int64_t count, Key low,
                                   Key high) {
  int64_t inside = 0;
  for (int64_t i = 0; i < count; i++) {
    const Key key = key_of<Key>(packed[i]);
    inside += (key >= low) & (key <= high);
  }
  return inside;
}

template <class Key>
bool all_keys_equal(const composite_t<Key>* packed, int64_t count) {
  return count_keys<Key>(packed, count, key_of<Key>(packed[0]), key_of<Key>(packed[0])) == count;
}

// ids: the draws first .. first + count of all n; n <= 2^32, so that the products fit.
DYNPRUNE_CLONES void draw_ids(const IdHash& hash, int64_t first, int count, uint64_t n,
                              uint32_t* ids) {
  const IdHash local = hash;
  const uint32_t start = static_cast<uint32_t>(first);
  for (int i = 0; i < count; i++) {
    ids[i] = static_cast<uint32_t>(local(start + static_cast<uint32_t>(i)) * n >> 32);
  }
}

// The composite keys of `size` random samples, some perhaps twice.
template <class Ranking>
void draw_sample(const Ranking& ranking, int64_t n, uint64_t seed, int64_t size,
                 composite_t<typename Ranking::Key>* sample, const Parallel& parallel) {
  constexpr int kDrawBlock = 512;
  const IdHash tie_hash(seed, Stream::kTie), draw_hash(seed, Stream::kSample);
  for_each_range(parallel, size, num_tasks(parallel, size, 8192), [&](int, Range range) {
    uint32_t ids[kDrawBlock], ties[kDrawBlock];
    typename Ranking::Key keys[kDrawBlock];
    for (int64_t begin = range.begin; begin < range.end; begin += kDrawBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kDrawBlock, range.end - begin));
      draw_ids(draw_hash, begin, count, static_cast<uint64_t>(n), ids);
      hash_listed_ids(tie_hash, ids, count, ties);
      build_listed_keys(ranking, ids, count, seed, keys);
      for (int i = 0; i < count; i++) sample[begin + i] = compose(keys[i], ties[i]);
    }
  });
}

// The bracket of the wanted-th greatest of `eligible` hashes, whose distribution is known, give or
// take `unknown` that may be above or below them all.
struct HashBracket {
  uint32_t low, high;
  double candidate_share;

  HashBracket(int64_t eligible, int64_t wanted, double unknown) {
    const double share = static_cast<double>(wanted) / eligible;
    const double sigmas = BracketPlan::of(eligible).sigmas;
    const double sigma = std::sqrt(share * (1 - share) * eligible);
    const double slack = (sigmas * sigma + unknown + 2) / eligible;
    const auto hash_above = [](double upper_share) {
      const double inside = std::min(std::max(upper_share, 0.0), 1.0);
      return static_cast<uint32_t>((1 - inside) * 4294967295.0);
    };
    low = hash_above(share + slack);
    high = hash_above(share - slack);
    candidate_share = std::min(1.0, 2 * slack);
  }
};

// Two members of a random sample of the composite keys, between which the wanted-th greatest of all
// n most likely lies. sample: [size], is rearranged.
template <class Key>
Bracket<Key> bracket_by_sample(composite_t<Key>* sample, int64_t size, int64_t n, int64_t wanted) {
  Bracket<Key> bracket = Bracket<Key>::everything();
  if (size < BracketPlan::kMinSampleSize) return bracket;
  if (all_keys_equal<Key>(sample, size)) {
    const Key key = key_of<Key>(sample[0]);
    const HashBracket ties(n, wanted, 5.0 * n / size);
    return {compose(key, ties.low), compose(key, ties.high), ties.candidate_share, true};
  }

  const double share = static_cast<double>(wanted) / n, expected = share * size;
  const double slack = BracketPlan::of(n).sigmas * std::sqrt(expected * (1 - share)) + 2;
  const auto above = static_cast<int64_t>(std::floor(expected - slack));
  const auto below = static_cast<int64_t>(std::ceil(expected + slack));
  int64_t end = size;
  if (below < size) {
    end = below;
    nth_greatest(sample, size, below);
    bracket.low = sample[below];
  }
  if (above >= 0) {
    nth_greatest(sample, end, above);
    bracket.high = sample[above];
  }
  bracket.candidate_share = static_cast<double>(end - std::max<int64_t>(above, 0)) / size;
  const int64_t undecided =
      count_keys<Key>(sample, size, key_of<Key>(bracket.low), key_of<Key>(bracket.high));
  bracket.many_equal = is_many(undecided, size);
  return bracket;
}

template <class Ranking>
Bracket<typename Ranking::Key> sample_bracket(const Ranking& ranking, int64_t n, int64_t wanted,
                                              uint64_t seed, const Parallel& parallel) {
  using Packed = composite_t<typename Ranking::Key>;
  const int64_t size = BracketPlan::of(n).sample_size;
  if (size < BracketPlan::kMinSampleSize) return Bracket<typename Ranking::Key>::everything();
  const std::unique_ptr<Packed[]> sample(new Packed[static_cast<size_t>(size)]);
  draw_sample(ranking, n, seed, size, sample.get(), parallel);
  return bracket_by_sample<typename Ranking::Key>(sample.get(), size, n, wanted);
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
