// SPDX-License-Identifier: Apache-2.0
// scored_cross_entropy: per-sample loss, EL2N, entropy, margin and correctness from one read of the
// logits, and the gradient of the losses from another.
#pragma once

#include "device/cuda_types.h"
#include "shared/cross_entropy_row.h"
#include "shared/error_flags.h"

namespace dynprune {

namespace cuda {

// An ignored row has loss and scores 0. errors: [kNumDataErrors], may be null; records rows whose
// target is out of range. Such a row has loss and scores NaN and gradient 0. Nothing else is
// touched.
cudaError_t launch_scored_cross_entropy(const CrossEntropyInput& input,
                                        const CrossEntropyOutput& output, ErrorRecord* errors,
                                        cudaStream_t stream);
// Without second targets, the gradient may replace the logits.
cudaError_t launch_scored_cross_entropy_backward(const CrossEntropyInput& input,
                                                 const CrossEntropyGradient& gradient,
                                                 cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
