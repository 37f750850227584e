// SPDX-License-Identifier: Apache-2.0
// The two steps of a score update for one row of a batch: all rows must have claimed their samples
// before the first is applied. The result does not depend on which thread comes first.
#pragma once

#include "device/device_errors.h"
#include "shared/hash.h"
#include "shared/score_update.h"

namespace dynprune {
namespace cuda {

// Hash table from sample id to the last position at which the id occurs: open addressing with
// linear probing, at most half full; all zero at the start.
struct Slot {
  unsigned long long owner;  // id + 1; 0 is an empty slot
  unsigned last;             // position + 1
  unsigned unused;
};

inline int64_t num_slots(int64_t batch_size) {
  int64_t slots = 32;
  while (slots < 2 * batch_size) slots *= 2;
  return slots;
}

__device__ __forceinline__ int64_t home_slot(int64_t id, int64_t slots) {
  return static_cast<int64_t>(mix64(static_cast<uint64_t>(id)) & static_cast<uint64_t>(slots - 1));
}

__device__ __forceinline__ void claim_row(const ScoreUpdate& u, int64_t row, Slot* table,
                                          int64_t slots, ErrorRecord* errors) {
  const int64_t id = u.sample_ids[row];
  if (id == kNoSample) return;
  if (id < 0 || id >= u.num_samples) {
    record_error(errors, DataError::kSampleId, id);
    return;
  }
  const unsigned long long owner = static_cast<unsigned long long>(id) + 1;
  int64_t s = home_slot(id, slots);
  while (true) {
    const unsigned long long found = atomicCAS(&table[s].owner, 0ull, owner);
    if (found == 0 || found == owner) break;
    s = (s + 1) & (slots - 1);
  }
  atomicMax(&table[s].last, static_cast<unsigned>(row) + 1);
}

template <class Count>
__device__ __forceinline__ void apply_row(const ScoreUpdate& u, int64_t row, const Slot* table,
                                          int64_t slots) {
  const int64_t id = u.sample_ids[row];
  if (id < 0 || id >= u.num_samples) return;
  int64_t s = home_slot(id, slots);
  while (table[s].owner != static_cast<unsigned long long>(id) + 1) s = (s + 1) & (slots - 1);
  if (table[s].last == static_cast<unsigned>(row) + 1) u.apply<Count>(row, id);
}

}  // namespace cuda
}  // namespace dynprune
