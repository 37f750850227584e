// SPDX-License-Identifier: Apache-2.0
// Two launches over the parts of a batch: they claim their samples, then one part of each sample
// updates it.
#include "kernels/scoring/update_scores.h"

#include "kernels/scoring/update_scores.cuh"

namespace dynprune {
namespace cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    claim_kernel(ScoreUpdate u, Parts parts, UpdateMemory memory, ErrorRecord* errors) {
  const int64_t part = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  claim_parts(u, parts, part, memory, errors);  // a warp together, also behind the batch
}

__global__ void __launch_bounds__(kThreads)
    apply_kernel(ScoreUpdate u, Parts parts, UpdateMemory memory) {
  const int64_t part = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  apply_parts(u, parts, part, memory);
}

}  // namespace

cudaError_t launch_parts(const ScoreUpdate& u, Parts parts, const UpdateMemory& memory,
                         ErrorRecord* errors, cudaStream_t stream) {
  if (u.batch_size == 0) return cudaSuccess;
  const unsigned grid = static_cast<unsigned>((u.batch_size + kThreads - 1) / kThreads);
  DYNPRUNE_LAUNCH((claim_kernel), grid, kThreads, 0, stream, u, parts, memory, errors);
  DYNPRUNE_LAUNCH((apply_kernel), grid, kThreads, 0, stream, u, parts, memory);
  return cudaGetLastError();
}

size_t update_scores_workspace_bytes(int64_t rows) {
  return UpdateMemory(nullptr, rows, rows).bytes;
}

cudaError_t launch_update_scores(const ScoreUpdate& u, void* workspace, ErrorRecord* errors,
                                 cudaStream_t stream) {
  const UpdateMemory memory(workspace, u.batch_size, u.batch_size);
  if (u.batch_size == 0) return cudaSuccess;
  const cudaError_t error = cudaMemsetAsync(memory.slots, 0, memory.bytes_to_clear, stream);
  if (error != cudaSuccess) return error;
  return launch_parts(u, nullptr, memory, errors, stream);
}

}  // namespace cuda
}  // namespace dynprune
