// SPDX-License-Identifier: Apache-2.0
// scored_cross_entropy for the CPU; see kernels/scoring/scored_cross_entropy.h.
#pragma once

#include "cpu/parallel.h"
#include "shared/cross_entropy_row.h"
#include "shared/error_flags.h"

namespace dynprune {
namespace cpu {

// Writes nothing if a target is out of range, and tells which.
DataStatus scored_cross_entropy(const CrossEntropyInput& input, const CrossEntropyOutput& output,
                                const Parallel& parallel);
// Both at once: the logits are read once, or twice in long columns, and `gradient.saved` is not.
// Without second targets, the gradient may replace the logits.
DataStatus scored_cross_entropy_with_gradient(const CrossEntropyInput& input,
                                              const CrossEntropyOutput& output,
                                              const CrossEntropyGradient& gradient,
                                              const Parallel& parallel);
void scored_cross_entropy_backward(const CrossEntropyInput& input,
                                   const CrossEntropyGradient& gradient, const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
