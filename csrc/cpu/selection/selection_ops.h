// SPDX-License-Identifier: Apache-2.0
// The selection launchers of csrc/kernels for the CPU: same arguments, same ids in the same order.
// They allocate what they need, about N / 4 bytes beside the ids.
#pragma once

#include "cpu/parallel.h"
#include "shared/selection.h"
#include "shared/error_flags.h"
#include "shared/scalar_types.h"

namespace dynprune {
namespace cpu {

void select_top_k(const void* scores, ScalarType type, const Selection& selection,
                  const Parallel& parallel);
void select_ucb(const void* mean, const void* variance, ScalarType type, float c, bool sqrt_bonus,
                const Selection& selection, const Parallel& parallel);
void select_ucb1(const float* mean, const void* count, IndexType count_type, float c,
                 float log_step, const Selection& selection, const Parallel& parallel);
// Writes no ids if a weight is negative or NaN, and tells which.
DataStatus select_weighted(const void* weights, ScalarType type, const Selection& selection,
                           const Parallel& parallel);
void select_uniform(const Selection& selection, const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
