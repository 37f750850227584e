// SPDX-License-Identifier: Apache-2.0
// update_scores_ for the CPU; see kernels/scoring/update_scores.h.
#pragma once

#include "cpu/parallel.h"
#include "shared/error_flags.h"
#include "shared/score_update.h"

namespace dynprune {
namespace cpu {

inline bool is_sample_or_none(int64_t id, int64_t num_samples) {
  return id == kNoSample || (id >= 0 && id < num_samples);
}

// Changes nothing if an id is out of range, and tells which.
DataStatus update_scores(const ScoreUpdate& update, const Parallel& parallel);

// The same for ids that are known to be in range.
void update_scores_unchecked(const ScoreUpdate& update, const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
