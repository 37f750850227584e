// SPDX-License-Identifier: Apache-2.0
// Cross-entropy with probabilities as targets: as scored_cross_entropy.h and
// scored_cross_entropy_step.h, whose scale_gradient serves these gradients, too.
#pragma once

#include <cstddef>

#include "device/cuda_types.h"
#include "shared/error_flags.h"
#include "shared/score_update.h"
#include "shared/soft_row.h"

namespace dynprune {

namespace cuda {

// Each logit and each probability is read once where a row fits shared memory, else twice; again by
// backward.
cudaError_t launch_soft_cross_entropy(const CrossEntropyInput& input, const SoftTarget& target,
                                      const CrossEntropyOutput& output, cudaStream_t stream);
cudaError_t launch_soft_cross_entropy_backward(const CrossEntropyInput& input,
                                               const SoftTarget& target,
                                               const CrossEntropyGradient& gradient,
                                               cudaStream_t stream);

size_t soft_cross_entropy_step_workspace_bytes(const CrossEntropyInput& input, int64_t max_ids);

// Without a divisor, kMean divides by the number of rows. One launch up to kMaxRowsPerLaunch rows,
// else small launches after it. ticket, errors and update: as for scored_cross_entropy_step.
cudaError_t launch_soft_cross_entropy_step(const CrossEntropyInput& input, const SoftTarget& target,
                                           const CrossEntropyOutput& output,
                                           const CrossEntropyStep& step, const ScoreUpdate& update,
                                           void* workspace, unsigned* ticket, ErrorRecord* errors,
                                           cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
