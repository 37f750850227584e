// SPDX-License-Identifier: Apache-2.0
// The total order that decides every selection: (score descending, seeded hash of the sample id
// descending, id). A score becomes an unsigned key that compares like the score: -0 equals +0,
// every NaN is the greatest. Key and hash together are a composite key, one unsigned word.
#pragma once

#include <type_traits>

#include "shared/hash.h"

namespace dynprune {

// Integer arithmetic only: the order is the same where subnormal floats are flushed to zero.
template <class Word>
DYNPRUNE_HD Word ordered_bits(Word bits, Word infinity) {
  using Signed = std::make_signed_t<Word>;  // what vector units compare and shift
  constexpr int kLast = 8 * sizeof(Word) - 1;
  constexpr Word kSign = Word{1} << kLast;
  const Word magnitude = bits & ~kSign;
  if (magnitude == 0) return kSign;  // zeros of both signs
  const Word negative = static_cast<Word>(static_cast<Signed>(bits) >> kLast);  // all ones, or 0
  const bool nan = static_cast<Signed>(magnitude) > static_cast<Signed>(infinity);
  return nan ? ~Word{0} : bits ^ (negative | kSign);
}
DYNPRUNE_HD uint32_t ordered_key(float score) {
  return ordered_bits(bit_cast<uint32_t>(score), 0x7f800000u);
}
DYNPRUNE_HD uint64_t ordered_key(double score) {
  return ordered_bits(bit_cast<uint64_t>(score), uint64_t{0x7ff} << 52);
}

// Ids are below 2^32, where the tie hash is a bijection, so that composite keys are unique. Exactly
// k samples are at or above the threshold, and the id itself is never needed as a third key.
constexpr int64_t kMaxSamples = int64_t{1} << 32;

template <class Key>
struct CompositeOf;
template <>
struct CompositeOf<uint32_t> {
  using type = uint64_t;
};
template <>
struct CompositeOf<uint64_t> {
  using type = unsigned __int128;
};
// (key, tie hash), greatest first; a uint32_t by itself is a composite key where there are no ties.
template <class Key>
using composite_t = typename CompositeOf<Key>::type;

template <class Key>
DYNPRUNE_HD composite_t<Key> compose(Key key, uint32_t tie) {
  return static_cast<composite_t<Key>>(key) << 32 | tie;
}

// The lowest composite key that is selected.
template <class Key>
struct Threshold {
  Key key;
  uint32_t tie;

  DYNPRUNE_HD static Threshold of(composite_t<Key> composite) {
    return {static_cast<Key>(composite >> 32), static_cast<uint32_t>(composite)};
  }
  // The hash is computed only where the scores are equal.
  DYNPRUNE_HD bool admits(Key k, int64_t id, const IdHash& tie_hash) const {
    return k > key || (k == key && tie_hash(id) >= tie);
  }
};

}  // namespace dynprune
