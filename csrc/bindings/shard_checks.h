// SPDX-License-Identifier: Apache-2.0
// The checks that several ops of a sharded selection make.
#pragma once

#include "bindings/common.h"
#include "shared/shard.h"

namespace dynprune {
namespace bindings {

// The numbers first, first + stride, ... below limit.
Shard checked_shard(int64_t count, int64_t first, int64_t stride, int64_t limit);

// A search's state, null if there is none.
const int64_t* checked_state(const std::optional<Tensor>& state, const char* name,
                             const Tensor& keys);

}  // namespace bindings
}  // namespace dynprune
