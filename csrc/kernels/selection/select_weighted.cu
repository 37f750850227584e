// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection/select_weighted.h"

#include "kernels/selection/radix_select.cuh"

namespace dynprune {
namespace cuda {

cudaError_t launch_select_weighted(const void* weights, ScalarType type, const Selection& selection,
                                   void* workspace, ErrorRecord* errors, cudaStream_t stream) {
  return dispatch(type, [&](auto tag) {
    using T = decltype(tag);
    const WeightRanking<T> ranking{static_cast<const T*>(weights)};
    return radix_select(ranking, selection, workspace, errors, stream);
  });
}

}  // namespace cuda
}  // namespace dynprune
