// SPDX-License-Identifier: Apache-2.0
// Two launches over the batch: rows claim their samples, then the last row of each sample to arrive
// updates it.
#include "kernels/scoring/update_scores.h"

#include "kernels/scoring/update_scores.cuh"

namespace dynprune {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    claim_kernel(ScoreUpdate u, Slot* table, int64_t slots, ErrorRecord* errors) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  claim_rows(u, row, table, slots, errors);  // a warp together, also behind the batch
}

template <class Count>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(ScoreUpdate u, Slot* table, int64_t slots) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  apply_rows<Count>(u, row, table, slots);
}

}  // namespace

size_t update_scores_workspace_bytes(int64_t max_ids) {
  return static_cast<size_t>(num_slots(max_ids)) * sizeof(Slot);
}

cudaError_t launch_update_scores(const ScoreUpdate& u, void* workspace, ErrorRecord* errors,
                                 cudaStream_t stream) {
  if (u.batch_size == 0) return cudaSuccess;
  const int64_t slots = num_slots(u.max_ids);
  Slot* table = static_cast<Slot*>(workspace);
  const cudaError_t error =
      cudaMemsetAsync(table, 0, update_scores_workspace_bytes(u.max_ids), stream);
  if (error != cudaSuccess) return error;
  const unsigned grid = static_cast<unsigned>((u.batch_size + kThreads - 1) / kThreads);
  DYNPRUNE_LAUNCH((claim_kernel), grid, kThreads, 0, stream, u, table, slots, errors);
  if (u.count_type == IndexType::kInt32) {
    DYNPRUNE_LAUNCH((apply_kernel<int32_t>), grid, kThreads, 0, stream, u, table, slots);
  } else {
    DYNPRUNE_LAUNCH((apply_kernel<int64_t>), grid, kThreads, 0, stream, u, table, slots);
  }
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace dynprune
