// SPDX-License-Identifier: Apache-2.0
// Recording a data error from a kernel.
#pragma once

#include "device/launch.h"
#include "shared/error_flags.h"

namespace dynprune {

// errors: [kNumDataErrors] or null. The last error is kept as the example. The example is written
// before the count, so that a reader who sees a count finds an example.
__device__ __forceinline__ void record_error(ErrorRecord* errors, DataError error,
                                             long long example) {
  if (errors == nullptr) return;
  ErrorRecord& record = errors[static_cast<int>(error)];
  atomicExch(&record.example, static_cast<unsigned long long>(example));
  __threadfence();
  atomicAdd(&record.count, 1ull);
}

}  // namespace dynprune
