// SPDX-License-Identifier: Apache-2.0
// Where the threshold of a selection most likely lies, from a random sample of the scores.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "cpu/selection/nth_greatest.h"
#include "shared/bracket_plan.h"
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
  // Where else the threshold can be. The number of candidates is not known in advance.
  Bracket above() const { return {high, ~composite_t<Key>{0}, 0, false}; }
  Bracket below() const { return {0, low, 0, false}; }
};

// Whether the keys leave so many samples undecided that all are compared by their hashes, in order.
constexpr bool is_many(int64_t undecided, int64_t count) { return undecided > count / 8; }

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
  const typename Ranking::Hash hash(seed);
  for (int i = 0; i < count; i++) keys[i] = key_at(local, ids[i], hash);
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

// The bracket of hashes alone, as composite keys whose lower halves are free.
inline Bracket<uint32_t> bracket_of_hashes(int64_t eligible, int64_t wanted) {
  const auto hashes = HashBracket::of(eligible, wanted, kCpuBracket);
  return {compose(hashes.low, 0), compose(hashes.high, ~uint32_t{0}), hashes.share(), false};
}

// Two members of a random sample of the composite keys, between which the wanted-th greatest of all
// n most likely lies. sample: [size], is rearranged.
template <class Key>
Bracket<Key> bracket_by_sample(composite_t<Key>* sample, int64_t size, int64_t n, int64_t wanted) {
  Bracket<Key> bracket = Bracket<Key>::everything();
  if (size < kCpuBracket.min_sample_size) return bracket;
  if (all_keys_equal<Key>(sample, size)) {
    const Key key = key_of<Key>(sample[0]);
    const auto ties = HashBracket::of(n, wanted, kCpuBracket, 5.0 * n / size);
    return {compose(key, ties.low), compose(key, ties.high), ties.share(), true};
  }

  const double sigmas = BracketPlan::of(n, kCpuBracket).sigmas;
  const auto [above, below] = BracketRanks::of(n, wanted, {size, sigmas});
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
  const int64_t size = BracketPlan::of(n, kCpuBracket).sample_size;
  if (size < kCpuBracket.min_sample_size) return Bracket<typename Ranking::Key>::everything();
  const std::unique_ptr<Packed[]> sample(new Packed[static_cast<size_t>(size)]);
  draw_sample(ranking, n, seed, size, sample.get(), parallel);
  return bracket_by_sample<typename Ranking::Key>(sample.get(), size, n, wanted);
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
