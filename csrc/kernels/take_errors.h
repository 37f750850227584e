// SPDX-License-Identifier: Apache-2.0
// take_errors: what kernels recorded of data errors since the last time.
#pragma once

#include <cstdint>

#include "device/cuda_types.h"
#include "shared/error_flags.h"

namespace dynprune {
namespace cuda {

// taken: [kNumDataErrors, 2], (count, example). Clears the counts. Kernels of other streams may be
// recording meanwhile: each offender is counted now or by the next call.
cudaError_t launch_take_errors(ErrorRecord* errors, int64_t* taken, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
