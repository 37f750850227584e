// SPDX-License-Identifier: Apache-2.0
#include "bindings/ranking.h"
#include "cpu/selection/select.h"
#include "shared/ordered_key.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/selection/select.h"
#include "kernels/selection/select_uniform.h"
#endif

namespace dynprune {
namespace bindings {
namespace {

// A checked request for k of num_samples ids. The pointer to the ids is still null.
Selection checked_selection(int64_t num_samples, int64_t k, int64_t num_random, const Seed& seed,
                            bool ascending) {
  check(num_samples >= 0 && num_samples <= kMaxSamples, "num_samples must be in [0, 2^32], got ",
        num_samples);
  check(k >= 0 && k <= num_samples, "k must be in [0, ", num_samples, "], got ", k);
  check(num_random >= 0 && num_random <= k, "num_random must be in [0, k], got ", num_random);
  const Order order = ascending ? Order::kAscending : Order::kRandom;
  return {num_samples, k - num_random, num_random, seed, order, nullptr};
}

Tensor allocate_ids(const Tensor& like, Selection* selection) {
  Tensor ids = allocate(like, {selection->k()}, Dtype::Long);
  selection->ids = static_cast<int64_t*>(ids.mutable_data_ptr());
  return ids;
}

}  // namespace

Tensor select_ranked(const Tensor& values, std::optional<Tensor> second, int64_t ranking, double c,
                     double log_step, int64_t k, int64_t num_random,
                     std::optional<Tensor> seed_tensor, int64_t seed, bool ascending) {
  Selection selection = checked_selection(values.numel(), k, num_random,
                                          checked_seed(seed_tensor, seed, values), ascending);
  const CheckedRanking ranked =
      checked_ranking(RankingUse::kSelect, values, second, ranking, c, log_step);
  check(num_random == 0 || ranked.spec.kind == RankingKind::kScore,
        "num_random is for the ranking by score, got ", num_random);
  Tensor ids = allocate_ids(values, &selection);
  if (k == 0) return ids;
  run_on_device(
      values, "selecting samples",
      [&] {
        raise_if_bad(cpu::select(ranked.spec, selection, torch_threads()), selection.num_samples);
      },
      DYNPRUNE_ON_CUDA({
        const Tensor workspace =
            allocate_bytes(values, cuda::select_workspace_bytes(selection, ranked.spec.type));
        return cuda::launch_select(ranked.spec, selection, workspace.mutable_data_ptr(),
                                   error_records(ranked, scope), scope.stream());
      }));
  return ids;
}

Tensor select_uniform(const Tensor& like, int64_t num_samples, int64_t k,
                      std::optional<Tensor> seed_tensor, int64_t seed, bool ascending) {
  Selection selection =
      checked_selection(num_samples, k, 0, checked_seed(seed_tensor, seed, like), ascending);
  Tensor ids = allocate_ids(like, &selection);
  if (k == 0) return ids;
  run_on_device(
      like, "selecting samples", [&] { cpu::select_uniform(selection, torch_threads()); },
      DYNPRUNE_ON_CUDA({
        const Tensor workspace =
            allocate_bytes(like, cuda::select_uniform_workspace_bytes(selection));
        return cuda::launch_select_uniform(selection, workspace.mutable_data_ptr(), scope.stream());
      }));
  return ids;
}

template <class Library>
void register_selection(Library& m) {
  m.impl("select_ranked", TORCH_BOX(&select_ranked));
  m.impl("select_uniform", TORCH_BOX(&select_uniform));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_selection(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_selection(m); }

}  // namespace bindings
}  // namespace dynprune
