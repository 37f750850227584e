// SPDX-License-Identifier: Apache-2.0
// The shared decisions of a sharded selection: which samples a process holds, and which digits of
// the composite keys the processes count together.
#pragma once

#include "shared/ordered_key.h"

namespace dynprune {

// Of `count` samples that one process holds, or of as many positions: the numbers first, first +
// stride, ..., in ascending order.
struct Shard {
  int64_t count, first, stride;

  DYNPRUNE_HD int64_t operator[](int64_t i) const { return first + i * stride; }
};

// A digit of a 64-bit word. The digits have 11, 11 and 10 bits of the key, then 11, 11 and 10 of
// the tie hash. The histograms of the first three rounds decide everything but ties.
struct Digit {
  int shift, bits;

  static constexpr int kRounds = 6;
  DYNPRUNE_HD static Digit of_round(int round) {
    const int place = round % 3;
    const int within = place == 0 ? 21 : (place == 1 ? 10 : 0);
    return {round < 3 ? 32 + within : within, place == 2 ? 10 : 11};
  }
  DYNPRUNE_HD int num_bins() const { return 1 << bits; }
  // Whether the word agrees with the prefix in all digits before this one.
  DYNPRUNE_HD bool follows(uint64_t word, uint64_t prefix) const {
    return (word ^ prefix) >> (shift + bits - 1) <= 1;  // a shift by all 64 bits is undefined
  }
  DYNPRUNE_HD int bin(uint64_t word) const {
    return static_cast<int>(word >> shift & static_cast<uint64_t>(num_bins() - 1));
  }
};

// The state of a search for the wanted-th greatest word of all processes. Digits that are not found
// yet are 0 in the prefix. When `wanted` is 0, the prefix is the threshold.
struct SearchState {
  uint64_t prefix, wanted;
};

// The words of one process's samples in a search. They are composite keys, or, for the random part
// of epsilon-greedy, the hashes of the samples that the greedy part refused. Hashes have no ties.
struct ShardWords {
  const uint32_t* keys;  // [shard.count]; not read if `explore` and there is no greedy part
  Shard shard;
  const uint64_t* greedy;  // the threshold of the greedy part, or null
  bool explore;

  DYNPRUNE_HD bool is_greedy(int64_t i, const IdHash& tie_hash) const {
    if (greedy == nullptr) return false;
    const Threshold<uint32_t> threshold = {static_cast<uint32_t>(*greedy >> 32),
                                           static_cast<uint32_t>(*greedy)};
    return threshold.admits(keys[i], shard[i], tie_hash);
  }
  // The bin of sample i in a round of the search, -1 if it does not take part.
  DYNPRUNE_HD int bin(int64_t i, const Digit& digit, uint64_t prefix, const IdHash& tie_hash,
                      const IdHash& explore_hash) const {
    uint64_t word;
    if (explore) {
      if (is_greedy(i, tie_hash)) return -1;
      word = static_cast<uint64_t>(explore_hash(shard[i])) << 32;
    } else {
      word = static_cast<uint64_t>(keys[i]) << 32;
      if (digit.shift < 32) {  // the keys alone exclude most samples
        if ((word ^ prefix) >> 32 != 0) return -1;
        word |= tie_hash(shard[i]);
      }
    }
    return digit.follows(word, prefix) ? digit.bin(word) : -1;
  }
};

// Whether a sample of a process is in the subset. random: the threshold of the random part, or
// null.
struct ShardSelected {
  ShardWords words;
  const uint64_t* random;

  DYNPRUNE_HD bool operator()(int64_t i, const IdHash& tie_hash, const IdHash& explore_hash) const {
    return words.is_greedy(i, tie_hash) ||
           (random != nullptr && explore_hash(words.shard[i]) >= *random >> 32);
  }
};

}  // namespace dynprune
