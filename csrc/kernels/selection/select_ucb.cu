// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection/select_ucb.h"

#include "kernels/selection/radix_select.cuh"

namespace dynprune {
namespace cuda {

cudaError_t launch_select_ucb(const void* mean, const void* variance, ScalarType type, float c,
                              bool sqrt_bonus, const Selection& selection, void* workspace,
                              cudaStream_t stream) {
  const auto select = [&](auto tag) {
    using T = decltype(tag);
    const UcbRanking<T> ranking{static_cast<const T*>(mean), static_cast<const T*>(variance), c,
                                sqrt_bonus};
    return radix_select(ranking, selection, workspace, nullptr, stream);
  };
  switch (type) {
    case ScalarType::kFloat32:
      return select(float{});
    case ScalarType::kFloat16:
      return select(Half{});
    case ScalarType::kBFloat16:
      return select(BFloat16{});
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t launch_select_ucb1(const float* mean, const void* count, IndexType count_type, float c,
                               float log_step, const Selection& selection, void* workspace,
                               cudaStream_t stream) {
  const auto select = [&](auto tag) {
    using Count = decltype(tag);
    const Ucb1Ranking<Count> ranking{mean, static_cast<const Count*>(count), c, log_step};
    return radix_select(ranking, selection, workspace, nullptr, stream);
  };
  return count_type == IndexType::kInt32 ? select(int32_t{}) : select(int64_t{});
}

}  // namespace cuda
}  // namespace dynprune
