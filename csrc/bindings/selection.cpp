// SPDX-License-Identifier: Apache-2.0
#include "bindings/common.h"
#include "cpu/selection/selection_ops.h"
#include "shared/ordered_key.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/selection/select_top_k.h"
#include "kernels/selection/select_ucb.h"
#include "kernels/selection/select_uniform.h"
#include "kernels/selection/select_weighted.h"
#endif

namespace dynprune {
namespace bindings {
namespace {

// What the ops share: how many ids of how many, by which seed, in which order.
struct Request {
  int64_t num_samples, k, num_random;
  std::optional<Tensor> seed_tensor;
  int64_t seed;
  bool ascending;
};

// Comes before anything is copied or allocated.
void check_request(const Request& r, const Tensor& like) {
  check(r.num_samples <= kMaxSamples, "num_samples must be at most 2^32, got ", r.num_samples);
  check(r.k >= 0 && r.k <= r.num_samples, "k must be in [0, ", r.num_samples, "], got ", r.k);
  check(r.num_random >= 0 && r.num_random <= r.k, "num_random must be in [0, k], got ",
        r.num_random);
  if (r.seed_tensor.has_value()) {
    check_same_device(*r.seed_tensor, "seed", like);
    check_dtype(*r.seed_tensor, "seed", Dtype::Long, "int64");
    check(r.seed_tensor->numel() == 1, "seed must have one element");
  }
}

Selection make_selection(const Request& r, const Tensor& ids) {
  Seed seed{static_cast<uint64_t>(r.seed), nullptr};
  if (r.seed_tensor.has_value()) {
    seed.device = static_cast<const int64_t*>(r.seed_tensor->const_data_ptr());
  }
  return {r.num_samples,
          r.k - r.num_random,
          r.num_random,
          seed,
          r.ascending ? Order::kAscending : Order::kRandom,
          static_cast<int64_t*>(ids.mutable_data_ptr())};
}

// Allocates the ids on the device of `like`, for a checked request, and has them filled:
// on_cpu(selection, parallel), or on_gpu(selection, workspace, scope).
// ranked_by: the type of the scores that the op ranks the samples by; none: it draws uniformly.
template <class OnCpu, class OnGpu>
Tensor select(const Tensor& like, std::optional<ScalarType> ranked_by, const Request& r,
              const OnCpu& on_cpu, const OnGpu& on_gpu) {
  Tensor ids = allocate(like, {r.k}, Dtype::Long);
  const Selection selection = make_selection(r, ids);
  if (r.k == 0) return ids;
  if (!on_cuda(like)) {
    on_cpu(selection, torch_threads());
    return ids;
  }
#if defined(DYNPRUNE_WITH_CUDA)
  const CudaScope scope(like);
  const size_t bytes = ranked_by.has_value()
                           ? cuda::selection_workspace_bytes(selection, *ranked_by)
                           : cuda::select_uniform_workspace_bytes(selection);
  const Tensor workspace = allocate_bytes(like, bytes);
  cuda_check(on_gpu(selection, workspace.mutable_data_ptr(), scope), "selecting samples");
#else
  (void)on_gpu, (void)ranked_by;
#endif
  return ids;
}

#if defined(DYNPRUNE_WITH_CUDA)
#define DYNPRUNE_ON_GPU(...) \
  [&](const Selection& s, void* workspace, const CudaScope& scope) __VA_ARGS__
#else
#define DYNPRUNE_ON_GPU(...) nullptr
#endif

Tensor select_by_score(const Tensor& scores, const Request& r) {
  const ScalarType type = scalar_type(scores, "scores");
  check_vector(scores, "scores", r.num_samples);
  check_request(r, scores);
  const Tensor compact = dense(scores);
  const void* data = compact.const_data_ptr();
  return select(
      scores, type, r,
      [&](const Selection& s, const cpu::Parallel& threads) {
        cpu::select_top_k(data, type, s, threads);
      },
      DYNPRUNE_ON_GPU(
          { return cuda::launch_select_top_k(data, type, s, workspace, scope.stream()); }));
}

}  // namespace

Tensor select_top_k(const Tensor& scores, int64_t k, std::optional<Tensor> seed_tensor,
                    int64_t seed, bool ascending) {
  return select_by_score(scores, {scores.numel(), k, 0, seed_tensor, seed, ascending});
}

Tensor select_epsilon_greedy(const Tensor& scores, int64_t k, int64_t num_random,
                             std::optional<Tensor> seed_tensor, int64_t seed, bool ascending) {
  return select_by_score(scores, {scores.numel(), k, num_random, seed_tensor, seed, ascending});
}

Tensor select_ucb(const Tensor& mean, const Tensor& variance, int64_t k, double c, bool sqrt_bonus,
                  std::optional<Tensor> seed_tensor, int64_t seed, bool ascending) {
  const Request r{mean.numel(), k, 0, seed_tensor, seed, ascending};
  const ScalarType type = scalar_type(mean, "mean");
  check(type != ScalarType::kFloat64, "mean must be float32, float16 or bfloat16");
  check(variance.scalar_type() == mean.scalar_type(), "variance must have the dtype of mean");
  check_vector(mean, "mean", r.num_samples);
  check_vector(variance, "variance", r.num_samples);
  check_same_device(variance, "variance", mean);
  check_request(r, mean);
  const Tensor dense_mean = dense(mean), dense_variance = dense(variance);
  const void *means = dense_mean.const_data_ptr(), *variances = dense_variance.const_data_ptr();
  const float c32 = static_cast<float>(c);
  return select(
      mean, type, r,
      [&](const Selection& s, const cpu::Parallel& threads) {
        cpu::select_ucb(means, variances, type, c32, sqrt_bonus, s, threads);
      },
      DYNPRUNE_ON_GPU({
        return cuda::launch_select_ucb(means, variances, type, c32, sqrt_bonus, s, workspace,
                                       scope.stream());
      }));
}

Tensor select_ucb1(const Tensor& mean, const Tensor& count, int64_t k, double c, double log_step,
                   std::optional<Tensor> seed_tensor, int64_t seed, bool ascending) {
  const Request r{mean.numel(), k, 0, seed_tensor, seed, ascending};
  check_dtype(mean, "mean", Dtype::Float, "float32");
  const IndexType count_type = index_type(count, "count");
  check(count_type != IndexType::kUInt8, "count must be int32 or int64");
  check_vector(mean, "mean", r.num_samples);
  check_vector(count, "count", r.num_samples);
  check_same_device(count, "count", mean);
  check_request(r, mean);
  const Tensor dense_mean = dense(mean), dense_count = dense(count);
  const float* means = static_cast<const float*>(dense_mean.const_data_ptr());
  const void* counts = dense_count.const_data_ptr();
  const float c32 = static_cast<float>(c), log32 = static_cast<float>(log_step);
  return select(
      mean, ScalarType::kFloat32, r,
      [&](const Selection& s, const cpu::Parallel& threads) {
        cpu::select_ucb1(means, counts, count_type, c32, log32, s, threads);
      },
      DYNPRUNE_ON_GPU({
        return cuda::launch_select_ucb1(means, counts, count_type, c32, log32, s, workspace,
                                        scope.stream());
      }));
}

Tensor select_weighted(const Tensor& weights, int64_t k, std::optional<Tensor> seed_tensor,
                       int64_t seed, bool ascending) {
  const Request r{weights.numel(), k, 0, seed_tensor, seed, ascending};
  const ScalarType type = scalar_type(weights, "weights");
  check_vector(weights, "weights", r.num_samples);
  check_request(r, weights);
  const Tensor compact = dense(weights);
  const void* data = compact.const_data_ptr();
  return select(
      weights, type, r,
      [&](const Selection& s, const cpu::Parallel& threads) {
        raise_if_bad(cpu::select_weighted(data, type, s, threads), s.num_samples);
      },
      DYNPRUNE_ON_GPU({
        return cuda::launch_select_weighted(data, type, s, workspace, scope.errors(),
                                            scope.stream());
      }));
}

Tensor select_uniform(const Tensor& like, int64_t num_samples, int64_t k,
                      std::optional<Tensor> seed_tensor, int64_t seed, bool ascending) {
  const Request r{num_samples, k, 0, seed_tensor, seed, ascending};
  check_request(r, like);
  return select(
      like, std::nullopt, r,
      [&](const Selection& s, const cpu::Parallel& threads) { cpu::select_uniform(s, threads); },
      DYNPRUNE_ON_GPU({ return cuda::launch_select_uniform(s, workspace, scope.stream()); }));
}

template <class Library>
void register_selection(Library& m) {
  m.impl("select_top_k", TORCH_BOX(&select_top_k));
  m.impl("select_epsilon_greedy", TORCH_BOX(&select_epsilon_greedy));
  m.impl("select_ucb", TORCH_BOX(&select_ucb));
  m.impl("select_ucb1", TORCH_BOX(&select_ucb1));
  m.impl("select_weighted", TORCH_BOX(&select_weighted));
  m.impl("select_uniform", TORCH_BOX(&select_uniform));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_selection(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_selection(m); }

}  // namespace bindings
}  // namespace dynprune
