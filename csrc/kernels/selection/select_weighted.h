// SPDX-License-Identifier: Apache-2.0
// select_weighted: k samples without replacement, each draw proportional to the weights that are
// left.
#pragma once

#include "shared/selection.h"
#include "device/cuda_types.h"
#include "shared/error_flags.h"
#include "shared/scalar_types.h"

namespace dynprune {
namespace cuda {

// weights: [N] of `type`, contiguous. A negative or NaN weight counts as zero and is recorded in
// errors
// ([kNumDataErrors], may be null).
cudaError_t launch_select_weighted(const void* weights, ScalarType type, const Selection& selection,
                                   void* workspace, ErrorRecord* errors, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
