// SPDX-License-Identifier: Apache-2.0
// select_uniform and permutation: the first k elements of a keyed permutation of the ids; no scores
// are read.
#pragma once

#include "device/cuda_types.h"
#include "shared/selection.h"

namespace dynprune {
namespace cuda {

// Device memory that the launcher wants, zero in random order.
size_t select_uniform_workspace_bytes(const Selection& selection);

// Fills selection.ids with k() ids, O(k) work in random order and O(N) in ascending order.
cudaError_t launch_select_uniform(const Selection& selection, void* workspace, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
