// SPDX-License-Identifier: Apache-2.0
// shard_digit_counts and shard_positions: one process's part of a selection that many make
// together. All processes add up their histograms of the digits of the composite keys; the
// threshold that they find gives the positions of what is selected.
#pragma once

#include <cstddef>

#include "device/cuda_types.h"
#include "shared/shard.h"

namespace dynprune {
namespace cuda {

// counts: [Digit::of_round(round).num_bins()] out: how many samples fall into each bin; all 0 once
// the search is over. state: on the device.
cudaError_t launch_shard_digit_counts(const ShardWords& words, const SearchState* state, int round,
                                      Seed seed, int64_t* counts, cudaStream_t stream);

// positions: [k] out, ascending: the first k samples of the shard that are selected.
// workspace: shard_positions_workspace_bytes(n), 8-byte aligned.
size_t shard_positions_workspace_bytes(int64_t n);
cudaError_t launch_shard_positions(const ShardSelected& selected, Seed seed, int64_t k,
                                   int64_t* positions, void* workspace, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
