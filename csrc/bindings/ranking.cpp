// SPDX-License-Identifier: Apache-2.0
#include "bindings/ranking.h"

namespace dynprune {
namespace bindings {
namespace {

void check_second(const Tensor& values, const std::optional<Tensor>& second, RankingKind kind) {
  const bool by_variance = kind == RankingKind::kUcbVariance || kind == RankingKind::kUcbStd;
  const bool by_count = kind == RankingKind::kUcb1;
  check(second.has_value() == (by_variance || by_count), "second must ",
        second.has_value() ? "not " : "", "be given for the ranking ", ranking_name(kind));
  if (!second.has_value()) return;
  check_vector(*second, "second", values.numel());
  check_same_device(*second, "second", values);
  if (by_variance) {
    check(second->scalar_type() == values.scalar_type(), "second must have the dtype of values");
  } else {
    check_dtype(values, "values", Dtype::Float, "float32");
    check(index_type(*second, "second") != IndexType::kUInt8, "second must be int32 or int64");
  }
}

}  // namespace

CheckedRanking checked_ranking(RankingUse use, const Tensor& values,
                               const std::optional<Tensor>& second, int64_t ranking, double c,
                               double log_step) {
  check(ranking >= 0 && ranking < kNumRankings, "ranking must be in [0, ", kNumRankings, "), got ",
        ranking);
  const auto kind = static_cast<RankingKind>(ranking);
  const ScalarType type = scalar_type(values, "values");
  check(is_supported(use, kind, ScalarType::kFloat32), "ranking must not be ", ranking_name(kind),
        " for this op");
  check(is_supported(use, kind, type), "values must be float32, float16 or bfloat16");
  check_vector(values, "values", values.numel());
  check_second(values, second, kind);
  CheckedRanking checked{{}, dense(values), dense(second.value_or(values))};
  checked.spec = {kind,
                  type,
                  kind == RankingKind::kUcb1 ? index_type(*second, "second") : IndexType::kInt64,
                  checked.values.const_data_ptr(),
                  checked.second.const_data_ptr(),
                  static_cast<float>(c),
                  static_cast<float>(log_step)};
  return checked;
}

}  // namespace bindings
}  // namespace dynprune
