// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection/choose_path.cuh"

namespace dynprune {
namespace cuda {

template struct RankedSelection<ScoreRanking<float>>;
template struct RankedSelection<ScoreRanking<Half>>;
template struct RankedSelection<ScoreRanking<BFloat16>>;
template struct RankedSelection<ScoreRanking<double>>;

}  // namespace cuda
}  // namespace dynprune
