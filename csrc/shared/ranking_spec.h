// SPDX-License-Identifier: Apache-2.0
// A ranking as data, and the one place where it becomes one of the types of shared/ranking.h.
#pragma once

#include <stdexcept>

#include "shared/ranking.h"

namespace dynprune {

// What samples are ranked by. Python passes these as numbers, in this order.
enum class RankingKind {
  kScore,
  kUcbVariance,
  kUcbStd,
  kUcb1,
  kWeight,
  kExplore,
  kScoreWeight,
  kScoreWeightSqrt,
};
constexpr int kNumRankings = 8;

constexpr const char* ranking_name(RankingKind kind) {
  switch (kind) {
    case RankingKind::kScore:
      return "score";
    case RankingKind::kUcbVariance:
      return "ucb_variance";
    case RankingKind::kUcbStd:
      return "ucb_std";
    case RankingKind::kUcb1:
      return "ucb1";
    case RankingKind::kWeight:
      return "weight";
    case RankingKind::kExplore:
      return "explore";
    case RankingKind::kScoreWeight:
      return "score_weight";
    case RankingKind::kScoreWeightSqrt:
      return "score_weight_sqrt";
  }
  return "";
}

// One of the types of shared/ranking.h and its members, for n samples.
struct RankingSpec {
  RankingKind kind;
  ScalarType type;       // of values, and of second if that is a variance; float32 for kUcb1
  IndexType count_type;  // of second for kUcb1: int32 or int64
  const void* values;    // [n]: scores, means or weights; not read for kExplore
  const void* second;    // [n]: variances or counts; not read for the other kinds
  float c;               // of UCB, the bonus's weight; of draws by weights, their starting point
  float log_step;        // of UCB1
};

// What draws by weights add to each of their random words: the starting point as a share of 2^32.
inline uint32_t start_of(const RankingSpec& spec) {
  const bool inside = spec.c > 0 && spec.c < 1;  // false for NaN
  return inside ? static_cast<uint32_t>(static_cast<double>(spec.c) * 0x1p32) : 0;
}

// What an op needs of a ranking.
enum class RankingUse {
  kSelect,  // any element type; a whole table has its random part drawn apart from its ranking
  kKeys,    // 32-bit keys that are stored
  kSearch,  // 32-bit keys, also those of the random part
};

// Whether with_ranking has a type for these.
constexpr bool is_supported(RankingUse use, RankingKind kind, ScalarType type) {
  if (kind == RankingKind::kExplore) return use == RankingUse::kSearch;
  const bool has_wide_keys = kind == RankingKind::kScore || kind == RankingKind::kWeight;
  return type != ScalarType::kFloat64 || (use == RankingUse::kSelect && has_wide_keys);
}

namespace detail {

[[noreturn]] inline void unsupported_ranking() {
  throw std::logic_error("no op is built for this ranking");
}

// Calls f(T{}) for the element type T; kWide: also for float64.
template <bool kWide, class F>
auto with_element(ScalarType type, const F& f) -> decltype(f(float{})) {
  switch (type) {
    case ScalarType::kFloat32:
      return f(float{});
    case ScalarType::kFloat16:
      return f(Half{});
    case ScalarType::kBFloat16:
      return f(BFloat16{});
    case ScalarType::kFloat64:
      if constexpr (kWide) return f(double{});
  }
  unsupported_ranking();
}

template <UcbBonus kBonus, class F>
auto with_ucb(const RankingSpec& spec, const F& f) {
  return with_element<false>(spec.type, [&](auto element) {
    using T = decltype(element);
    return f(UcbRanking<T, kBonus>{static_cast<const T*>(spec.values),
                                   static_cast<const T*>(spec.second), spec.c});
  });
}

template <WeightPower kPower, class F>
auto with_score_weight(const RankingSpec& spec, const F& f) {
  return with_element<false>(spec.type, [&](auto element) {
    using T = decltype(element);
    return f(ScoreWeightRanking<T, kPower>{static_cast<const T*>(spec.values), start_of(spec)});
  });
}

template <class Count, class F>
auto with_ucb1(const RankingSpec& spec, const F& f) {
  return f(Ucb1Ranking<Count>{static_cast<const float*>(spec.values),
                              static_cast<const Count*>(spec.second), spec.c, spec.log_step});
}

}  // namespace detail

// Calls f(ranking) with the ranking that spec describes, and returns its result. The ranking must
// be supported for this use; only the types of this use are compiled.
template <RankingUse kUse, class F>
auto with_ranking(const RankingSpec& spec, const F& f) -> decltype(f(ScoreRanking<float>{})) {
  constexpr bool kWide = kUse == RankingUse::kSelect;
  switch (spec.kind) {
    case RankingKind::kScore:
      return detail::with_element<kWide>(spec.type, [&](auto element) {
        using T = decltype(element);
        return f(ScoreRanking<T>{static_cast<const T*>(spec.values)});
      });
    case RankingKind::kWeight:
      return detail::with_element<kWide>(spec.type, [&](auto element) {
        using T = decltype(element);
        return f(WeightRanking<T>{static_cast<const T*>(spec.values), start_of(spec)});
      });
    case RankingKind::kScoreWeight:
      return detail::with_score_weight<WeightPower::kOne>(spec, f);
    case RankingKind::kScoreWeightSqrt:
      return detail::with_score_weight<WeightPower::kHalf>(spec, f);
    case RankingKind::kUcbVariance:
      return detail::with_ucb<UcbBonus::kVariance>(spec, f);
    case RankingKind::kUcbStd:
      return detail::with_ucb<UcbBonus::kStd>(spec, f);
    case RankingKind::kUcb1:
      if (spec.count_type == IndexType::kInt32) return detail::with_ucb1<int32_t>(spec, f);
      return detail::with_ucb1<int64_t>(spec, f);
    case RankingKind::kExplore:
      if constexpr (kUse == RankingUse::kSearch) return f(ExploreRanking{});
  }
  detail::unsupported_ranking();
}

}  // namespace dynprune
