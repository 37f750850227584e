// SPDX-License-Identifier: Apache-2.0
// Selection by the total order on the CPU, in one read of what the ranking reads. A random sample
// of the scores brackets the threshold; one pass classifies each sample as in (a bit in a bitmap),
// out, or candidate (a few percent); an exact selection among the candidates settles the rest. If
// the bracket misses, it is widened to everything. Then the bitmap becomes a list. The subset is
// that of the CUDA kernels: both are exact, and both use primitives/ranking.h.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "cpu/bitmap.h"
#include "cpu/clones.h"
#include "cpu/parallel.h"
#include "cpu/shuffle.h"
#include "kernels/selection.h"
#include "primitives/ranking.h"

namespace dynprune {
namespace cpu {
namespace {

constexpr int kBlock =
    2048;  // samples classified at a time: keys, hashes and flags stay in the first cache
constexpr int64_t kMinBlocksPerTask = 8;

// How large a random sample brackets the threshold, and how wide the bracket is in standard
// deviations. A miss costs a second pass with everything a candidate: 1 time in 10^8 for many
// samples, where that would take long; 1 in 2000 for few, where a narrow bracket saves more.
struct BracketPlan {
  int64_t sample_size;
  double sigmas;

  static BracketPlan of(int64_t n) {
    constexpr int64_t kFew = 1 << 20, kMaxSampleSize = 1 << 16;
    if (n < kFew) return {n / 20, 3.5};
    return {std::min(kMaxSampleSize, n / 32), 6};
  }
};

// A composite key in one word: (key, tie), greatest first.
template <class Key>
struct Pack;
template <>
struct Pack<uint32_t> {
  using type = uint64_t;
};
template <>
struct Pack<uint64_t> {
  using type = unsigned __int128;
};
template <class Key>
using packed_t = typename Pack<Key>::type;

template <class Key>
packed_t<Key> pack(Key key, uint32_t tie) {
  return static_cast<packed_t<Key>>(key) << 32 | tie;
}
template <class Key>
Key key_of(packed_t<Key> packed) {
  return static_cast<Key>(packed >> 32);
}

// Samples above `high` are in, below `low` out; those between, both ends included, are candidates.
template <class Key>
struct Bracket {
  packed_t<Key> low, high;

  static Bracket everything() { return {0, ~packed_t<Key>{0}}; }
};

template <class Ranking>
DYNPRUNE_CLONES void build_keys(const Ranking& ranking, int64_t first, int count, uint64_t seed,
                                typename Ranking::Key* keys) {
  const Ranking local = ranking;
  for (int i = 0; i < count; i++) keys[i] = local.key(first + i, seed);
}

DYNPRUNE_CLONES void hash_ids(const IdHash& hash, int64_t first, int count, uint32_t* hashes) {
  const IdHash local = hash;
  for (int i = 0; i < count; i++) hashes[i] = local(first + i);
}

DYNPRUNE_CLONES void hash_listed_ids(const IdHash& hash, const uint32_t* ids, int count,
                                     uint32_t* hashes) {
  const IdHash local = hash;
  for (int i = 0; i < count; i++) hashes[i] = local(ids[i]);
}

// flags: bit 0 in, bit 1 undecided because only the key was looked at.
template <class Key>
DYNPRUNE_CLONES void classify_by_key(const Key* keys, int count, Key low, Key high,
                                     uint8_t* flags) {
  for (int i = 0; i < count; i++) {
    const bool in = keys[i] > high, undecided = !in & (keys[i] >= low);
    flags[i] = static_cast<uint8_t>(in | undecided << 1);
  }
}

// flags: bit 0 in, bit 1 candidate.
template <class Key>
DYNPRUNE_CLONES void classify_by_tie(const Key* keys, const uint32_t* ties, int count, Key low,
                                     uint32_t low_tie, Key high, uint32_t high_tie,
                                     uint8_t* flags) {
  for (int i = 0; i < count; i++) {
    const bool in = (keys[i] > high) | ((keys[i] == high) & (ties[i] > high_tie));
    const bool reaches_low = (keys[i] > low) | ((keys[i] == low) & (ties[i] >= low_tie));
    flags[i] = static_cast<uint8_t>(in | (!in & reaches_low) << 1);
  }
}

// What one task found in its range.
template <class Key>
struct Found {
  int64_t num_in = 0;
  std::vector<packed_t<Key>> candidates;  // unique
  std::vector<uint32_t> candidate_ids;
};

// Classifies samples block by block against a bracket.
template <class Ranking>
class Classifier {
 public:
  using Key = typename Ranking::Key;

  Classifier(const Ranking& ranking, uint64_t seed, const Bracket<Key>& bracket)
      : ranking_(ranking), seed_(seed), tie_hash_(seed, Stream::kTie), bracket_(bracket) {}

