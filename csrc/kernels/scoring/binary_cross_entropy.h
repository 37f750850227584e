// SPDX-License-Identifier: Apache-2.0
// scored_binary_cross_entropy: per-sample loss, scores and gradient of several labels from one read
// of logits and targets, and one write of the gradient.
#pragma once

#include <cstddef>

#include "device/cuda_types.h"
#include "shared/binary_row.h"
#include "shared/error_flags.h"
#include "shared/score_update.h"

namespace dynprune {

namespace cuda {

// errors: [kNumDataErrors], may be null; records rows with a target that is no probability. Such a
// row has loss and scores NaN and gradient 0. Nothing else is touched.
cudaError_t launch_scored_binary_cross_entropy(const BinaryInput& input,
                                               const CrossEntropyOutput& output,
                                               ErrorRecord* errors, cudaStream_t stream);
cudaError_t launch_scored_binary_cross_entropy_backward(const BinaryInput& input,
                                                        const BinaryGradient& gradient,
                                                        cudaStream_t stream);

size_t scored_binary_cross_entropy_step_workspace_bytes(const BinaryInput& input);

// One launch up to kMaxRowsPerLaunch rows; beyond, small launches after it. ticket: 0 before and
// after; launches that share it must not overlap. The update's own values are not read.
cudaError_t launch_scored_binary_cross_entropy_step(const BinaryInput& input,
                                                    const CrossEntropyOutput& output,
                                                    const CrossEntropyStep& step,
                                                    const ScoreUpdate& update, void* workspace,
                                                    unsigned* ticket, ErrorRecord* errors,
                                                    cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
