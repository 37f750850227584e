// SPDX-License-Identifier: Apache-2.0
// Samples against a bracket, block by block: in (a bit in a bitmap), out, or candidate.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/clones.h"
#include "cpu/selection/bitmap.h"
#include "cpu/selection/bracket.h"
#include "shared/ranking.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace dynprune {
namespace cpu {
namespace {

// Samples classified at a time.
constexpr int kBlock = 2048;
constexpr int kBlockWords = kBlock / kWordBits;

// The state of a sample: above the bracket, in it, or below it. States are as wide as most keys, so
// that vector units need not change widths. Saturation makes bytes 0xff, 0x7f, 0 of them.
constexpr int32_t kAbove = -1, kInside = 0x7f, kBelow = 0;

// Vector units compare signed integers.
template <class Word>
bool is_greater(Word a, Word b) {
  constexpr Word kTop = Word{1} << (8 * sizeof(Word) - 1);
  using Signed = std::make_signed_t<Word>;
  return static_cast<Signed>(a ^ kTop) > static_cast<Signed>(b ^ kTop);
}

// Builds the keys, and compares by them alone: equal to a bound's key is inside.
template <class Ranking, class Key>
DYNPRUNE_CLONES void classify_by_key(const Ranking& ranking, int64_t first, int count,
                                     uint64_t seed, Key low, Key high, Key* keys, int32_t* states) {
  const Ranking local = ranking;
  const typename Ranking::Hash hash(seed);
  for (int i = 0; i < count; i++) {
    const Key key = key_at(local, first + i, hash);
    keys[i] = key;
    states[i] = is_greater(key, high) ? kAbove : (is_greater(low, key) ? kBelow : kInside);
  }
}

// The same by the whole composite keys.
template <class Key, class Hash>
DYNPRUNE_CLONES void classify_by_tie(const Key* keys, const Hash& tie_hash, int64_t first,
                                     int count, composite_t<Key> low, composite_t<Key> high,
                                     int32_t* states) {
  const Hash hash = tie_hash;
  const Key low_key = key_of<Key>(low), high_key = key_of<Key>(high);
  const auto low_tie = static_cast<uint32_t>(low), high_tie = static_cast<uint32_t>(high);
  const auto start = static_cast<uint32_t>(first);
  for (int i = 0; i < count; i++) {
    const Key key = keys[i];
    const uint32_t tie = hash(start + static_cast<uint32_t>(i));
    const bool above = is_greater(key, high_key) | ((key == high_key) & is_greater(tie, high_tie));
    const bool below = is_greater(low_key, key) | ((key == low_key) & is_greater(low_tie, tie));
    states[i] = above ? kAbove : (below ? kBelow : kInside);
  }
}

// The states of 64 samples as two words: bit i of each is set if sample i is above, or inside.
inline void pack_word(const int32_t* states, uint64_t* above, uint64_t* inside) {
  uint64_t high = 0, reaches = 0;
#if defined(__SSE2__)
  for (int b = 0; b < 64; b += 16) {
    const __m128i* four = reinterpret_cast<const __m128i*>(states + b);
    const __m128i first = _mm_packs_epi32(_mm_loadu_si128(four), _mm_loadu_si128(four + 1));
    const __m128i second = _mm_packs_epi32(_mm_loadu_si128(four + 2), _mm_loadu_si128(four + 3));
    const __m128i bytes = _mm_packs_epi16(first, second);
    high |= static_cast<uint64_t>(_mm_movemask_epi8(bytes)) << b;
    reaches |= static_cast<uint64_t>(_mm_movemask_epi8(_mm_add_epi8(bytes, bytes))) << b;
  }
#else
  for (int b = 0; b < 64; b++) {
    high |= static_cast<uint64_t>(states[b] < 0) << b;
    reaches |= static_cast<uint64_t>(states[b] != 0) << b;
  }
#endif
  *above = high;
  *inside = reaches & ~high;
}

// Packs the states of a block into words: which samples are in, and which are undecided. Samples
// whose bit is set in excluded, which may be null, are neither. Returns how many are undecided.
DYNPRUNE_CLONES int pack_words(const int32_t* states, int num_words, const uint64_t* excluded,
                               uint64_t* chosen, uint64_t* undecided) {
  int count = 0;
  for (int w = 0; w < num_words; w++) {
    pack_word(states + w * kWordBits, chosen + w, undecided + w);
    if (excluded != nullptr) {
      chosen[w] &= ~excluded[w];
      undecided[w] &= ~excluded[w];
    }
    count += __builtin_popcountll(undecided[w]);
  }
  return count;
}

// ids: has room for kWordBits more than there are.
DYNPRUNE_CLONES void list_undecided(const uint64_t* undecided, int num_words, int64_t first,
                                    uint32_t* ids) {
  for (int w = 0; w < num_words; w++) {
    ids = append_set_bits(undecided[w], first + w * kWordBits, ids);
  }
}

// The result of one task: the composite keys of its candidates, which are unique, and their ids.
template <class Key>
struct Classified {
  int64_t num_in = 0;
  int64_t num_candidates = 0;
  std::unique_ptr<composite_t<Key>[]> candidates;
  std::unique_ptr<uint32_t[]> ids;

