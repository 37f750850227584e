// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/shard_keys.h"

#include "bindings/ranking.h"
#include "bindings/shard_checks.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/sharding/shard_keys.h"
#endif

namespace dynprune {
namespace bindings {

Tensor shard_keys(const Tensor& values, std::optional<Tensor> second, int64_t ranking, double c,
                  double log_step, int64_t first, int64_t stride, std::optional<Tensor> seed_tensor,
                  int64_t seed) {
  const Shard shard = checked_shard(values.numel(), first, stride, kMaxSamples);
  const Seed seeded = checked_seed(seed_tensor, seed, values);
  const CheckedRanking ranked =
      checked_ranking(RankingUse::kKeys, values, second, ranking, c, log_step);
  Tensor keys = allocate(values, {shard.count}, Dtype::Int);
  auto* out = static_cast<uint32_t*>(keys.mutable_data_ptr());
  run_on_device(
      values, "computing keys",
      [&] {
        raise_if_bad(cpu::shard_keys(ranked.spec, shard, seeded.get(), out, torch_threads()),
                     shard.count);
      },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_shard_keys(ranked.spec, shard, seeded, out,
                                       error_records(ranked, scope), scope.stream());
      }));
  return keys;
}

STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { m.impl("shard_keys", TORCH_BOX(&shard_keys)); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { m.impl("shard_keys", TORCH_BOX(&shard_keys)); }

}  // namespace bindings
}  // namespace dynprune
