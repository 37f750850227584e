// SPDX-License-Identifier: Apache-2.0
// Errors in the data. A kernel must not make the host wait to report one. It skips the offender and
// leaves a record on the device. The next call that may wait turns the record into an exception.
#pragma once

#include <cstdint>

namespace dynprune {

enum class DataError : int { kTarget = 0, kSampleId = 1, kWeight = 2, kProbability = 3 };
constexpr int kNumDataErrors = 4;

struct ErrorRecord {
  unsigned long long count;  // offenders so far
  // One of them, an int64: target, sample id, id of a bad weight, or the bits of a target as
  // double.
  unsigned long long example;
};

// What a CPU launcher found before it changed anything.
struct DataStatus {
  bool ok = true;
  DataError error = DataError::kTarget;
  int64_t position = 0;  // index into the batch or into the weights
  int64_t value = 0;     // as ErrorRecord::example
};

}  // namespace dynprune
