// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection/choose_path.cuh"

namespace dynprune {
namespace cuda {

template struct RankedSelection<WeightRanking<float>>;
template struct RankedSelection<WeightRanking<Half>>;
template struct RankedSelection<WeightRanking<BFloat16>>;
template struct RankedSelection<WeightRanking<double>>;

}  // namespace cuda
}  // namespace dynprune
