// SPDX-License-Identifier: Apache-2.0
#include "bindings/shard_checks.h"

namespace dynprune {
namespace bindings {

Shard checked_shard(int64_t count, int64_t first, int64_t stride, int64_t limit) {
  check(count >= 0 && count <= limit, "count must be in [0, ", limit, "], got ", count);
  check(first >= 0, "first must be at least 0, got ", first);
  check(stride >= 1 && stride <= kMaxSamples, "stride must be in [1, 2^32], got ", stride);
  const bool fits = count == 0 || (first < limit && count - 1 <= (limit - 1 - first) / stride);
  check(fits, count, " numbers from ", first, " on in steps of ", stride, " must stay below ",
        limit);
  return {count, first, stride};
}

const int64_t* checked_state(const std::optional<Tensor>& state, const char* name,
                             const Tensor& keys) {
  if (!state.has_value()) return nullptr;
  check_same_device(*state, name, keys);
  check_dtype(*state, name, Dtype::Long, "int64");
  check_vector(*state, name, 2);
  check(state->is_contiguous(), name, " must be contiguous");
  return static_cast<const int64_t*>(state->const_data_ptr());
}

}  // namespace bindings
}  // namespace dynprune
