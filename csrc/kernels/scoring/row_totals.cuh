// SPDX-License-Identifier: Apache-2.0
// What rows of a sample add up to (shared/row_reduction.h), added by many threads at once. All
// additions are of integers: no result depends on which thread comes first.
#pragma once

#include "device/block.h"
#include "shared/row_reduction.h"

namespace dynprune {
namespace cuda {

// What a row enters into its sample. Made by one thread.
struct TableEntry {
  float value;
  bool correct;
  bool counts;  // false for a row that belongs to no sample
};

// RowTotal::add without branches or computed indices, so that the total stays in registers.
__device__ __forceinline__ void add_in_registers(RowTotal* total, RowReduction reduction,
                                                 const TableEntry& row) {
  const uint32_t key = RowTotal::key_of(reduction, row.value);
  total->greatest = key > total->greatest ? key : total->greatest;
  total->wrong |= row.correct ? 0 : 1;
  total->rows++;
  const RowTerm term(RowTotal::has_term(reduction, key) ? row.value : 0.0f);
#pragma unroll
  for (int i = 0; i < kNumDigits; i++) {
    total->digits[i] += (i == term.digit ? RowTotal::low_part(term.amount) : 0) +
                        (i == term.digit + 1 ? RowTotal::high_part(term.amount) : 0);
  }
}

// A total to which one thread at a time adds.
struct OwnTotal {
  RowTotal* total;  // no rows so far

  __device__ __forceinline__ void add_amount(int digit, int64_t amount) const {
    total->digits[digit] += RowTotal::low_part(amount);
    total->digits[digit + 1] += RowTotal::high_part(amount);
  }
  __device__ __forceinline__ void add_flags(uint32_t greatest, bool wrong) const {
    total->greatest = greatest;
    total->wrong = wrong ? 1 : 0;
  }
};

// A total to which all threads may add at once.
struct SharedTotal {
  RowTotal* total;

  __device__ __forceinline__ void add_to_digit(int digit, int64_t part) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(&total->digits[digit]),
              static_cast<unsigned long long>(part));
  }
  __device__ __forceinline__ void add_amount(int digit, int64_t amount) const {
    add_to_digit(digit, RowTotal::low_part(amount));
    add_to_digit(digit + 1, RowTotal::high_part(amount));
  }
  __device__ __forceinline__ void count_rows(unsigned rows) const { atomicAdd(&total->rows, rows); }
  __device__ __forceinline__ void add_flags(uint32_t greatest, bool wrong) const {
    if (greatest != 0) atomicMax(&total->greatest, greatest);
    if (wrong) atomicOr(&total->wrong, 1u);
  }
  // A row, by the thread that has it. Its caller counts it.
  __device__ __forceinline__ void add_row(RowReduction reduction, const TableEntry& row) const {
    const uint32_t key = RowTotal::key_of(reduction, row.value);
    add_flags(key, !row.correct);
    if (!RowTotal::has_term(reduction, key)) return;
    const RowTerm term(row.value);
    add_amount(term.digit, term.amount);
  }
  // What other rows of the sample add up to.
  __device__ __forceinline__ void add_total(const RowTotal& other) const {
    for (int i = 0; i < kNumDigits; i++) {
      if (other.digits[i] != 0) add_to_digit(i, other.digits[i]);
    }
    count_rows(other.rows);
    add_flags(other.greatest, other.wrong != 0);
  }
};

