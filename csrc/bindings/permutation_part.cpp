// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/permutation_part.h"
#include "bindings/shard_checks.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/sharding/permutation_part.h"
#endif

namespace dynprune {
namespace bindings {

Tensor permutation_part(const Tensor& like, int64_t num_samples, int64_t first, int64_t stride,
                        int64_t count, bool inverse, std::optional<Tensor> seed_tensor,
                        int64_t seed) {
  check(num_samples >= 0 && num_samples <= kMaxSamples, "num_samples must be in [0, 2^32], got ",
        num_samples);
  const Shard part = checked_shard(count, first, stride, num_samples);
  const Seed seeded = checked_seed(seed_tensor, seed, like);
  const Tensor result = allocate(like, {count}, Dtype::Long);
  auto* out = static_cast<int64_t*>(result.mutable_data_ptr());
  run_on_device(
      like, "permuting samples",
      [&] {
        cpu::permutation_part(num_samples, part, inverse, seeded.get(), out, torch_threads());
      },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_permutation_part(num_samples, part, inverse, seeded, out,
                                             scope.stream());
      }));
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) {
  m.impl("permutation_part", TORCH_BOX(&permutation_part));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) {
  m.impl("permutation_part", TORCH_BOX(&permutation_part));
}

}  // namespace bindings
}  // namespace dynprune
