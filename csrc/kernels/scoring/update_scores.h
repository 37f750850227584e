// SPDX-License-Identifier: Apache-2.0
// update_scores_: moving mean and variance, visit and non-finite counts of the samples of a batch,
// in place.
#pragma once

#include <cstddef>

#include "device/cuda_types.h"
#include "shared/error_flags.h"
#include "shared/score_update.h"

namespace dynprune {

namespace cuda {

size_t update_scores_workspace_bytes(int64_t rows);

// An id out of range changes nothing and is recorded in errors ([kNumDataErrors], may be null).
cudaError_t launch_update_scores(const ScoreUpdate& update, void* workspace, ErrorRecord* errors,
                                 cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
