// SPDX-License-Identifier: Apache-2.0
// Cross-entropy with probabilities as targets, for the CPU; see
// kernels/scoring/soft_cross_entropy.h.
#pragma once

#include "cpu/parallel.h"
#include "shared/error_flags.h"
#include "shared/score_update.h"
#include "shared/soft_row.h"

namespace dynprune {
namespace cpu {

void soft_cross_entropy(const CrossEntropyInput& input, const SoftTarget& target,
                        const CrossEntropyOutput& output, const Parallel& parallel);
void soft_cross_entropy_backward(const CrossEntropyInput& input, const SoftTarget& target,
                                 const CrossEntropyGradient& gradient, const Parallel& parallel);

// values and row_ids: [B] for the step's own use; the update's own values are not read, and its
// sample_ids are [B / step.rows_per_id]. Changes nothing if an id is out of range, and tells which.
DataStatus soft_cross_entropy_step(const CrossEntropyInput& input, const SoftTarget& target,
                                   const CrossEntropyOutput& output, const CrossEntropyStep& step,
                                   const ScoreUpdate& update, float* values, int64_t* row_ids,
                                   const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
