// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/digit_search.h"
#include "bindings/shard_checks.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/sharding/digit_search.h"
#endif

namespace dynprune {
namespace bindings {
namespace {

ShardWords checked_words(const Tensor& keys, const std::optional<Tensor>& greedy, bool explore,
                         int64_t first, int64_t stride) {
  check_dtype(keys, "keys", Dtype::Int, "int32");
  check_vector(keys, "keys", keys.numel());
  check(keys.is_contiguous(), "keys must be contiguous");
  const Shard shard = checked_shard(keys.numel(), first, stride, kMaxSamples);
  return {static_cast<const uint32_t*>(keys.const_data_ptr()), shard,
          reinterpret_cast<const uint64_t*>(checked_state(greedy, "greedy", keys)), explore};
}

}  // namespace

Tensor shard_digit_counts(const Tensor& keys, const Tensor& state, std::optional<Tensor> greedy,
                          bool explore, int64_t round, int64_t first, int64_t stride,
                          std::optional<Tensor> seed_tensor, int64_t seed) {
  const ShardWords words = checked_words(keys, greedy, explore, first, stride);
  check(explore || words.greedy == nullptr, "greedy is for explore only");
  check(round >= 0 && round < Digit::kRounds, "round must be in [0, ", Digit::kRounds, "), got ",
        round);
  const auto* from = reinterpret_cast<const SearchState*>(checked_state(state, "state", keys));
  const Seed seeded = checked_seed(seed_tensor, seed, keys);
  const int digit = static_cast<int>(round);
  const Tensor counts = allocate(keys, {Digit::of_round(digit).num_bins()}, Dtype::Long);
  auto* out = static_cast<int64_t*>(counts.mutable_data_ptr());
  run_on_device(
      keys, "counting digits",
      [&] { cpu::shard_digit_counts(words, *from, digit, seeded.get(), out, torch_threads()); },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_shard_digit_counts(words, from, digit, seeded, out, scope.stream());
      }));
  return counts;
}

Tensor shard_positions(const Tensor& keys, std::optional<Tensor> greedy,
                       std::optional<Tensor> random, int64_t k, int64_t first, int64_t stride,
                       std::optional<Tensor> seed_tensor, int64_t seed) {
  const ShardWords words = checked_words(keys, greedy, false, first, stride);
  const int64_t* threshold = checked_state(random, "random", keys);
  const ShardSelected selected = {words, reinterpret_cast<const uint64_t*>(threshold)};
  check(k >= 0 && k <= words.shard.count, "k must be in [0, ", words.shard.count, "], got ", k);
  const Seed seeded = checked_seed(seed_tensor, seed, keys);
  const Tensor positions = allocate(keys, {k}, Dtype::Long);
  auto* out = static_cast<int64_t*>(positions.mutable_data_ptr());
  run_on_device(
      keys, "selecting samples",
      [&] {
        const int64_t found = cpu::shard_positions(selected, seeded.get(), k, out, torch_threads());
        check(found == k, "k must be the number of selected samples, ", found, ", got ", k);
      },
      DYNPRUNE_ON_CUDA({
        const size_t bytes = cuda::shard_positions_workspace_bytes(words.shard.count);
        const Tensor workspace = allocate_bytes(keys, bytes);
        return cuda::launch_shard_positions(selected, seeded, k, out, workspace.mutable_data_ptr(),
                                            scope.stream());
      }));
  return positions;
}

template <class Library>
void register_digit_search(Library& m) {
  m.impl("shard_digit_counts", TORCH_BOX(&shard_digit_counts));
  m.impl("shard_positions", TORCH_BOX(&shard_positions));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_digit_search(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_digit_search(m); }

}  // namespace bindings
}  // namespace dynprune
