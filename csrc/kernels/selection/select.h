// SPDX-License-Identifier: Apache-2.0
// select_ranked: the k samples that are ranked first, by any ranking.
#pragma once

#include "device/cuda_types.h"
#include "shared/error_flags.h"
#include "shared/ranking_spec.h"
#include "shared/selection.h"

namespace dynprune {
namespace cuda {

// Bytes of device memory that launch_select takes as its workspace. type: of the ranking's values.
size_t select_workspace_bytes(const Selection& selection, ScalarType type);

// The ranking must be supported for RankingUse::kSelect; its tensors are contiguous. Only scores
// may have a random part. workspace: 256-byte aligned, in any state. A negative or NaN weight
// counts as zero and is recorded in errors ([kNumDataErrors], may be null).
cudaError_t launch_select(const RankingSpec& spec, const Selection& selection, void* workspace,
                          ErrorRecord* errors, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
