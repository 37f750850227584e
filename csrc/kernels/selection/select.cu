// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection/select.h"

#include "kernels/selection/ranked_selection.h"
#include "kernels/selection/select_plan.h"

namespace dynprune {
namespace cuda {

size_t select_workspace_bytes(const Selection& s, ScalarType type) {
  const size_t streaming = type == ScalarType::kFloat64
                               ? SelectWorkspace<uint64_t>(nullptr, s).bytes
                               : SelectWorkspace<uint32_t>(nullptr, s).bytes;
  return std::max(streaming, sizeof(OnChipState));
}

cudaError_t launch_select(const RankingSpec& spec, const Selection& selection, void* workspace,
                          ErrorRecord* errors, cudaStream_t stream) {
  if (!is_supported(RankingUse::kSelect, spec.kind, spec.type)) return cudaErrorInvalidValue;
  return with_ranking<RankingUse::kSelect>(spec, [&](const auto& ranking) {
    using Ranking = std::decay_t<decltype(ranking)>;
    return RankedSelection<Ranking>::launch(ranking, selection, workspace, errors, stream);
  });
}

}  // namespace cuda
}  // namespace dynprune