// The rows of the lanes in `members`, all of one sample. All lanes of the warp call; the first of
// the members adds for all of them. The caller counts them. Total: OwnTotal or SharedTotal.
template <class Total>
__device__ __forceinline__ void add_rows_of_warp(const Total& total, RowReduction reduction,
                                                 unsigned members, const TableEntry& row) {
  const unsigned lane_bit = 1u << threadIdx.x % kWarpSize;
  const bool is_member = (members & lane_bit) != 0, adds = (members & -members) == lane_bit;
  uint32_t key = is_member ? RowTotal::key_of(reduction, row.value) : 0;
  const bool has_term = is_member && RowTotal::has_term(reduction, key);
  const bool wrong = __any_sync(kFullWarp, is_member && !row.correct);
  if (__any_sync(kFullWarp, key != 0)) {
#pragma unroll
    for (int d = kWarpSize / 2; d > 0; d /= 2) {
      const uint32_t other = __shfl_xor_sync(kFullWarp, key, d);
      key = other > key ? other : key;
    }
  }
  if (adds) total.add_flags(key, wrong);
  const RowTerm term(has_term ? row.value : 0.0f);
  unsigned left = __ballot_sync(kFullWarp, term.amount != 0);
  while (left != 0) {  // once for each digit that a row has: mostly once
    const int digit = __shfl_sync(kFullWarp, term.digit, __ffs(static_cast<int>(left)) - 1);
    const bool here = term.digit == digit;
    long long amount = here ? term.amount : 0;  // 32 of them do not overflow
#pragma unroll
    for (int d = kWarpSize / 2; d > 0; d /= 2) amount += __shfl_xor_sync(kFullWarp, amount, d);
    if (adds) total.add_amount(digit, amount);
    left &= ~__ballot_sync(kFullWarp, here);
  }
}

// The rows of a block that count, all of one sample. The whole block calls, and calls again after a
// barrier only. Its warps add up apart first: one atomic operation per digit, not one per warp.
template <int kWarps>
__device__ __forceinline__ void add_rows_of_block(RowTotal* total, RowReduction reduction,
                                                  const TableEntry& entry) {
  DYNPRUNE_SHARED(RowTotal, by_warp, [kWarps]);
  RowTotal* own = &by_warp[threadIdx.x / kWarpSize];
  const unsigned members = __ballot_sync(kFullWarp, entry.counts);
  if (threadIdx.x % kWarpSize == 0) {
    *own = RowTotal{};
    own->rows = static_cast<uint32_t>(__popc(members));
  }
  __syncwarp();
  if (members != 0) add_rows_of_warp(OwnTotal{own}, reduction, members, entry);
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  if (i < kNumDigits) {
    int64_t digit = 0;
    for (int w = 0; w < kWarps; w++) digit += by_warp[w].digits[i];
    if (digit != 0) SharedTotal{total}.add_to_digit(i, digit);
  } else if (i == kNumDigits) {
    unsigned rows = 0, wrong = 0;
    uint32_t greatest = 0;
    for (int w = 0; w < kWarps; w++) {
      rows += by_warp[w].rows;
      wrong |= by_warp[w].wrong;
      greatest = by_warp[w].greatest > greatest ? by_warp[w].greatest : greatest;
    }
    if (rows == 0) return;
    SharedTotal{total}.count_rows(rows);
    SharedTotal{total}.add_flags(greatest, wrong != 0);
  }
}

// The rows of the lanes whose entry counts, each to the total of its own sample. All lanes of the
// warp call. For rows whose neighbours mostly are of the same sample.
__device__ __forceinline__ void add_neighbouring_rows(RowTotal* totals, int64_t sample,
                                                      RowReduction reduction,
                                                      const TableEntry& entry) {
  unsigned left = __ballot_sync(kFullWarp, entry.counts);
  while (left != 0) {
    const long long first =
        __shfl_sync(kFullWarp, static_cast<long long>(sample), __ffs(static_cast<int>(left)) - 1);
    const unsigned members = __ballot_sync(kFullWarp, entry.counts && sample == first);
    const SharedTotal total{&totals[first]};
    add_rows_of_warp(total, reduction, members, entry);
    if ((members & -members) == 1u << threadIdx.x % kWarpSize) {
      total.count_rows(static_cast<unsigned>(__popc(members)));
    }
    left &= ~members;
  }
}

}  // namespace cuda
}  // namespace dynprune
