// SPDX-License-Identifier: Apache-2.0
// A keyed permutation of {0, ..., n-1}, evaluated one position at a time, forwards or backwards. It
// is an alternating Feistel network on the smallest power of two that holds n, with cycle walking.
// It is repeated until the result is below n. Sources: Black & Rogaway 2002; for shuffling,
// Mitchell et al. 2021, arXiv:2106.06161. It needs no memory and no sort, and serves any subset of
// positions.
#pragma once

#include "shared/hash.h"

namespace dynprune {

class Permutation {
 public:
  // At a million elements 2 rounds fail the tests of test_permutation_statistics.py, 4 pass
  // all of them; 12 leave a wide margin. On few elements a Feistel network mixes slowly, for any
  // round function: at n = 7, 12 rounds make some orders twice as likely as others. There the 12
  // rounds are repeated, each time with other keys.
  static constexpr int kNumRounds = 12;
  static constexpr uint64_t kFewElements = 64;
  static constexpr int kFewElementsRepeats = 4;

  DYNPRUNE_HD Permutation(uint64_t n, uint64_t seed, Stream stream) : n_(n) {
    const int bits = n > 1 ? 64 - count_leading_zeros(n - 1) : 0;
    low_bits_ = bits - bits / 2;
    high_mask_ = static_cast<uint32_t>((1ull << bits / 2) - 1);
    low_mask_ = static_cast<uint32_t>((1ull << low_bits_) - 1);
    repeats_ = n <= kFewElements ? kFewElementsRepeats : 1;
    uint64_t key = stream_key(seed, stream);
    for (int r = 0; r < kNumRounds; r += 2) {
      key = mix64(key);
      keys_[r] = static_cast<uint32_t>(key);
      keys_[r + 1] = static_cast<uint32_t>(key >> 32);
    }
  }

  // The element at a position; both below n. The expected number of evaluations is below two.
  DYNPRUNE_HD uint64_t operator()(uint64_t position) const {
    uint64_t x = position;
    do {
      x = encrypt(x);
    } while (x >= n_);
    return x;
  }

  // The position of an element: the inverse of operator().
  DYNPRUNE_HD uint64_t position_of(uint64_t element) const {
    uint64_t x = element;
    do {
      x = decrypt(x);
    } while (x >= n_);
    return x;
  }

  // The parts of one evaluation of the Feistel network. A word is split into two halves. Even
  // rounds change the high half, odd rounds the low one. Word: uint32_t if n <= 2^32, else
  // uint64_t.
  template <class Word>
  DYNPRUNE_HD uint32_t high_of(Word x) const {
    return static_cast<uint32_t>(x >> low_bits_);
  }
  template <class Word>
  DYNPRUNE_HD uint32_t low_of(Word x) const {
    return static_cast<uint32_t>(x) & low_mask_;
  }
  template <class Word>
  DYNPRUNE_HD Word join(uint32_t high, uint32_t low) const {
    return static_cast<Word>(high) << low_bits_ | low;
  }
  DYNPRUNE_HD uint32_t next_high(uint32_t high, uint32_t low, uint32_t key) const {
    return high ^ (mix32(low + key) & high_mask_);
  }
  DYNPRUNE_HD uint32_t next_low(uint32_t high, uint32_t low, uint32_t key) const {
    return low ^ (mix32(high + key) & low_mask_);
  }
  DYNPRUNE_HD uint32_t key(int repeat, int round) const {
    return keys_[round] + static_cast<uint32_t>(repeat) * 0x9e3779b9u;
  }
  DYNPRUNE_HD int repeats() const { return repeats_; }

 private:
  DYNPRUNE_HD uint64_t encrypt(uint64_t x) const {
    uint32_t high = high_of(x), low = low_of(x);
    for (int repeat = 0; repeat < repeats_; repeat++) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
      for (int r = 0; r < kNumRounds; r += 2) {
        high = next_high(high, low, key(repeat, r));
        low = next_low(high, low, key(repeat, r + 1));
      }
    }
    return join<uint64_t>(high, low);
  }
  DYNPRUNE_HD uint64_t decrypt(uint64_t x) const {
    uint32_t high = high_of(x), low = low_of(x);
    for (int repeat = repeats_ - 1; repeat >= 0; repeat--) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
      for (int r = kNumRounds - 2; r >= 0; r -= 2) {
        low = next_low(high, low, key(repeat, r + 1));
        high = next_high(high, low, key(repeat, r));
      }
    }
    return join<uint64_t>(high, low);
  }

  uint64_t n_;
  uint32_t high_mask_, low_mask_;
  int low_bits_;
  int repeats_;
  uint32_t keys_[kNumRounds];
};

}  // namespace dynprune
