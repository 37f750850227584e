// SPDX-License-Identifier: Apache-2.0
// Exact selection by the total order, for any ranking, by whichever way fits the number of samples.
#pragma once

#include "kernels/selection/select_large.cuh"
#include "kernels/selection/select_small.cuh"

namespace dynprune {
namespace cuda {

// workspace: selection_workspace_bytes(s, type) bytes.
template <class Ranking>
cudaError_t radix_select(const Ranking& ranking, const Selection& s, void* workspace,
                         ErrorRecord* errors, cudaStream_t stream) {
  if (s.k() == 0) return cudaSuccess;
  if (s.num_samples <= small_capacity<typename Ranking::Key>()) {
    return select_small(ranking, s, workspace, errors, stream);
  }
  return select_large(ranking, s, workspace, errors, stream);
}

}  // namespace cuda
}  // namespace dynprune
