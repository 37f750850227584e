// SPDX-License-Identifier: Apache-2.0
// Exact selection by the total order, for any ranking. The number of samples decides between the
// path on the chip and the streaming one.
#pragma once

#include "kernels/selection/ranked_selection.h"
#include "kernels/selection/select_on_chip.cuh"
#include "kernels/selection/select_streaming.cuh"

namespace dynprune {
namespace cuda {

template <class Ranking>
cudaError_t RankedSelection<Ranking>::launch(const Ranking& ranking, const Selection& s,
                                             void* workspace, ErrorRecord* errors,
                                             cudaStream_t stream) {
  if (s.k() == 0) return cudaSuccess;
  if (s.num_samples <= on_chip_capacity<typename Ranking::Key>()) {
    return select_on_chip(ranking, s, workspace, errors, stream);
  }
  return select_streaming(ranking, s, workspace, errors, stream);
}

}  // namespace cuda
}  // namespace dynprune
