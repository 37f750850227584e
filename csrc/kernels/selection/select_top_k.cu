// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection/select_top_k.h"

#include "kernels/selection/radix_select.cuh"

namespace dynprune {
namespace cuda {

size_t selection_workspace_bytes(const Selection& s, ScalarType type) {
  const size_t large = type == ScalarType::kFloat64 ? SelectWorkspace<uint64_t>(nullptr, s).bytes
                                                    : SelectWorkspace<uint32_t>(nullptr, s).bytes;
  return std::max(large, sizeof(SmallState));
}

cudaError_t launch_select_top_k(const void* scores, ScalarType type, const Selection& selection,
                                void* workspace, cudaStream_t stream) {
  return dispatch(type, [&](auto tag) {
    using T = decltype(tag);
    const ScoreRanking<T> ranking{static_cast<const T*>(scores)};
    return radix_select(ranking, selection, workspace, nullptr, stream);
  });
}

}  // namespace cuda
}  // namespace dynprune
