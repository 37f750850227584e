// SPDX-License-Identifier: Apache-2.0
// The selection by one ranking type. It is defined in choose_path.cuh and instantiated in top_k.cu,
// ucb.cu, weighted.cu and score_weight.cu, so that these compile in parallel.
#pragma once

#include "device/cuda_types.h"
#include "shared/error_flags.h"
#include "shared/selection.h"

namespace dynprune {
namespace cuda {

template <class Ranking>
struct RankedSelection {
  // As launch_select.
  static cudaError_t launch(const Ranking& ranking, const Selection& selection, void* workspace,
                            ErrorRecord* errors, cudaStream_t stream);
};

}  // namespace cuda
}  // namespace dynprune
