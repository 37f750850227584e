// SPDX-License-Identifier: Apache-2.0
// How a random sample brackets the threshold of a selection. A bracket decides how long a selection
// takes, never what is selected.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace dynprune {

// The tuning of one device. It balances the work on the sample, the number of candidates, and the
// time lost to misses. A miss is a threshold that is not in its bracket.
struct BracketTuning {
  double scale, exponent;                    // the sample has scale * n^exponent members
  int64_t min_sample_size, max_sample_size;  // fewer members than the least tell nothing
  double few_sigmas, many_sigmas;  // half the width of the bracket, in standard deviations
  int64_t many;                    // from so many samples on, many_sigmas
};

// With n^(2/3) members the sample grows as the candidates do. After a miss there is a second pass.
// Of a normal distribution, 1 in 200 is beyond 2.8 standard deviations, 1 in 5 * 10^8 beyond 6.
constexpr BracketTuning kCpuBracket = {1, 2.0 / 3, 256, 1 << 16, 2.8, 6, 1 << 20};

// A member of the sample is read with the 32-byte sector around it. After a miss every pass of the
// search reads all scores. 1 in 2000 is beyond 3.5 standard deviations, 1 in 150,000 beyond 4.5.
constexpr BracketTuning kCudaBracket = {1.0 / 128, 1, 0, 1 << 15, 3.5, 4.5, 1 << 22};

struct BracketPlan {
  int64_t sample_size;
  double sigmas;

  static BracketPlan of(int64_t n, const BracketTuning& tuning) {
    const double size = tuning.scale * std::pow(static_cast<double>(n), tuning.exponent);
    return {std::min(tuning.max_sample_size, static_cast<int64_t>(size)),
            n < tuning.many ? tuning.few_sigmas : tuning.many_sigmas};
  }
};

// Which members of the sample, counted from the greatest, are the bracket's ends.
struct BracketRanks {
  int64_t above, below;  // 0-based; above < 0 and below >= sample_size: the bracket is open

  static BracketRanks of(int64_t n, int64_t wanted, const BracketPlan& plan) {
    const double share = static_cast<double>(wanted) / static_cast<double>(n);
    const double expected = share * static_cast<double>(plan.sample_size);
    const double slack = plan.sigmas * std::sqrt(expected * (1 - share)) + 2;
    return {static_cast<int64_t>(std::floor(expected - slack)),
            static_cast<int64_t>(std::ceil(expected + slack))};
  }
};

// The bracket of a hash. Its distribution is known, so that it needs no sample. Both ends belong to
// it.
struct HashBracket {
  uint32_t low, high;

  // For the wanted-th greatest of `eligible` hashes. unknown: how many hashes more may be above or
  // below them all.
  static HashBracket of(int64_t eligible, int64_t wanted, const BracketTuning& tuning,
                        double unknown = 0) {
    if (wanted == 0) return {0, 0xffffffffu};
    const double sigmas = BracketPlan::of(eligible, tuning).sigmas;
    const auto count = static_cast<double>(eligible);
    const double share = static_cast<double>(wanted) / count;
    const double sigma = std::sqrt(share * (1 - share) * count);
    const double slack = (sigmas * sigma + unknown + 2) / count;
    const auto hash_above = [](double upper_share) {
      const double inside = std::min(std::max(upper_share, 0.0), 1.0);
      return static_cast<uint32_t>((1 - inside) * 4294967295.0);
    };
    return {hash_above(share + slack), hash_above(share - slack)};
  }
  // Which share of all hashes lies in it.
  double share() const { return (static_cast<double>(high) - low + 1) / 4294967296.0; }
};

}  // namespace dynprune
