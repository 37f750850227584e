// SPDX-License-Identifier: Apache-2.0
// The m-th greatest of many unsigned words, by histograms of 11-bit digits from the top. Each pass
// finds the bin that holds it; later passes count only the words in that bin. One block searches
// alone, or all blocks of a cooperative grid merge their histograms, with one grid barrier per
// pass. Lanes of a warp with equal bins add once, together.
#pragma once

#include "device/block.h"
#include "device/grid.h"
#include "shared/portable.h"

namespace dynprune {

constexpr int kDigitBits = 11;
constexpr int kNumBins = 1 << kDigitBits;
constexpr int kSearchThreads = 1024;

DYNPRUNE_HD int bit_width(uint64_t x) { return 64 - count_leading_zeros(x); }
DYNPRUNE_HD int bit_width(uint32_t x) { return bit_width(static_cast<uint64_t>(x)); }
DYNPRUNE_HD int bit_width(unsigned __int128 x) {
  const uint64_t high = static_cast<uint64_t>(x >> 64);
  return high != 0 ? 64 + bit_width(high) : bit_width(static_cast<uint64_t>(x));
}

// The words w with low <= w < low + 2^bits.
template <class Word>
struct Interval {
  Word low;
  int bits;

  DYNPRUNE_HD static Interval whole() { return between(0, static_cast<Word>(~Word{0})); }
  // The smallest interval that reaches from low to high, both included.
  DYNPRUNE_HD static Interval between(Word low, Word high) {
    return {low, bit_width(static_cast<Word>(high - low))};
  }
  DYNPRUNE_HD bool operator==(const Interval& other) const {
    return low == other.low && bits == other.bits;
  }
  DYNPRUNE_HD Word last() const {
    return bits == 0 ? low : static_cast<Word>(low + (((Word{1} << (bits - 1)) - 1) * 2 + 1));
  }
  DYNPRUNE_HD int shift() const { return bits > kDigitBits ? bits - kDigitBits : 0; }
  // Which of kNumBins equal parts a word lies in; -1: none.
  DYNPRUNE_HD int bin(Word word) const {
    const Word offset = static_cast<Word>(word - low);
    if (word < low || (bits > 0 ? offset >> (bits - 1) > 1 : offset != 0)) return -1;
    return static_cast<int>(offset >> shift());
  }
  DYNPRUNE_HD Interval part(int bin) const {
    return {static_cast<Word>(low + (static_cast<Word>(bin) << shift())), shift()};
  }
};

// Adds one to bins[bin], if bin is not negative; all lanes of a warp together.
__device__ __forceinline__ void count_bin(unsigned* bins, int bin) {
  const unsigned same = __match_any_sync(kFullWarp, bin);
  const int leader = __ffs(static_cast<int>(same)) - 1;
  if (bin >= 0 && leader == static_cast<int>(threadIdx.x % kWarpSize)) {
    atomicAdd(&bins[bin], static_cast<unsigned>(__popc(same)));
  }
}

struct SearchShared {
  unsigned bins[kNumBins];  // counts of one block: below 2^32, since a grid has many
  unsigned long long warp_totals[kSearchThreads / kWarpSize];
  unsigned long long above, count;  // in the bins above the chosen one, and in it
  int bin;
};

// Of a grid: three histograms, the first of them zero at the start. One is merged into while the
// next is cleared and the one before may still be read.
struct MergedBins {
  unsigned long long bins[3][kNumBins];
};

// merged: null if one block searches alone.
class DigitSearch {
 public:
  __device__ DigitSearch(SearchShared* shared, MergedBins* merged)
      : shared_(shared), merged_(merged), pass_(0) {}

  // Narrows an interval around the wanted-th greatest of its items. Stops when all items that are
  // left are wanted, or when at most `enough` are left. With enough = 0 and no two words equal,
  // exactly `wanted` items then lie between the interval's low and its former end. Returns false,
  // and leaves the interval as it was, if `wanted` is 0 or fewer items lie in it.
  //
  // items(visit) calls visit(valid, word) for every item of this block, all lanes of a warp
  // together. All blocks of the grid must call with the same interval and counts.
  template <class Word, class Items>
  __device__ bool narrow(Interval<Word>* result, unsigned long long wanted,
                         unsigned long long enough, const Items& items) {
    Interval<Word> interval = *result;
    Progress progress = kSearching;
    while (progress == kSearching) {
      clear();
      __syncthreads();
      items([&](bool valid, Word word) { count(valid ? interval.bin(word) : -1); });
      __syncthreads();
      if (merged_ != nullptr) merge();
      progress = step(&interval, &wanted, enough, *shared_);
    }
    if (progress == kFound) *result = interval;
    return progress == kFound;
  }

