// SPDX-License-Identifier: Apache-2.0
// Two launches over the batch. The first writes into a hash table, per sample id, the last position
// at which it occurs; the second lets only that position update its sample, so that the result does
// not depend on which thread comes first. Reads 12 bytes a row twice, touches each sample's columns
// once.
#include "kernels/update_scores.h"

#include "primitives/device_errors.h"
#include "primitives/hash.h"

namespace dynprune {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// Open addressing with linear probing, at most half full; all zero at the start.
struct Slot {
  unsigned long long owner;  // id + 1; 0 is an empty slot
  unsigned last;             // position + 1
  unsigned unused;
};

int64_t num_slots(int64_t batch_size) {
  int64_t slots = 32;
  while (slots < 2 * batch_size) slots *= 2;
  return slots;
}

__device__ bool in_range(int64_t id, int64_t num_samples) { return id >= 0 && id < num_samples; }

__device__ int64_t home_slot(int64_t id, int64_t slots) {
  return static_cast<int64_t>(mix64(static_cast<uint64_t>(id)) & static_cast<uint64_t>(slots - 1));
}

__global__ void __launch_bounds__(kThreads)
    find_last_kernel(ScoreUpdate u, Slot* table, int64_t slots, ErrorRecord* errors) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= u.batch_size) return;
  const int64_t id = u.sample_ids[row];
  if (id == kNoSample) return;
  if (!in_range(id, u.num_samples)) {
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
__global__ void __launch_bounds__(kThreads)
    apply_kernel(ScoreUpdate u, const Slot* table, int64_t slots) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= u.batch_size) return;
  const int64_t id = u.sample_ids[row];
  if (!in_range(id, u.num_samples)) return;
  int64_t s = home_slot(id, slots);
  while (table[s].owner != static_cast<unsigned long long>(id) + 1) s = (s + 1) & (slots - 1);
  if (table[s].last != static_cast<unsigned>(row) + 1) return;
  const ScoreColumns<Count> columns{u.mean, u.variance, static_cast<Count*>(u.count),
                                    u.non_finite_count, u.last_non_finite};
  columns.update(id, u.values[row], u.alpha, u.first_visit);
}

}  // namespace

size_t update_scores_workspace_bytes(int64_t batch_size) {
  return static_cast<size_t>(num_slots(batch_size)) * sizeof(Slot);
}

cudaError_t launch_update_scores(const ScoreUpdate& u, void* workspace, ErrorRecord* errors,
                                 cudaStream_t stream) {
  if (u.batch_size == 0) return cudaSuccess;
  const int64_t slots = num_slots(u.batch_size);
  Slot* table = static_cast<Slot*>(workspace);
  const cudaError_t error =
      cudaMemsetAsync(table, 0, update_scores_workspace_bytes(u.batch_size), stream);
  if (error != cudaSuccess) return error;
  const unsigned grid = static_cast<unsigned>((u.batch_size + kThreads - 1) / kThreads);
  DYNPRUNE_LAUNCH((find_last_kernel), grid, kThreads, 0, stream, u, table, slots, errors);
  if (u.count_type == IndexType::kInt32) {
    DYNPRUNE_LAUNCH((apply_kernel<int32_t>), grid, kThreads, 0, stream, u, table, slots);
  } else {
    DYNPRUNE_LAUNCH((apply_kernel<int64_t>), grid, kThreads, 0, stream, u, table, slots);
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace dynprune
