// SPDX-License-Identifier: Apache-2.0
// The launchers of selections with C names and flat arguments, for ctypes. Each returns the
// launcher's error.
#include "kernels/selection/select.h"
#include "kernels/selection/select_uniform.h"
#include "kernels/take_errors.h"
#include "shared/permutation.h"
#include "shared/ranking.h"

using namespace dynprune;

extern "C" {

// What every selection is asked, in the order of SelectionArguments in kernels.py.
struct SelectionArguments {
  int64_t num_samples, num_greedy, num_random;
  uint64_t seed;
  const int64_t* seed_pointer;
  int32_t ascending;
  int64_t* ids;
  void* workspace;

  Selection selection() const {
    return {num_samples,
            num_greedy,
            num_random,
            Seed{seed, seed_pointer},
            ascending != 0 ? Order::kAscending : Order::kRandom,
            ids};
  }
};

size_t emulated_select_workspace_bytes(const SelectionArguments* a, int type) {
  return cuda::select_workspace_bytes(a->selection(), static_cast<ScalarType>(type));
}
size_t emulated_select_uniform_workspace_bytes(const SelectionArguments* a) {
  return cuda::select_uniform_workspace_bytes(a->selection());
}
int emulated_select(const SelectionArguments* a, const RankingSpec* spec, ErrorRecord* errors) {
  return cuda::launch_select(*spec, a->selection(), a->workspace, errors, nullptr);
}
int emulated_select_uniform(const SelectionArguments* a) {
  return cuda::launch_select_uniform(a->selection(), a->workspace, nullptr);
}

int emulated_take_errors(ErrorRecord* errors, int64_t* taken) {
  return cuda::launch_take_errors(errors, taken, nullptr);
}

// Arithmetic on sizes that no memory here holds: a permutation of n elements, for n up to 2^63, and
// the digits of a composite key at an id near 2^32.
uint64_t permutation_at(uint64_t n, uint64_t seed, uint64_t position) {
  return Permutation(n, seed, Stream::kPermutation)(position);
}
uint64_t permutation_position_of(uint64_t n, uint64_t seed, uint64_t element) {
  return Permutation(n, seed, Stream::kPermutation).position_of(element);
}
uint32_t tie_hash_of(uint64_t seed, int64_t id) { return IdHash(seed, Stream::kTie)(id); }
float exponential_of(uint32_t hash) { return exponential(hash); }
float widen_half(uint16_t bits) { return widen(Half{bits}); }
uint16_t narrow_half(float x) { return narrow<Half>(x).bits; }
float widen_bfloat16(uint16_t bits) { return widen(BFloat16{bits}); }
uint16_t narrow_bfloat16(float x) { return narrow<BFloat16>(x).bits; }
}
