// SPDX-License-Identifier: Apache-2.0
// A sample's value from its rows in a batch: their mean, their sum or the greatest. The order of
// the rows and of the threads changes no bit: rows are added as integers. Their unit depends only
// on the number of rows and on the greatest magnitude. CPU and GPU compute the same bits.
#pragma once

#include "shared/ordered_key.h"
#include "shared/step_contract.h"

namespace dynprune {

// The key of a row that is not finite, above all others.
constexpr uint32_t kNotFiniteKey = ~uint32_t{0};

// A sample needs the greatest of these over its rows: of the values themselves for kMax, else of
// their magnitudes. 0 is below the keys of all rows but those of value 0.
DYNPRUNE_HD uint32_t row_key(RowReduction reduction, float value) {
  const uint32_t magnitude = bit_cast<uint32_t>(value) & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) return kNotFiniteKey;
  return reduction == RowReduction::kMax ? ordered_key(value) : magnitude;
}

// 2^n for -1022 <= n <= 1023.
DYNPRUNE_HD double power_of_two(int n) {
  return bit_cast<double>(static_cast<uint64_t>(1023 + n) << 52);
}

// The rows of a sample, at least two, of which the greatest key is known.
struct SampleRows {
  RowReduction reduction;
  uint32_t greatest;
  int64_t rows;

  // Whether the sum of the terms is needed.
  DYNPRUNE_HD bool has_terms() const {
    return reduction != RowReduction::kMax && greatest != kNotFiniteKey;
  }
  // A row's value as a multiple of the unit, rounded towards 0. All terms are below 2^62 / rows, so
  // their sum does not overflow. A mean is off by less than rows * 2^-60 of the greatest magnitude.
  DYNPRUNE_HD int64_t term(float value) const {
    return static_cast<int64_t>(static_cast<double>(value) * power_of_two(unit_exponent()));
  }
  DYNPRUNE_HD float value(int64_t sum_of_terms) const {
    if (greatest == kNotFiniteKey) return bit_cast<float>(0x7fc00000u);
    if (reduction == RowReduction::kMax) {
      const bool positive = greatest >> 31 != 0;
      return bit_cast<float>(positive ? greatest ^ 0x80000000u : ~greatest);
    }
    const double sum = static_cast<double>(sum_of_terms) * power_of_two(-unit_exponent());
    return static_cast<float>(reduction == RowReduction::kSum ? sum
                                                              : sum / static_cast<double>(rows));
  }

 private:
  // The unit is 2^-unit_exponent(). Magnitudes are below 2^(exponent - 126).
  DYNPRUNE_HD int unit_exponent() const {
    const int exponent = static_cast<int>(greatest >> 23);
    const int row_bits = 64 - count_leading_zeros(static_cast<uint64_t>(rows - 1));
    return 62 - row_bits - ((exponent > 0 ? exponent : 1) - 126);
  }
};

}  // namespace dynprune
