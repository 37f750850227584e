// SPDX-License-Identifier: Apache-2.0
// select_ucb and select_ucb1: rank by an upper confidence bound computed on the fly in float32.
#pragma once

#include "shared/selection.h"
#include "device/cuda_types.h"
#include "shared/scalar_types.h"

namespace dynprune {
namespace cuda {

// mean, variance: [N] of `type` (not float64), contiguous. mean + c * variance, or c *
// sqrt(variance).
cudaError_t launch_select_ucb(const void* mean, const void* variance, ScalarType type, float c,
                              bool sqrt_bonus, const Selection& selection, void* workspace,
                              cudaStream_t stream);

// mean: [N]; count: [N] of `count_type` (int32 or int64). mean + c * sqrt(log_step / count).
cudaError_t launch_select_ucb1(const float* mean, const void* count, IndexType count_type, float c,
                               float log_step, const Selection& selection, void* workspace,
                               cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
