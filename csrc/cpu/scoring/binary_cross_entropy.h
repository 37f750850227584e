// SPDX-License-Identifier: Apache-2.0
// scored_binary_cross_entropy for the CPU; see kernels/scoring/binary_cross_entropy.h.
#pragma once

#include "cpu/parallel.h"
#include "shared/binary_row.h"
#include "shared/error_flags.h"
#include "shared/score_update.h"

namespace dynprune {
namespace cpu {

// Each tells the first row with a target that is no probability, if there is one. What it wrote is
// then of no use; it has not touched the update's columns.
DataStatus scored_binary_cross_entropy(const BinaryInput& input, const CrossEntropyOutput& output,
                                       const Parallel& parallel);
DataStatus scored_binary_cross_entropy_backward(const BinaryInput& input,
                                                const BinaryGradient& gradient,
                                                const Parallel& parallel);

// values and row_ids: [B] for the step's own use; the update's own values are not read. Tells the
// first id that is out of range, too.
DataStatus scored_binary_cross_entropy_step(const BinaryInput& input,
                                            const CrossEntropyOutput& output,
                                            const CrossEntropyStep& step, const ScoreUpdate& update,
                                            float* values, int64_t* row_ids,
                                            const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