  // Room for `more` candidates beyond those that are there.
  void reserve(int64_t more) {
    const int64_t needed = num_candidates + more;
    if (needed <= capacity_) return;
    capacity_ = std::max(needed, 2 * capacity_);
    std::unique_ptr<composite_t<Key>[]> larger(
        new composite_t<Key>[static_cast<size_t>(capacity_)]);
    std::unique_ptr<uint32_t[]> larger_ids(new uint32_t[static_cast<size_t>(capacity_)]);
    std::copy_n(candidates.get(), num_candidates, larger.get());
    std::copy_n(ids.get(), num_candidates, larger_ids.get());
    candidates = std::move(larger);
    ids = std::move(larger_ids);
  }

 private:
  int64_t capacity_ = 0;
};

template <class Ranking>
class Classifier {
 public:
  using Key = typename Ranking::Key;

  Classifier(const Ranking& ranking, uint64_t seed, const Bracket<Key>& bracket)
      : ranking_(ranking), seed_(seed), tie_hash_(tie_hash_of(ranking, seed)), bracket_(bracket) {}

  // Classifies samples [first, first + count), count <= kBlock. excluded: the bits of samples that
  // do not take part, or null. chosen: out, the bits of those that are in.
  void block(int64_t first, int count, const uint64_t* excluded, uint64_t* chosen,
             Classified<Key>* found) {
    const int num_words = static_cast<int>((count + kWordBits - 1) / kWordBits);
    std::fill(states_ + count, states_ + num_words * kWordBits, kBelow);
    classify_by_key(ranking_, first, count, seed_, key_of<Key>(bracket_.low),
                    key_of<Key>(bracket_.high), keys_, states_);
    int undecided = 0;
    if (!bracket_.many_equal) {
      undecided = pack_words(states_, num_words, excluded, chosen, undecided_);
    }
    if (bracket_.many_equal || is_many(undecided, count)) {
      // By all hashes of the block at once, so that few samples are looked at one by one.
      classify_by_tie(keys_, tie_hash_, first, count, bracket_.low, bracket_.high, states_);
      undecided = pack_words(states_, num_words, excluded, chosen, undecided_);
    }
    search_undecided(first, undecided, num_words, chosen, found);
    found->num_in += count_set_bits(chosen, num_words);
  }

 private:
  // Compares the undecided by their whole composite keys: sets the bits of those that are in, and
  // appends the candidates to what was found.
  void search_undecided(int64_t first, int undecided, int num_words, uint64_t* chosen,
                        Classified<Key>* found) {
    if (undecided == 0) return;
    list_undecided(undecided_, num_words, first, ids_);
    hash_listed_ids(tie_hash_, ids_, undecided, ties_);
    found->reserve(undecided);
    composite_t<Key>* candidates = found->candidates.get();
    uint32_t* ids = found->ids.get();
    int64_t end = found->num_candidates;
    for (int u = 0; u < undecided; u++) {
      const int64_t i = ids_[u] - first;
      const composite_t<Key> packed = compose(keys_[i], ties_[u]);
      if (packed > bracket_.high) chosen[i / kWordBits] |= uint64_t{1} << i % kWordBits;
      candidates[end] = packed;
      ids[end] = ids_[u];
      end += (packed <= bracket_.high) & (packed >= bracket_.low);
    }
    found->num_candidates = end;
  }

  Ranking ranking_;
  uint64_t seed_;
  decltype(tie_hash_of(std::declval<Ranking>(), uint64_t{})) tie_hash_;
  Bracket<Key> bracket_;
  Key keys_[kBlock];
  uint32_t ids_[kBlock + kWordBits];
  uint32_t ties_[kBlock];
  int32_t states_[kBlock];
  uint64_t undecided_[kBlockWords];
};

// A thread gets at least so many blocks.
constexpr int64_t kMinBlocksPerTask = 12;

// Compares samples [0, n) with a bracket. Returns the result of each task. chosen: out, the bits of
// those that are in. excluded, chosen: [words of n bits], excluded may be null. A task that finds
// more candidates than `enough` stops, and does not write the bits of its other samples.
template <class Ranking>
std::vector<Classified<typename Ranking::Key>> classify(
    const Ranking& ranking, int64_t n, uint64_t seed, const Bracket<typename Ranking::Key>& bracket,
    int64_t enough, const uint64_t* excluded, uint64_t* chosen, const Parallel& parallel) {
  const int64_t num_blocks = (n + kBlock - 1) / kBlock;
  const int tasks = num_tasks(parallel, num_blocks, kMinBlocksPerTask);
  std::vector<Classified<typename Ranking::Key>> found(tasks);
  for_each_range(parallel, num_blocks, tasks, [&](int task, Range blocks) {
    Classifier<Ranking> classifier(ranking, seed, bracket);
    const auto samples = static_cast<double>((blocks.end - blocks.begin) * kBlock);
    const double expected = std::min(1.1 * bracket.candidate_share * samples, 1.0 * enough);
    found[task].reserve(static_cast<int64_t>(expected) + kBlock);
    for (int64_t b = blocks.begin; b < blocks.end && found[task].num_candidates <= enough; b++) {
      const int64_t first = b * kBlock, word = first / kWordBits;
      const int count = static_cast<int>(std::min<int64_t>(kBlock, n - first));
      classifier.block(first, count, excluded != nullptr ? excluded + word : nullptr, chosen + word,
                       &found[task]);
    }
  });
  return found;
}

}  // namespace
}  // namespace cpu
}  // namespace dynprune
