// SPDX-License-Identifier: Apache-2.0
// The two steps of a score update: all rows of a batch must have claimed their samples before the
// first is applied. Whole warps call. The result does not depend on which thread comes first: the
// rows of a sample are counted, compared and added as integers (shared/row_reduction.h). Where a
// warp has rows of one sample only, one lane acts for all of them.
#pragma once

#include "device/block.h"
#include "device/device_errors.h"
#include "shared/hash.h"
#include "shared/score_update.h"

namespace dynprune {
namespace cuda {

// A sample of the batch in a hash table by id: open addressing with linear probing, at most half
// full; all zero at the start. The row that claims a sample first writes its number. The other
// members are about the rows that follow, and zero for a sample of one row.
struct Slot {
  unsigned long long owner;  // id + 1; 0 is an empty slot
  unsigned long long terms;  // sum of SampleRows::term, a signed number
  unsigned first;            // row
  unsigned others;           // rows that followed; with kWrong if one of them is not correct
  unsigned greatest;         // of the row_key of these rows, perhaps the first row's too
  unsigned arrived;          // rows that have added their terms
};
constexpr unsigned kWrong = 1u << 31;  // a batch has fewer rows

inline int64_t num_slots(int64_t max_ids) {
  int64_t slots = 32;
  while (slots < 2 * max_ids) slots *= 2;
  return slots;
}

__device__ __forceinline__ int64_t home_slot(int64_t id, int64_t slots) {
  return static_cast<int64_t>(mix64(static_cast<uint64_t>(id)) & static_cast<uint64_t>(slots - 1));
}

// The rows of a warp, one to a lane. A row without a sample takes part in nothing.
struct WarpRows {
  int64_t row, id;  // of this lane
  bool has_sample;
  bool together;      // rows of one sample only, at least two: one lane acts for all of them
  bool acts;          // for its own row, or for all
  unsigned num_rows;  // that this lane acts for
  int leader;         // the lane that acts for all

  // row: behind the batch, a lane without a row.
  __device__ __forceinline__ WarpRows(const ScoreUpdate& u, int64_t this_row, ErrorRecord* errors)
      : row(this_row), id(row < u.batch_size ? u.sample_ids[row] : kNoSample) {
    has_sample = id >= 0 && id < u.num_samples;
    if (!has_sample && id != kNoSample) record_error(errors, DataError::kSampleId, id);
    const unsigned with_sample = __ballot_sync(kFullWarp, has_sample);
    leader = with_sample != 0 ? __ffs(static_cast<int>(with_sample)) - 1 : 0;
    const int64_t leading = __shfl_sync(kFullWarp, id, leader);
    const unsigned same = __ballot_sync(kFullWarp, has_sample && id == leading);
    together = same == with_sample && __popc(same) > 1;
    acts = has_sample && (!together || static_cast<int>(threadIdx.x % kWarpSize) == leader);
    num_rows = together ? __popc(same) : 1;
  }
};

__device__ __forceinline__ void claim_rows(const ScoreUpdate& u, int64_t this_row, Slot* table,
                                           int64_t slots, ErrorRecord* errors) {
  const WarpRows rows(u, this_row, errors);
  unsigned key = rows.has_sample ? row_key(u.row_reduction, u.values[rows.row]) : 0;
  bool wrong = rows.has_sample && u.correct != nullptr && !u.correct[rows.row];
  if (rows.together) {
    wrong = __any_sync(kFullWarp, wrong);
#pragma unroll
    for (int d = kWarpSize / 2; d > 0; d /= 2) {
      const unsigned other = __shfl_xor_sync(kFullWarp, key, d);
      key = other > key ? other : key;
    }
  }
  if (!rows.acts) return;
  const unsigned long long owner = static_cast<unsigned long long>(rows.id) + 1;
  int64_t s = home_slot(rows.id, slots);
  unsigned long long found = 0;
  while (true) {
    found = atomicCAS(&table[s].owner, 0ull, owner);
    if (found == 0 || found == owner) break;
    s = (s + 1) & (slots - 1);
  }
  if (found == 0) table[s].first = static_cast<unsigned>(rows.row);
  const unsigned others = rows.num_rows - (found == 0 ? 1 : 0);
  if (others == 0) return;
  atomicAdd(&table[s].others, others);
  atomicMax(&table[s].greatest, key);
  if (wrong) atomicOr(&table[s].others, kWrong);
}

// The last row of a sample to arrive has all terms, and enters the sample.
template <class Count>
__device__ __forceinline__ void apply_rows(const ScoreUpdate& u, int64_t this_row, Slot* table,
                                           int64_t slots) {
  const WarpRows rows(u, this_row, nullptr);
  if (!rows.has_sample && !rows.together) return;
  int64_t s = 0;
  if (rows.acts) {
    const unsigned long long owner = static_cast<unsigned long long>(rows.id) + 1;
    s = home_slot(rows.id, slots);
    while (table[s].owner != owner) s = (s + 1) & (slots - 1);
  }
  if (rows.together) s = __shfl_sync(kFullWarp, s, rows.leader);
  Slot* slot = &table[s];
  const unsigned others = slot->others & ~kWrong;
  if (others == 0) {
    u.apply<Count>(rows.id, u.values[rows.row], u.correct != nullptr && u.correct[rows.row]);
    return;
  }
  const unsigned first_key = row_key(u.row_reduction, u.values[slot->first]);
  const SampleRows sample{u.row_reduction, first_key > slot->greatest ? first_key : slot->greatest,
                          int64_t{others} + 1};
  long long term = 0;
  if (rows.has_sample && sample.has_terms()) term = sample.term(u.values[rows.row]);
  if (rows.together) {
#pragma unroll
    for (int d = kWarpSize / 2; d > 0; d /= 2) term += __shfl_xor_sync(kFullWarp, term, d);
  }
  if (!rows.acts) return;
  atomicAdd(&slot->terms, static_cast<unsigned long long>(term));
  __threadfence();
  if (atomicAdd(&slot->arrived, rows.num_rows) + rows.num_rows != others + 1) return;
  __threadfence();
  const auto terms = static_cast<int64_t>(load_relaxed(&slot->terms));
  const bool correct = u.correct != nullptr && u.correct[slot->first] && slot->others == others;
  u.apply<Count>(rows.id, sample.value(terms), correct);
}

}  // namespace cuda
}  // namespace dynprune
