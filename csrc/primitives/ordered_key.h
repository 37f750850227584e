// SPDX-License-Identifier: Apache-2.0
// The total order that decides every selection: (score descending, seeded hash of the sample id
// descending, id). A score becomes an unsigned key that compares like the score: -0 equals +0,
// every NaN is the greatest.
#pragma once

#include <type_traits>

#include "hash.h"

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

// A composite key (key, tie) is unique, so "at or above the threshold" is exactly k samples. Ids
// are below 2^32, where the tie hash is a bijection; the id itself is never needed as a third key.
constexpr int64_t kMaxSamples = int64_t{1} << 32;

template <class Key>
struct Threshold {
  Key key;
  uint32_t tie;

  // The hash is computed only where the scores are equal.
  DYNPRUNE_HD bool admits(Key k, int64_t id, const IdHash& tie_hash) const {
    return k > key || (k == key && tie_hash(id) >= tie);
  }
};

// Radix selection looks at a composite key digit by digit from the top: first the key's digits,
// then the tie's.
constexpr int kDigitBits = 11;
constexpr int kNumBins = 1 << kDigitBits;

template <class Key>
struct Digit {
  static constexpr int kKeyBits = 8 * sizeof(Key);
  static constexpr int kKeyPasses = (kKeyBits + kDigitBits - 1) / kDigitBits;
  static constexpr int kTiePasses = (32 + kDigitBits - 1) / kDigitBits;
  static constexpr int kNumPasses = kKeyPasses + kTiePasses;

  bool in_tie;  // a digit of the tie hash rather than of the key
  int top;      // bits [shift, top) are the digit
  int shift;

  DYNPRUNE_HD explicit Digit(int pass) {
    in_tie = pass >= kKeyPasses;
    top = in_tie ? 32 - (pass - kKeyPasses) * kDigitBits : kKeyBits - pass * kDigitBits;
    shift = top > kDigitBits ? top - kDigitBits : 0;
  }

  // The bin of sample `id`, or -1 if its composite key does not begin with the digits chosen so
  // far.
  DYNPRUNE_HD int bin(Key key, int64_t id, const IdHash& tie_hash,
                      const Threshold<Key>& so_far) const {
    if (in_tie) {
      if (key != so_far.key) return -1;
      return field(tie_hash(id), so_far.tie, 32);
    }
    return field(key, so_far.key, kKeyBits);
  }
  DYNPRUNE_HD void append(uint32_t digit, Threshold<Key>* so_far) const {
    if (in_tie) {
      so_far->tie |= digit << shift;
    } else {
      so_far->key |= static_cast<Key>(digit) << shift;
    }
  }

 private:
  template <class Word>
  DYNPRUNE_HD int field(Word word, Word prefix, int word_bits) const {
    if (top < word_bits && word >> top != prefix >> top) return -1;
    return static_cast<int>(word >> shift & ((1u << (top - shift)) - 1));
  }
};

}  // namespace dynprune
