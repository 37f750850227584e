// SPDX-License-Identifier: Apache-2.0
// The launcher of csrc/kernels/sharding/shard_keys.h for the CPU.
#pragma once

#include "cpu/parallel.h"
#include "shared/error_flags.h"
#include "shared/ranking_spec.h"
#include "shared/shard.h"

namespace dynprune {
namespace cpu {

// keys: [shard.count] out. The ranking must be supported for RankingUse::kKeys. If a weight is
// negative or NaN, returns its position in the shard, and its id.
DataStatus shard_keys(const RankingSpec& spec, const Shard& shard, uint64_t seed, uint32_t* keys,
                      const Parallel& parallel);

}  // namespace cpu
}  // namespace dynprune
