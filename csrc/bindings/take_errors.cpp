// SPDX-License-Identifier: Apache-2.0
#include "bindings/common.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/take_errors.h"
#endif

namespace dynprune {
namespace bindings {

// The records of a device as an int64 tensor [kNumDataErrors, 2] on that device, (count, example);
// cleared.
Tensor take_errors(const Tensor& like) {
  Tensor taken = allocate(like, {kNumDataErrors, 2}, Dtype::Long);
  run_on_device(
      like, "taking the error records", [&] { torch::stable::zero_(taken); }, DYNPRUNE_ON_CUDA({
        auto* out = static_cast<int64_t*>(taken.mutable_data_ptr());
        return cuda::launch_take_errors(scope.errors(), out, scope.stream());
      }));
  return taken;
}

STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { m.impl("take_errors", TORCH_BOX(&take_errors)); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) {
  m.impl("take_errors", TORCH_BOX(&take_errors));
}

}  // namespace bindings
}  // namespace dynprune
