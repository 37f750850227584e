// SPDX-License-Identifier: Apache-2.0
// update_scores_ for the CPU; see kernels/update_scores.h.
#pragma once

#include "cpu/parallel.h"
#include "primitives/error_flags.h"
#include "primitives/score_update.h"

namespace dynprune {
namespace cpu {

// The first id that is out of range.
DataStatus check_ids(const ScoreUpdate& update);

// Changes nothing if an id is out of range, and tells which.
DataStatus update_scores(const ScoreUpdate& update, const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
