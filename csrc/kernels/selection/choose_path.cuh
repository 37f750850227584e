// SPDX-License-Identifier: Apache-2.0
// Exact selection by the total order, for any ranking. The number of samples decides between the
// path on the chip and the streaming one. The latter also serves a device that refuses cooperative
// launches, or owns fewer multiprocessors than it reports.
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
    if (select_on_chip(ranking, s, workspace, errors, stream) == cudaSuccess) return cudaSuccess;
    (void)cudaGetLastError();  // a refused launch is no error: the other path has none to refuse
  }
  return select_streaming(ranking, s, workspace, errors, stream);
}

}  // namespace cuda
}  // namespace dynprune
