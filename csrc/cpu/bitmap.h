// SPDX-License-Identifier: Apache-2.0
// A subset of the samples as one bit per sample, and the way from there to a list of ids.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/parallel.h"

namespace dynprune {
namespace cpu {

class Bitmap {
 public:
  static constexpr int64_t kWordBits = 64;

  explicit Bitmap(int64_t n) : words_(static_cast<size_t>((n + kWordBits - 1) / kWordBits)) {}

  uint64_t* words() { return words_.data(); }
  const uint64_t* words() const { return words_.data(); }
  int64_t num_words() const { return static_cast<int64_t>(words_.size()); }
  void set(int64_t id) { words_[id / kWordBits] |= uint64_t{1} << id % kWordBits; }

  void merge(const Bitmap& other) {
    for (size_t w = 0; w < words_.size(); w++) words_[w] |= other.words_[w];
  }

  // Writes the ids of the set bits, ascending; Id is int64_t or uint32_t.
  template <class Id>
  void list(Id* ids, const Parallel& parallel) const {
    const int tasks = num_tasks(parallel, num_words(), 1024);
    std::vector<int64_t> counts(tasks);
    for_each_range(parallel, num_words(), tasks, [&](int task, Range range) {
      int64_t count = 0;
      for (int64_t w = range.begin; w < range.end; w++) count += __builtin_popcountll(words_[w]);
      counts[task] = count;
    });
    int64_t before = 0;
    for (int64_t& count : counts) {
      const int64_t own = count;
      count = before;
      before += own;
    }
    for_each_range(parallel, num_words(), tasks, [&](int task, Range range) {
      Id* out = ids + counts[task];
      for (int64_t w = range.begin; w < range.end; w++) {
        for (uint64_t bits = words_[w]; bits != 0; bits &= bits - 1) {
          *out++ = static_cast<Id>(w * kWordBits + __builtin_ctzll(bits));
        }
      }
    });
  }

 private:
  std::vector<uint64_t> words_;
};

// Bit i of the result is the lowest bit of byte i: eight flags, packed.
inline uint64_t pack_flags(uint64_t bytes) {
  return (bytes & 0x0101010101010101ull) * 0x0102040810204080ull >> 56;
}

}  // namespace cpu
}  // namespace dynprune
