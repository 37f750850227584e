// SPDX-License-Identifier: Apache-2.0
// One process's part of a selection that many make together, by histograms of the digits of the
// composite keys that all of them add up: keys, counts of one digit, positions of what is selected.
// Also the part of a permutation that one process walks.
#pragma once

#include "shared/selection.h"
#include "device/cuda_types.h"
#include "shared/error_flags.h"
#include "shared/scalar_types.h"
#include "shared/shard.h"

namespace dynprune {
namespace cuda {

// The ordered keys that select_top_k, select_ucb, select_ucb1 and select_weighted rank by.
// keys: [n] out. Inputs: [n], contiguous, of the types of those ops without float64.
cudaError_t launch_keys_by_score(const void* scores, ScalarType type, int64_t n, uint32_t* keys,
                                 cudaStream_t stream);
cudaError_t launch_keys_by_ucb(const void* mean, const void* variance, ScalarType type, float c,
                               bool sqrt_bonus, int64_t n, uint32_t* keys, cudaStream_t stream);
cudaError_t launch_keys_by_ucb1(const float* mean, const void* count, IndexType count_type, float c,
                                float log_step, int64_t n, uint32_t* keys, cudaStream_t stream);
cudaError_t launch_keys_by_weight(const void* weights, ScalarType type, const Shard& shard,
                                  Seed seed, uint32_t* keys, ErrorRecord* errors,
                                  cudaStream_t stream);

// counts: [Digit::of_round(round).num_bins()] out: how many samples fall into each bin; all 0 once
// the search is over. state: on the device.
cudaError_t launch_digit_counts(const ShardWords& words, const SearchState* state, int round,
                                Seed seed, int64_t* counts, cudaStream_t stream);

// positions: [k] out, ascending: the first k samples of the shard that are selected.
// workspace: list_shard_workspace_bytes(n), 8-byte aligned.
size_t list_shard_workspace_bytes(int64_t n);
cudaError_t launch_list_shard(const ShardSelected& selected, Seed seed, int64_t k,
                              int64_t* positions, void* workspace, cudaStream_t stream);

// out: [part.count]: the elements of `permutation` (see functional.py) at the positions of the
// part; inverse: the positions of its elements. n <= kMaxSamples, all of the part below n.
cudaError_t launch_permutation_part(int64_t n, const Shard& part, bool inverse, Seed seed,
                                    int64_t* out, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
