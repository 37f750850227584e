// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection/choose_path.cuh"

namespace dynprune {
namespace cuda {

template struct RankedSelection<UcbRanking<float, UcbBonus::kVariance>>;
template struct RankedSelection<UcbRanking<Half, UcbBonus::kVariance>>;
template struct RankedSelection<UcbRanking<BFloat16, UcbBonus::kVariance>>;
template struct RankedSelection<UcbRanking<float, UcbBonus::kStd>>;
template struct RankedSelection<UcbRanking<Half, UcbBonus::kStd>>;
template struct RankedSelection<UcbRanking<BFloat16, UcbBonus::kStd>>;
template struct RankedSelection<Ucb1Ranking<int32_t>>;
template struct RankedSelection<Ucb1Ranking<int64_t>>;

}  // namespace cuda
}  // namespace dynprune
