// SPDX-License-Identifier: Apache-2.0
// Recording a data error from a kernel.
#pragma once

#include "error_flags.h"
#include "launch.h"

namespace dynprune {

// errors: [kNumDataErrors] or null. The first offender to get here is kept as the example.
__device__ __forceinline__ void record_error(ErrorRecord* errors, DataError error,
                                             long long example) {
  if (errors == nullptr) return;
  ErrorRecord& record = errors[static_cast<int>(error)];
  if (atomicAdd(&record.count, 1ull) == 0) record.example = example;
}

}  // namespace dynprune
