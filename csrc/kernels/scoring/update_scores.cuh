// SPDX-License-Identifier: Apache-2.0
// The two steps of a score update: all parts of a batch must have claimed their samples before the
// first is applied. A part is a row, or what the rows of an element of sample_ids add up to. Whole
// warps call. The result does not depend on which thread comes first: parts are added as integers
// (row_totals.cuh). Where a warp has many rows of one sample, and no others, one lane acts for all.
#pragma once

#include "device/device_errors.h"
#include "kernels/scoring/row_totals.cuh"
#include "shared/hash.h"
#include "shared/score_update.h"

namespace dynprune {
namespace cuda {

// Samples with at most so many parts beside the first keep a list of them, and the first part adds
// them up. With more, each part adds itself to a total: that is much memory for few rows.
constexpr unsigned kMaxListed = 15;

// A sample of the batch in a hash table by id: open addressing with linear probing, at most half
// full; all zero at the start.
struct Slot {
  unsigned long long claim;  // claim_of the part that came first; 0 is an empty slot
  unsigned others;           // parts beside it
  unsigned newest;           // of these, the one to which the list leads first
};

constexpr int kPartBits = 31;
__device__ __forceinline__ unsigned long long claim_of(int64_t id, int64_t part) {
  return static_cast<unsigned long long>(id + 1) << kPartBits |
         static_cast<unsigned long long>(part);
}
__device__ __forceinline__ int64_t part_of(unsigned long long claim) {
  return static_cast<int64_t>(claim & ((1ull << kPartBits) - 1));
}
static_assert(kMaxSamples <= int64_t{1} << 32, "an id + 1 and a part fit into 64 bits");

inline int64_t num_slots_for(int64_t max_ids) {
  int64_t slots = 32;
  while (slots < 2 * max_ids) slots *= 2;
  return slots;
}

// The memory of an update.
struct UpdateMemory {
  int64_t num_slots;
  Slot* slots;             // [num_slots], zero at the start
  unsigned* totals_taken;  // [1], zero at the start
  size_t bytes_to_clear;   // from slots on
  RowTotal* totals;        // of samples with more than kMaxListed parts beside the first
  unsigned* next;          // [num_parts]: in the list, the part that follows; of a first part that
                           // has a total, the place of that
  size_t bytes;

  UpdateMemory(void* memory, int64_t num_parts, int64_t max_ids)
      : num_slots(num_slots_for(max_ids)) {
    char* const begin = static_cast<char*>(memory);
    const size_t slot_bytes = static_cast<size_t>(num_slots) * sizeof(Slot);
    slots = reinterpret_cast<Slot*>(begin);
    totals_taken = reinterpret_cast<unsigned*>(begin + slot_bytes);
    bytes_to_clear = slot_bytes + 16;  // what follows stays aligned
    const int64_t num_totals = num_parts / (kMaxListed + 2);
    totals = reinterpret_cast<RowTotal*>(begin + bytes_to_clear);
    next = reinterpret_cast<unsigned*>(totals + num_totals);
    bytes = static_cast<size_t>(reinterpret_cast<char*>(next + num_parts) - begin);
  }
};

__device__ __forceinline__ int64_t home_slot(int64_t id, int64_t slots) {
  return static_cast<int64_t>(mix64(static_cast<uint64_t>(id)) & static_cast<uint64_t>(slots - 1));
}

// What an update enters, an element per element of sample_ids: what rows add up to, or, if this is
// null, the update's values.
using Parts = const RowTotal*;

// The parts of a warp, one to a lane. A part without a sample does not count.
struct WarpParts {
  int64_t part, id;  // of this lane
  bool has_sample;
  unsigned members;  // lanes that this one acts for, or 0
  int leader;        // the lane that acts for this one
  bool together;     // one lane acts for all that have a sample

