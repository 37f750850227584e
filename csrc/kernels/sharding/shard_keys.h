// SPDX-License-Identifier: Apache-2.0
// shard_keys: the ordered keys of a shard's samples, stored for a search that reads them several
// times.
#pragma once

#include "device/cuda_types.h"
#include "shared/error_flags.h"
#include "shared/ranking_spec.h"
#include "shared/shard.h"

namespace dynprune {
namespace cuda {

// keys: [shard.count] out. The ranking must be supported for RankingUse::kKeys. A negative or NaN
// weight gets the smallest key and is recorded in errors ([kNumDataErrors], may be null).
cudaError_t launch_shard_keys(const RankingSpec& spec, const Shard& shard, Seed seed,
                              uint32_t* keys, ErrorRecord* errors, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
