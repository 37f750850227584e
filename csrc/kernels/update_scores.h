// SPDX-License-Identifier: Apache-2.0
// update_scores_: moving mean and variance, visit and non-finite counts of the samples of a batch,
// in place.
#pragma once

#include <cstddef>

#include "primitives/cuda_types.h"
#include "primitives/error_flags.h"
#include "primitives/scalar_types.h"
#include "primitives/score_update.h"

namespace dynprune {

struct ScoreUpdate {
  float* mean;      // [N]
  float* variance;  // [N]
  void* count;      // [N] of count_type (int32 or int64)
  IndexType count_type;
  int32_t* non_finite_count;  // [N] or null
  bool* last_non_finite;      // [N] or null
  int64_t num_samples;        // N
  const int64_t*
      sample_ids;  // [B]; kNoSample is skipped; of an id that occurs twice the last value counts
  const float* values;  // [B]
  int64_t batch_size;   // B < 2^31
  float alpha;
  FirstVisit first_visit;
};

namespace cuda {

size_t update_scores_workspace_bytes(int64_t batch_size);

// An id out of range changes nothing and is recorded in errors ([kNumDataErrors], may be null).
cudaError_t launch_update_scores(const ScoreUpdate& update, void* workspace, ErrorRecord* errors,
                                 cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
