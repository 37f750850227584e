// SPDX-License-Identifier: Apache-2.0
// The launchers of csrc/kernels/sharding with C names and flat arguments, for ctypes.
#include "kernels/sharding/digit_search.h"
#include "kernels/sharding/permutation_part.h"
#include "kernels/sharding/shard_keys.h"

using namespace dynprune;

extern "C" {

int emulated_shard_keys(const RankingSpec* spec, const Shard* shard, uint64_t seed, uint32_t* keys,
                        ErrorRecord* errors) {
  return cuda::launch_shard_keys(*spec, *shard, Seed{seed, nullptr}, keys, errors, nullptr);
}
int emulated_shard_digit_counts(const uint32_t* keys, const Shard* shard, const uint64_t* greedy,
                                int explore, const SearchState* state, int round, uint64_t seed,
                                int64_t* counts) {
  return cuda::launch_shard_digit_counts({keys, *shard, greedy, explore != 0}, state, round,
                                         Seed{seed, nullptr}, counts, nullptr);
}
size_t emulated_shard_positions_workspace_bytes(int64_t n) {
  return cuda::shard_positions_workspace_bytes(n);
}
int emulated_shard_positions(const uint32_t* keys, const Shard* shard, const uint64_t* greedy,
                             const uint64_t* random, uint64_t seed, int64_t k, int64_t* positions,
                             void* workspace) {
  return cuda::launch_shard_positions({{keys, *shard, greedy, false}, random}, Seed{seed, nullptr},
                                      k, positions, workspace, nullptr);
}
int emulated_permutation_part(int64_t n, const Shard* part, int inverse, uint64_t seed,
                              int64_t* out) {
  return cuda::launch_permutation_part(n, *part, inverse != 0, Seed{seed, nullptr}, out, nullptr);
}
}