  // The same of two intervals in the same passes, by one block. While they are equal, one histogram
  // serves both.
  template <class Word, class Items>
  static __device__ void narrow_both(DigitSearch* first, Interval<Word>* first_result,
                                     unsigned long long first_wanted, DigitSearch* second,
                                     Interval<Word>* second_result,
                                     unsigned long long second_wanted, unsigned long long enough,
                                     const Items& items) {
    Interval<Word> a = *first_result, b = *second_result;
    Progress a_progress = first_wanted > 0 ? kSearching : kMissing;
    Progress b_progress = second_wanted > 0 ? kSearching : kMissing;
    while (a_progress == kSearching || b_progress == kSearching) {
      const bool counts_a = a_progress == kSearching;
      const bool counts_b = b_progress == kSearching && !(counts_a && a == b);
      first->clear();
      second->clear();
      __syncthreads();
      items([&](bool valid, Word word) {
        if (counts_a) first->count(valid ? a.bin(word) : -1);
        if (counts_b) second->count(valid ? b.bin(word) : -1);
      });
      __syncthreads();
      if (b_progress == kSearching) {
        const SearchShared& counted = counts_b ? *second->shared_ : *first->shared_;
        b_progress = second->step(&b, &second_wanted, enough, counted);
      }
      if (counts_a) a_progress = first->step(&a, &first_wanted, enough, *first->shared_);
    }
    if (a_progress == kFound) *first_result = a;
    if (b_progress == kFound) *second_result = b;
  }

 private:
  enum Progress { kSearching, kFound, kMissing };

  __device__ void clear() {
    for (int b = threadIdx.x; b < kNumBins; b += kSearchThreads) shared_->bins[b] = 0;
  }
  __device__ void count(int bin) { count_bin(shared_->bins, bin); }

  // Narrows the interval to the bin that holds the wanted-th greatest. counted: this block's bins.
  template <class Word>
  __device__ Progress step(Interval<Word>* interval, unsigned long long* wanted,
                           unsigned long long enough, const SearchShared& counted) {
    choose(*wanted, counted);
    if (shared_->bin < 0) return kMissing;
    *interval = interval->part(shared_->bin);
    *wanted -= shared_->above;
    const unsigned long long left = shared_->count;
    return left == *wanted || left <= enough || interval->bits == 0 ? kFound : kSearching;
  }

  __device__ void merge() {
    unsigned long long* own = merged_->bins[pass_ % 3];
    unsigned long long* next = merged_->bins[(pass_ + 1) % 3];
    for (int b = threadIdx.x; b < kNumBins; b += kSearchThreads) {
      if (shared_->bins[b] != 0) atomicAdd(&own[b], 0ull + shared_->bins[b]);
    }
    const int stride = static_cast<int>(gridDim.x) * kSearchThreads;
    for (int b = blockIdx.x * kSearchThreads + threadIdx.x; b < kNumBins; b += stride) next[b] = 0;
    grid_sync();
  }

  // Finds the bin that holds the wanted-th greatest. Every block computes the same.
  __device__ void choose(unsigned long long wanted, const SearchShared& counted) {
    constexpr int kBinsPerThread = kNumBins / kSearchThreads;
    const int top = kNumBins - 1 - static_cast<int>(threadIdx.x) * kBinsPerThread;
    unsigned long long counts[kBinsPerThread], sum = 0;
#pragma unroll
    for (int j = 0; j < kBinsPerThread; j++) {
      counts[j] = merged_ != nullptr ? merged_->bins[pass_ % 3][top - j] : counted.bins[top - j];
      sum += counts[j];
    }
    if (threadIdx.x == 0) shared_->bin = -1;
    unsigned long long above = block_exclusive_sum(sum, shared_->warp_totals);
#pragma unroll
    for (int j = 0; j < kBinsPerThread; j++) {
      if (above < wanted && wanted <= above + counts[j]) {
        shared_->bin = top - j;
        shared_->above = above;
        shared_->count = counts[j];
      }
      above += counts[j];
    }
    pass_++;
    __syncthreads();
  }

  SearchShared* shared_;
  MergedBins* merged_;
  int pass_;
};

}  // namespace dynprune
