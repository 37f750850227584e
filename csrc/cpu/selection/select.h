// SPDX-License-Identifier: Apache-2.0
// The selection launchers of csrc/kernels for the CPU: same arguments, same ids in the same order.
// They allocate what they need, about N / 4 bytes beside the ids.
#pragma once

#include "cpu/parallel.h"
#include "shared/error_flags.h"
#include "shared/ranking_spec.h"
#include "shared/selection.h"

namespace dynprune {
namespace cpu {

// The ranking must be supported for RankingUse::kSelect. Writes no ids if a weight is negative or
// NaN, and returns which.
DataStatus select(const RankingSpec& spec, const Selection& selection, const Parallel& parallel);

void select_uniform(const Selection& selection, const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
