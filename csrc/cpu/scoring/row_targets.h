// SPDX-License-Identifier: Apache-2.0
// The hard targets of many rows at once.
#pragma once

#include "cpu/clones.h"
#include "cpu/scoring/lanes.h"
#include "shared/cross_entropy_row.h"
#include "shared/error_flags.h"

namespace dynprune {
namespace cpu {

// Calls f(pointer to the first index, of its own type).
template <class F>
auto with_indices(const IndexArray& indices, const F& f) {
  switch (indices.type) {
    case IndexType::kInt32:
      return f(static_cast<const int32_t*>(indices.data));
    case IndexType::kUInt8:
      return f(static_cast<const uint8_t*>(indices.data));
    default:
      return f(static_cast<const int64_t*>(indices.data));
  }
}

inline bool is_class(int64_t target, int64_t classes) {
  return static_cast<uint64_t>(target) < static_cast<uint64_t>(classes);
}

// The first row whose target is out of range.
inline DataStatus check_targets(const CrossEntropyInput& in) {
  for (int64_t row = 0; row < in.batch_size; row++) {
    const TargetPair y = targets_of_row(in, row);
    if (y.kind == RowKind::kOutOfRange) return {false, DataError::kTarget, row, y.offender};
  }
  return DataStatus{};
}

// Copies the targets of kLanes rows. False if one of them is ignored or out of range.
template <class Index>
DYNPRUNE_CLONES bool copy_scored_targets(const Index* target, int64_t classes, int64_t ignore_index,
                                         int64_t* to) {
  int64_t others = 0;
  for (int l = 0; l < kLanes; l++) {
    const int64_t y = target[l];
    to[l] = y;
    others += !is_class(y, classes) | (y == ignore_index);
  }
  return others == 0;
}

}  // namespace cpu
}  // namespace dynprune