  // Samples [first, first + count), count <= kBlock. excluded: their bits in another bitmap, or
  // null; a sample whose bit is set there is left out. chosen: receives the bits of those that are
  // in.
  void block(int64_t first, int count, const uint64_t* excluded, uint64_t* chosen,
             Found<Key>* found) {
    const Key low = key_of<Key>(bracket_.low), high = key_of<Key>(bracket_.high);
    build_keys(ranking_, first, count, seed_, keys_);
    classify_by_key(keys_, count, low, high, flags_);
    if (pack_words(count, excluded, chosen) > count / 8) {
      // Many equal scores: all hashes of the block at once, so that few samples are looked at one
      // by one.
      hash_ids(tie_hash_, first, count, ties_);
      classify_by_tie(keys_, ties_, count, low, static_cast<uint32_t>(bracket_.low), high,
                      static_cast<uint32_t>(bracket_.high), flags_);
      pack_words(count, excluded, chosen);
    }
    const int num_undecided = settle(first, count, chosen);
    found->candidates.insert(found->candidates.end(), packed_, packed_ + num_undecided);
    found->candidate_ids.insert(found->candidate_ids.end(), ids_, ids_ + num_undecided);
    for (int w = 0; w * 64 < count; w++) found->num_in += __builtin_popcountll(chosen[w]);
  }

 private:
  // Turns flags into words: bit 0 into chosen, bit 1 into undecided_. Returns how many are
  // undecided.
  int pack_words(int count, const uint64_t* excluded, uint64_t* chosen) {
    const int num_words = (count + 63) / 64;
    for (int i = count; i < num_words * 64; i++) flags_[i] = 0;
    int undecided = 0;
    for (int w = 0; w < num_words; w++) {
      uint64_t in = 0, open = 0;
      for (int b = 0; b < 8; b++) {
        uint64_t bytes;
        memcpy(&bytes, flags_ + w * 64 + b * 8, 8);
        in |= pack_flags(bytes) << b * 8;
        open |= pack_flags(bytes >> 1) << b * 8;
      }
      const uint64_t eligible = excluded != nullptr ? ~excluded[w] : ~uint64_t{0};
      chosen[w] = in & eligible;
      undecided_[w] = open & eligible;
      undecided += __builtin_popcountll(undecided_[w]);
    }
    return undecided;
  }

  // Compares the undecided by their whole composite keys: sets the bits of those that are in,
  // leaves the candidates in packed_ and ids_, and returns how many there are.
  int settle(int64_t first, int count, uint64_t* chosen) {
    int undecided = 0;
    for (int w = 0; w * 64 < count; w++) {
      for (uint64_t bits = undecided_[w]; bits != 0; bits &= bits - 1) {
        ids_[undecided++] = static_cast<uint32_t>(first + w * 64 + __builtin_ctzll(bits));
      }
    }
    hash_listed_ids(tie_hash_, ids_, undecided, ties_);
    int candidates = 0;
    for (int u = 0; u < undecided; u++) {
      const uint32_t id = ids_[u];
      const int64_t i = id - first;
      const packed_t<Key> packed = pack(keys_[i], ties_[u]);
      if (packed > bracket_.high) chosen[i / 64] |= uint64_t{1} << i % 64;
      packed_[candidates] = packed;
      ids_[candidates] = id;
      candidates += (packed <= bracket_.high) & (packed >= bracket_.low);
    }
    return candidates;
  }

  Ranking ranking_;
  uint64_t seed_;
  IdHash tie_hash_;
  Bracket<Key> bracket_;
  Key keys_[kBlock];
  packed_t<Key> packed_[kBlock];
  uint32_t ids_[kBlock];
  uint32_t ties_[kBlock];
  uint8_t flags_[kBlock];
  uint64_t undecided_[kBlock / 64];
};

// Two members of a random sample of the composite keys, between which the wanted-th greatest of all
// n most likely lies.
template <class Ranking>
Bracket<typename Ranking::Key> sample_bracket(const Ranking& ranking, int64_t n, int64_t wanted,
                                              uint64_t seed) {
  using Key = typename Ranking::Key;
  const KeepSubnormals keep_subnormals;
  Bracket<Key> bracket = Bracket<Key>::everything();
  const BracketPlan plan = BracketPlan::of(n);
  const int64_t size = plan.sample_size;
  if (size < 256) return bracket;
  const IdHash tie_hash(seed, Stream::kTie);
  const uint64_t base = stream_key(seed, Stream::kSample);
  std::vector<packed_t<Key>> sample(size);
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, size - begin));
    uint32_t ids[kBlock], ties[kBlock];
    for (int i = 0; i < count; i++) {
      const unsigned __int128 draw = mix64(base + begin + i);
      ids[i] = static_cast<uint32_t>(draw * static_cast<uint64_t>(n) >> 64);
    }
    hash_listed_ids(tie_hash, ids, count, ties);
    for (int i = 0; i < count; i++) sample[begin + i] = pack(ranking.key(ids[i], seed), ties[i]);
  }
  const double share = static_cast<double>(wanted) / n, expected = share * size;
  const double slack = plan.sigmas * std::sqrt(expected * (1 - share)) + 2;
  const auto above = static_cast<int64_t>(std::floor(expected - slack));
  const auto below = static_cast<int64_t>(std::ceil(expected + slack));
  auto end = sample.end();
  if (below < size) {
    end = sample.begin() + below;
    std::nth_element(sample.begin(), end, sample.end(), std::greater<>());
    bracket.low = *end;
  }
  if (above >= 0) {
    std::nth_element(sample.begin(), sample.begin() + above, end, std::greater<>());
    bracket.high = sample[above];
  }
  return bracket;
}

