// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection/choose_path.cuh"

namespace dynprune {
namespace cuda {

template struct RankedSelection<ScoreWeightRanking<float, WeightPower::kOne>>;
template struct RankedSelection<ScoreWeightRanking<Half, WeightPower::kOne>>;
template struct RankedSelection<ScoreWeightRanking<BFloat16, WeightPower::kOne>>;
template struct RankedSelection<ScoreWeightRanking<float, WeightPower::kHalf>>;
template struct RankedSelection<ScoreWeightRanking<Half, WeightPower::kHalf>>;
template struct RankedSelection<ScoreWeightRanking<BFloat16, WeightPower::kHalf>>;

}  // namespace cuda
}  // namespace dynprune
