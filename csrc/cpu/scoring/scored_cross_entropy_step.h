// SPDX-License-Identifier: Apache-2.0
// scored_cross_entropy_step_ for the CPU; see kernels/scoring/scored_cross_entropy_step.h.
#pragma once

#include "cpu/parallel.h"
#include "shared/cross_entropy_row.h"
#include "shared/error_flags.h"
#include "shared/score_update.h"

namespace dynprune {
namespace cpu {

// values and row_ids: [B] for the step's own use; the update's own values are not read, and its
// sample_ids are [B / step.rows_per_id]. Changes
// nothing if a target or an id is out of range, and tells which.
DataStatus scored_cross_entropy_step(const CrossEntropyInput& input,
                                     const CrossEntropyOutput& output, const CrossEntropyStep& step,
                                     const ScoreUpdate& update, float* values, int64_t* row_ids,
                                     const Parallel& parallel);

// grad_logits [rows, classes] of type, times grad_loss [rows] / grad_scale ([1] or null) in place.
void scale_gradient(void* grad_logits, ScalarType type, int64_t rows, int64_t classes,
                    const void* grad_loss, int64_t grad_loss_stride, const void* grad_scale,
                    const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
