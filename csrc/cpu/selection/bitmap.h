// SPDX-License-Identifier: Apache-2.0
// A subset of the samples as one bit per sample, and the way from there to a list of ids.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/clones.h"
#include "cpu/parallel.h"

namespace dynprune {
namespace cpu {
namespace {

// For every byte, the positions of its set bits, ascending; the rest of the eight are 0.
struct BytePositions {
  uint32_t at[256][8];

  constexpr BytePositions() : at() {
    for (int byte = 0; byte < 256; byte++) {
      int found = 0;
      for (int bit = 0; bit < 8; bit++) {
        if ((byte >> bit & 1) != 0) at[byte][found++] = static_cast<uint32_t>(bit);
      }
    }
  }
};
constexpr BytePositions kBytePositions;

constexpr int64_t kWordBits = 64;

// Appends first + position for every set bit, and returns the new end. A byte at a time and without
// branches, so up to eight elements beyond the new end are overwritten.
template <class Id>
inline Id* append_set_bits(uint64_t bits, int64_t first, Id* out) {
  for (int b = 0; b < 8; b++) {
    const uint8_t byte = static_cast<uint8_t>(bits >> b * 8);
    const Id base = static_cast<Id>(first + b * 8);
    for (int j = 0; j < 8; j++) out[j] = base + static_cast<Id>(kBytePositions.at[byte][j]);
    out += __builtin_popcount(byte);
  }
  return out;
}

DYNPRUNE_CLONES int64_t count_set_bits(const uint64_t* words, int64_t num_words) {
  int64_t count = 0;
  for (int64_t w = 0; w < num_words; w++) count += __builtin_popcountll(words[w]);
  return count;
}

// Writes the ids of the set bits of words [range) to [out, end), which they fill. The first bit of
// all words has the id `first`.
template <class Id>
DYNPRUNE_CLONES void list_words(const uint64_t* words, Range range, int64_t first, Id* out,
                                Id* end) {
  for (int64_t w = range.begin; w < range.end; w++) {
    uint64_t bits = words[w];
    if (end - out >= kWordBits) {
      out = append_set_bits(bits, first + w * kWordBits, out);
    } else {  // what lies beyond the end is another task's
      for (; bits != 0; bits &= bits - 1) {
        *out++ = static_cast<Id>(first + w * kWordBits + __builtin_ctzll(bits));
      }
    }
  }
}

// Writes the ids of the set bits of all words, ascending; Id is int64_t or uint32_t.
template <class Id>
void list_bits(const uint64_t* words, int64_t num_words, int64_t first, Id* ids,
               const Parallel& parallel) {
  const int tasks = num_tasks(parallel, num_words, 1024);
  std::vector<int64_t> ends(tasks);
  for_each_range(parallel, num_words, tasks, [&](int task, Range range) {
    ends[task] = count_set_bits(words + range.begin, range.end - range.begin);
  });
  for (int task = 1; task < tasks; task++) ends[task] += ends[task - 1];
  for_each_range(parallel, num_words, tasks, [&](int task, Range range) {
    list_words(words, range, first, ids + (task > 0 ? ends[task - 1] : 0), ids + ends[task]);
  });
}

class Bitmap {
 public:
  // Uninitialised: who makes one writes every word.
  explicit Bitmap(int64_t n)
      : num_words_((n + kWordBits - 1) / kWordBits),
        words_(new uint64_t[static_cast<size_t>(num_words_)]) {}

  uint64_t* words() { return words_.get(); }
  const uint64_t* words() const { return words_.get(); }
  void set(int64_t id) { words_[id / kWordBits] |= uint64_t{1} << id % kWordBits; }

  void merge(const Bitmap& other) {
    for (int64_t w = 0; w < num_words_; w++) words_[w] |= other.words_[w];
  }

  template <class Id>
  void list(Id* ids, const Parallel& parallel) const {
    list_bits(words(), num_words_, 0, ids, parallel);
  }

 private:
  int64_t num_words_;
  std::unique_ptr<uint64_t[]> words_;
};

}  // namespace
}  // namespace cpu
}  // namespace dynprune
