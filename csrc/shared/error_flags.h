// SPDX-License-Identifier: Apache-2.0
// Errors that only the data can show. A kernel must not stop the host to report one: it skips the
// offender and leaves a record on the device, which the next call that may wait turns into an
// exception.
#pragma once

#include <cstdint>

namespace dynprune {

enum class DataError : int { kTarget = 0, kSampleId = 1, kWeight = 2 };
constexpr int kNumDataErrors = 3;

struct ErrorRecord {
  unsigned long long count;    // offenders so far
  unsigned long long example;  // one of them, an int64: target, sample id, or id of a bad weight
};

// What a CPU launcher found before it changed anything.
struct DataStatus {
  bool ok = true;
  DataError error = DataError::kTarget;
  int64_t position = 0;  // index into the batch or into the weights
  int64_t value = 0;
};

}  // namespace dynprune
