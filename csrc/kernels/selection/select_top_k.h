// SPDX-License-Identifier: Apache-2.0
// select_top_k, and with num_random > 0 select_epsilon_greedy: ranks by the score itself.
#pragma once

#include "shared/selection.h"
#include "device/cuda_types.h"
#include "shared/scalar_types.h"

namespace dynprune {
namespace cuda {

// scores: [N] of `type`, contiguous. workspace: selection_workspace_bytes(selection, type).
cudaError_t launch_select_top_k(const void* scores, ScalarType type, const Selection& selection,
                                void* workspace, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
