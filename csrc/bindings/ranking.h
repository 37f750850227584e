// SPDX-License-Identifier: Apache-2.0
// The one conversion from the arguments of an op to a RankingSpec.
#pragma once

#include "bindings/common.h"
#include "shared/ranking_spec.h"

namespace dynprune {
namespace bindings {

// A RankingSpec, and the tensors that it points into.
struct CheckedRanking {
  RankingSpec spec;
  Tensor values, second;  // without gaps; second is values where the ranking takes one tensor
};

// Checks everything before it copies. Throws std::runtime_error also for a ranking that is not
// supported for this use.
CheckedRanking checked_ranking(RankingUse use, const Tensor& values,
                               const std::optional<Tensor>& second, int64_t ranking, double c,
                               double log_step);

#if defined(DYNPRUNE_WITH_CUDA)
// The device's error records if the ranking can find errors in its values, null otherwise.
inline ErrorRecord* error_records(const CheckedRanking& ranked, const CudaScope& scope) {
  return ranked.spec.kind == RankingKind::kWeight ? scope.errors() : nullptr;
}
#endif

}  // namespace bindings
}  // namespace dynprune
