// SPDX-License-Identifier: Apache-2.0
// scored_cross_entropy_step_: per-sample loss and scores, the gradient, the reduced loss and the
// score table's update. It reads the logits once and writes the gradient once.
#pragma once

#include <cstddef>

#include "device/cuda_types.h"
#include "shared/cross_entropy_row.h"
#include "shared/error_flags.h"
#include "shared/score_update.h"

namespace dynprune {

namespace cuda {

size_t scored_cross_entropy_step_workspace_bytes(const CrossEntropyInput& input, int64_t max_ids);

// One launch up to kMaxRowsPerLaunch rows; beyond, small launches before and after. ticket: 0
// before and after; launches that share it must not overlap. errors: [kNumDataErrors], may be null;
// records rows whose target or sample id is out of range. Such a target makes the row count for
// nothing. The update's own values are not read. Its sample_ids are [B / step.rows_per_id].
cudaError_t launch_scored_cross_entropy_step(const CrossEntropyInput& input,
                                             const CrossEntropyOutput& output,
                                             const CrossEntropyStep& step,
                                             const ScoreUpdate& update, void* workspace,
                                             unsigned* ticket, ErrorRecord* errors,
                                             cudaStream_t stream);

// grad_logits [rows, classes] of type, times grad_loss [rows] / grad_scale ([1] or null) in place.
// Rows with a factor of 1 are neither read nor written.
cudaError_t launch_scale_gradient(void* grad_logits, ScalarType type, int64_t rows, int64_t classes,
                                  const void* grad_loss, int64_t grad_loss_stride,
                                  const void* grad_scale, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