// The same for a hash, whose distribution is known: `wanted` of `eligible` 32-bit words.
inline Bracket<uint32_t> hash_bracket(int64_t eligible, int64_t wanted) {
  const double share = static_cast<double>(wanted) / eligible;
  const double sigmas = BracketPlan::of(eligible).sigmas;
  const double slack = (sigmas * std::sqrt(share * (1 - share) * eligible) + 2) / eligible;
  const auto threshold = [](double upper_share) {
    return static_cast<uint64_t>((1 - upper_share) * 4294967295.0) << 32;
  };
  Bracket<uint32_t> bracket = Bracket<uint32_t>::everything();
  if (share + slack < 1) bracket.low = threshold(share + slack);
  if (share - slack > 0) bracket.high = threshold(share - slack);
  return bracket;
}

// The `wanted` greatest samples that are not excluded, of which there are at least as many.
template <class Ranking>
Bitmap take_greatest(const Ranking& ranking, int64_t n, int64_t wanted, uint64_t seed,
                     const Bitmap* excluded, Bracket<typename Ranking::Key> bracket,
                     const Parallel& parallel) {
  using Key = typename Ranking::Key;
  Bitmap chosen(n);
  const int64_t num_blocks = (n + kBlock - 1) / kBlock;
  const int tasks = num_tasks(parallel, num_blocks, kMinBlocksPerTask);
  while (true) {
    std::vector<Found<Key>> found(tasks);
    for_each_range(parallel, num_blocks, tasks, [&](int task, Range blocks) {
      Classifier<Ranking> classifier(ranking, seed, bracket);
      for (int64_t b = blocks.begin; b < blocks.end; b++) {
        const int64_t first = b * kBlock, word = first / Bitmap::kWordBits;
        const int count = static_cast<int>(std::min<int64_t>(kBlock, n - first));
        classifier.block(first, count, excluded != nullptr ? excluded->words() + word : nullptr,
                         chosen.words() + word, &found[task]);
      }
    });
    int64_t missing = wanted;
    std::vector<packed_t<Key>> candidates;
    for (const Found<Key>& f : found) {
      missing -= f.num_in;
      candidates.insert(candidates.end(), f.candidates.begin(), f.candidates.end());
    }
    if (missing < 0 || missing > static_cast<int64_t>(candidates.size())) {
      bracket = Bracket<Key>::everything();
      continue;
    }
    if (missing == 0) return chosen;
    const auto last = candidates.begin() + (missing - 1);
    std::nth_element(candidates.begin(), last, candidates.end(), std::greater<>());
    for (const Found<Key>& f : found) {
      for (size_t c = 0; c < f.candidates.size(); c++) {
        if (f.candidates[c] >= *last) chosen.set(f.candidate_ids[c]);
      }
    }
    return chosen;
  }
}

// The ids of a bitmap, which has s.k() bits set, in the order that is asked for.
inline void emit(const Selection& s, const Bitmap& chosen, const Parallel& parallel) {
  if (s.order == Order::kAscending) {
    chosen.list(s.ids, parallel);
    return;
  }
  const std::unique_ptr<uint32_t[]> list(new uint32_t[static_cast<size_t>(s.k())]);
  chosen.list(list.get(), parallel);
  shuffle(list.get(), s.k(), s.k(), s.seed.get(), Stream::kOrder, s.ids, parallel);
}

template <class Ranking>
void radix_select(const Ranking& ranking, const Selection& s, const Parallel& parallel) {
  if (s.k() == 0) return;
  const int64_t n = s.num_samples;
  const uint64_t seed = s.seed.get();
  if (s.k() == n) {  // nothing to choose
    if (s.order == Order::kAscending) {
      for_each_range(parallel, n, num_tasks(parallel, n, 65536), [&](int, Range range) {
        for (int64_t id = range.begin; id < range.end; id++) s.ids[id] = id;
      });
    } else {
      shuffle(nullptr, n, n, seed, Stream::kOrder, s.ids, parallel);
    }
    return;
  }
  Bitmap chosen(n);
  if (s.num_greedy > 0) {
    const auto bracket = sample_bracket(ranking, n, s.num_greedy, seed);
    chosen = take_greatest(ranking, n, s.num_greedy, seed, nullptr, bracket, parallel);
  }
  if (s.num_random > 0) {
    const auto bracket = hash_bracket(n - s.num_greedy, s.num_random);
    chosen.merge(
        take_greatest(ExploreRanking{}, n, s.num_random, seed, &chosen, bracket, parallel));
  }
  emit(s, chosen, parallel);
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