  // this_part: behind the batch, a lane without a part.
  __device__ __forceinline__ WarpParts(const ScoreUpdate& u, Parts parts, int64_t this_part,
                                       ErrorRecord* errors)
      : part(this_part), id(part < u.batch_size ? u.sample_ids[part] : kNoSample) {
    if (parts != nullptr && id != kNoSample && parts[part].rows == 0) id = kNoSample;
    has_sample = id >= 0 && id < u.num_samples;
    if (!has_sample && id != kNoSample) record_error(errors, DataError::kSampleId, id);
    const unsigned with_sample = __ballot_sync(kFullWarp, has_sample);
    leader = with_sample != 0 ? __ffs(static_cast<int>(with_sample)) - 1 : 0;
    const int64_t leading = __shfl_sync(kFullWarp, id, leader);
    const unsigned same = __ballot_sync(kFullWarp, has_sample && id == leading);
    const int lane = threadIdx.x % kWarpSize;
    together = parts == nullptr && same == with_sample &&
               static_cast<unsigned>(__popc(same)) > kMaxListed + 1;
    if (!together) leader = lane;
    members = leader != lane || !has_sample ? 0 : together ? same : 1u << lane;
  }
};

__device__ __forceinline__ void claim_parts(const ScoreUpdate& u, Parts parts, int64_t this_part,
                                            const UpdateMemory& memory, ErrorRecord* errors) {
  const WarpParts warp(u, parts, this_part, errors);
  if (warp.members == 0) return;
  const unsigned long long claim = claim_of(warp.id, warp.part);
  int64_t s = home_slot(warp.id, memory.num_slots);
  unsigned long long found = 0;
  while (true) {
    found = atomicCAS(&memory.slots[s].claim, 0ull, claim);
    if (found == 0 || found >> kPartBits == claim >> kPartBits) break;
    s = (s + 1) & (memory.num_slots - 1);
  }
  const unsigned others = static_cast<unsigned>(__popc(warp.members)) - (found == 0 ? 1 : 0);
  if (others == 0) return;
  const unsigned before = atomicAdd(&memory.slots[s].others, others);
  if (before + others <= kMaxListed) {  // one part: a warp acts together for more
    const auto part = static_cast<unsigned>(warp.part);
    memory.next[part] = atomicExch(&memory.slots[s].newest, part);
  } else if (before <= kMaxListed) {  // in one thread of a sample
    const unsigned total = atomicAdd(memory.totals_taken, 1u);
    memory.totals[total] = RowTotal{};
    memory.next[found == 0 ? warp.part : part_of(found)] = total;
  }
}

__device__ __forceinline__ TableEntry entry_of_row(const ScoreUpdate& u, int64_t row) {
  return {u.values[row], u.correct != nullptr && u.correct[row], true};
}

// The entry of a sample that has a list, by its first part.
__device__ __forceinline__ TableEntry entry_of_list(const ScoreUpdate& u, Parts parts,
                                                    int64_t first, const Slot& slot,
                                                    const unsigned* next) {
  if (slot.others == 0 && parts == nullptr) return entry_of_row(u, first);
  RowTotal total{};
  int64_t part = first;
  for (unsigned left = slot.others + 1; left > 0; left--) {
    if (parts != nullptr) {
      total.add(parts[part]);
    } else {
      add_in_registers(&total, u.row_reduction, entry_of_row(u, part));
    }
    part = part == first ? slot.newest : next[part];
  }
  return {total.value(u.row_reduction), total.wrong == 0, true};
}

__device__ __forceinline__ void enter(const ScoreUpdate& u, int64_t id, const TableEntry& entry) {
  if (u.count_type == IndexType::kInt32) {
    u.apply<int32_t>(id, entry.value, entry.correct);
  } else {
    u.apply<int64_t>(id, entry.value, entry.correct);
  }
}

__device__ __forceinline__ void apply_parts(const ScoreUpdate& u, Parts parts, int64_t this_part,
                                            const UpdateMemory& memory) {
  const WarpParts warp(u, parts, this_part, nullptr);
  if (!warp.has_sample && !warp.together) return;
  int64_t s = 0;
  if (warp.members != 0) {
    const unsigned long long owner = claim_of(warp.id, 0) >> kPartBits;
    s = home_slot(warp.id, memory.num_slots);
    while (memory.slots[s].claim >> kPartBits != owner) s = (s + 1) & (memory.num_slots - 1);
  }
  if (warp.together) s = __shfl_sync(kFullWarp, s, warp.leader);
  const Slot slot = memory.slots[s];
  const int64_t first = part_of(slot.claim);
  if (slot.others <= kMaxListed) {
    if (warp.part == first) {
      enter(u, warp.id, entry_of_list(u, parts, first, slot, memory.next));
    }
    return;
  }
  RowTotal* total = &memory.totals[memory.next[first]];
  if (parts != nullptr) {
    SharedTotal{total}.add_total(parts[warp.part]);
  } else {
    TableEntry entry{};
    if (warp.has_sample) entry = entry_of_row(u, warp.part);
    if (warp.together) {
      const unsigned members = __shfl_sync(kFullWarp, warp.members, warp.leader);
      add_rows_of_warp(SharedTotal{total}, u.row_reduction, members, entry);
    } else {
      SharedTotal{total}.add_row(u.row_reduction, entry);
    }
  }
  if (warp.members == 0) return;
  // The last part of the sample to arrive enters it. Rows are counted by arriving.
  unsigned* arrived = parts != nullptr ? &total->arrived : &total->rows;
  const unsigned num_parts = static_cast<unsigned>(__popc(warp.members));
  __threadfence();
  if (atomicAdd(arrived, num_parts) + num_parts != slot.others + 1) return;
  __threadfence();
  const RowTotal all = *total;
  enter(u, warp.id, {all.value(u.row_reduction), all.wrong == 0, true});
}

// Both steps, each a launch over u.batch_size parts; memory: already cleared.
cudaError_t launch_parts(const ScoreUpdate& u, Parts parts, const UpdateMemory& memory,
                         ErrorRecord* errors, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
