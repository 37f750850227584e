// SPDX-License-Identifier: Apache-2.0
// The launchers of csrc/kernels/sharding/shard_search.h with C names and flat arguments, for ctypes.
#include "kernels/sharding/shard_search.h"

using namespace dynprune;

extern "C" {

int emulated_keys_by_score(const void* scores, int type, int64_t n, uint32_t* keys) {
  return cuda::launch_keys_by_score(scores, static_cast<ScalarType>(type), n, keys, nullptr);
}
int emulated_keys_by_ucb(const void* mean, const void* variance, int type, float c, int sqrt_bonus,
                         int64_t n, uint32_t* keys) {
  return cuda::launch_keys_by_ucb(mean, variance, static_cast<ScalarType>(type), c, sqrt_bonus != 0,
                                  n, keys, nullptr);
}
int emulated_keys_by_ucb1(const float* mean, const void* count, int count_type, float c,
                          float log_step, int64_t n, uint32_t* keys) {
  return cuda::launch_keys_by_ucb1(mean, count, static_cast<IndexType>(count_type), c, log_step, n,
                                   keys, nullptr);
}
int emulated_keys_by_weight(const void* weights, int type, const Shard* shard, uint64_t seed,
                            uint32_t* keys, ErrorRecord* errors) {
  return cuda::launch_keys_by_weight(weights, static_cast<ScalarType>(type), *shard,
                                     Seed{seed, nullptr}, keys, errors, nullptr);
}
int emulated_digit_counts(const uint32_t* keys, const Shard* shard, const uint64_t* greedy,
                          int explore, const SearchState* state, int round, uint64_t seed,
                          int64_t* counts) {
  return cuda::launch_digit_counts({keys, *shard, greedy, explore != 0}, state, round,
                                   Seed{seed, nullptr}, counts, nullptr);
}
size_t emulated_list_shard_workspace_bytes(int64_t n) {
  return cuda::list_shard_workspace_bytes(n);
}
int emulated_list_shard(const uint32_t* keys, const Shard* shard, const uint64_t* greedy,
                        const uint64_t* random, uint64_t seed, int64_t k, int64_t* positions,
                        void* workspace) {
  return cuda::launch_list_shard({{keys, *shard, greedy, false}, random}, Seed{seed, nullptr}, k,
                                 positions, workspace, nullptr);
}
int emulated_permutation_part(int64_t n, const Shard* part, int inverse, uint64_t seed,
                              int64_t* out) {
  return cuda::launch_permutation_part(n, *part, inverse != 0, Seed{seed, nullptr}, out, nullptr);
}
}
