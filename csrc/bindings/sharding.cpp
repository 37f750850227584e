// SPDX-License-Identifier: Apache-2.0
#include "bindings/sharding.h"

#include "cpu/sharding/shard_search.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/sharding/shard_search.h"
#endif

namespace dynprune {
namespace bindings {

ScalarType key_type(const Tensor& t, const char* name) {
  const ScalarType type = scalar_type(t, name);
  check(type != ScalarType::kFloat64, name, " must be float32, float16 or bfloat16");
  check_vector(t, name, t.numel());
  return type;
}

Shard checked_shard(int64_t count, int64_t first, int64_t stride, int64_t limit) {
  check(count >= 0 && count <= limit, "count must be in [0, ", limit, "], got ", count);
  check(first >= 0, "first must be at least 0, got ", first);
  check(stride >= 1 && stride <= kMaxSamples, "stride must be in [1, 2^32], got ", stride);
  const bool fits = count == 0 || (first < limit && count - 1 <= (limit - 1 - first) / stride);
  check(fits, count, " numbers from ", first, " on in steps of ", stride, " must stay below ",
        limit);
  return {count, first, stride};
}

const int64_t* checked_state(const std::optional<Tensor>& state, const char* name,
                             const Tensor& keys) {
  if (!state.has_value()) return nullptr;
  check_same_device(*state, name, keys);
  check_dtype(*state, name, Dtype::Long, "int64");
  check_vector(*state, name, 2);
  check(state->is_contiguous(), name, " must be contiguous");
  return static_cast<const int64_t*>(state->const_data_ptr());
}

namespace {

// Calls on_gpu(scope) for a tensor on a GPU, on_cpu() otherwise.
template <class OnCpu, class OnGpu>
void run(const Tensor& like, const OnCpu& on_cpu, const OnGpu& on_gpu) {
  if (!on_cuda(like)) {
    on_cpu();
    return;
  }
#if defined(DYNPRUNE_WITH_CUDA)
  const CudaScope scope(like);
  cuda_check(on_gpu(scope), "selecting samples");
#else
  (void)on_gpu;
#endif
}

#if defined(DYNPRUNE_WITH_CUDA)
#define DYNPRUNE_ON_GPU(...) [&](const CudaScope& scope) { return __VA_ARGS__; }
#else
#define DYNPRUNE_ON_GPU(...) nullptr
#endif

Tensor allocate_keys(const Tensor& like) { return allocate(like, {like.numel()}, Dtype::Int); }
uint32_t* keys_of(const Tensor& keys) { return static_cast<uint32_t*>(keys.mutable_data_ptr()); }

Seed checked_seed(const std::optional<Tensor>& tensor, int64_t value, const Tensor& like) {
  if (!tensor.has_value()) return {static_cast<uint64_t>(value), nullptr};
  check_same_device(*tensor, "seed", like);
  check_dtype(*tensor, "seed", Dtype::Long, "int64");
  check(tensor->numel() == 1, "seed must have one element");
  return {0, static_cast<const int64_t*>(tensor->const_data_ptr())};
}

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

Tensor keys_by_score(const Tensor& scores) {
  const ScalarType type = key_type(scores, "scores");
  const Tensor compact = dense(scores), keys = allocate_keys(scores);
  const void* data = compact.const_data_ptr();
  const int64_t n = scores.numel();
  run(
      scores, [&] { cpu::keys_by_score(data, type, n, keys_of(keys), torch_threads()); },
      DYNPRUNE_ON_GPU(cuda::launch_keys_by_score(data, type, n, keys_of(keys), scope.stream())));
  return keys;
}

Tensor keys_by_ucb(const Tensor& mean, const Tensor& variance, double c, bool sqrt_bonus) {
  const ScalarType type = key_type(mean, "mean");
  check(variance.scalar_type() == mean.scalar_type(), "variance must have the dtype of mean");
  check_vector(variance, "variance", mean.numel());
  check_same_device(variance, "variance", mean);
  const Tensor dense_mean = dense(mean), dense_variance = dense(variance);
  const Tensor keys = allocate_keys(mean);
  const void *means = dense_mean.const_data_ptr(), *variances = dense_variance.const_data_ptr();
  const float c32 = static_cast<float>(c);
  const int64_t n = mean.numel();
  run(
      mean,
      [&] {
        cpu::keys_by_ucb(means, variances, type, c32, sqrt_bonus, n, keys_of(keys),
                         torch_threads());
      },
      DYNPRUNE_ON_GPU(cuda::launch_keys_by_ucb(means, variances, type, c32, sqrt_bonus, n,
                                               keys_of(keys), scope.stream())));
  return keys;
}

Tensor keys_by_ucb1(const Tensor& mean, const Tensor& count, double c, double log_step) {
  check_dtype(mean, "mean", Dtype::Float, "float32");
  check_vector(mean, "mean", mean.numel());
  const IndexType type = index_type(count, "count");
  check(type != IndexType::kUInt8, "count must be int32 or int64");
  check_vector(count, "count", mean.numel());
  check_same_device(count, "count", mean);
  const Tensor dense_mean = dense(mean), dense_count = dense(count), keys = allocate_keys(mean);
  const float* means = static_cast<const float*>(dense_mean.const_data_ptr());
  const void* counts = dense_count.const_data_ptr();
  const float c32 = static_cast<float>(c), log32 = static_cast<float>(log_step);
  const int64_t n = mean.numel();
  run(
      mean,
      [&] {
        cpu::keys_by_ucb1(means, counts, type, c32, log32, n, keys_of(keys), torch_threads());
      },
      DYNPRUNE_ON_GPU(cuda::launch_keys_by_ucb1(means, counts, type, c32, log32, n, keys_of(keys),
                                                scope.stream())));
  return keys;
}

Tensor keys_by_weight(const Tensor& weights, int64_t first, int64_t stride,
                      std::optional<Tensor> seed_tensor, int64_t seed) {
  const ScalarType type = key_type(weights, "weights");
  const Shard shard = checked_shard(weights.numel(), first, stride, kMaxSamples);
  const Seed seeded = checked_seed(seed_tensor, seed, weights);
  const Tensor compact = dense(weights), keys = allocate_keys(weights);
  const void* data = compact.const_data_ptr();
  run(
      weights,
      [&] {
        raise_if_bad(
            cpu::keys_by_weight(data, type, shard, seeded.get(), keys_of(keys), torch_threads()),
            shard.count);
      },
      DYNPRUNE_ON_GPU(cuda::launch_keys_by_weight(data, type, shard, seeded, keys_of(keys),
                                                  scope.errors(), scope.stream())));
  return keys;
}

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
  run(
      keys, [&] { cpu::digit_counts(words, *from, digit, seeded.get(), out, torch_threads()); },
      DYNPRUNE_ON_GPU(cuda::launch_digit_counts(words, from, digit, seeded, out, scope.stream())));
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
#if defined(DYNPRUNE_WITH_CUDA)
  const size_t bytes = on_cuda(keys) ? cuda::list_shard_workspace_bytes(words.shard.count) : 0;
  const Tensor workspace = allocate_bytes(keys, bytes);
#endif
  run(
      keys,
      [&] {
        const int64_t found = cpu::list_shard(selected, seeded.get(), k, out, torch_threads());
        check(found == k, "k must be the number of selected samples, ", found, ", got ", k);
      },
      DYNPRUNE_ON_GPU(cuda::launch_list_shard(selected, seeded, k, out,
                                              workspace.mutable_data_ptr(), scope.stream())));
  return positions;
}

Tensor permutation_part(const Tensor& like, int64_t num_samples, int64_t first, int64_t stride,
                        int64_t count, bool inverse, std::optional<Tensor> seed_tensor,
                        int64_t seed) {
  check(num_samples >= 0 && num_samples <= kMaxSamples, "num_samples must be in [0, 2^32], got ",
        num_samples);
  const Shard part = checked_shard(count, first, stride, num_samples);
  const Seed seeded = checked_seed(seed_tensor, seed, like);
  const Tensor result = allocate(like, {count}, Dtype::Long);
  auto* out = static_cast<int64_t*>(result.mutable_data_ptr());
  run(
      like,
      [&] {
        cpu::permutation_part(num_samples, part, inverse, seeded.get(), out, torch_threads());
      },
      DYNPRUNE_ON_GPU(
          cuda::launch_permutation_part(num_samples, part, inverse, seeded, out, scope.stream())));
  return result;
}

template <class Library>
void register_sharding(Library& m) {
  m.impl("keys_by_score", TORCH_BOX(&keys_by_score));
  m.impl("keys_by_ucb", TORCH_BOX(&keys_by_ucb));
  m.impl("keys_by_ucb1", TORCH_BOX(&keys_by_ucb1));
  m.impl("keys_by_weight", TORCH_BOX(&keys_by_weight));
  m.impl("shard_digit_counts", TORCH_BOX(&shard_digit_counts));
  m.impl("shard_positions", TORCH_BOX(&shard_positions));
  m.impl("permutation_part", TORCH_BOX(&permutation_part));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_sharding(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_sharding(m); }

}  // namespace bindings
}  // namespace dynprune
