// SPDX-License-Identifier: Apache-2.0
// A sample's value from its rows in a batch: their mean, their sum or the greatest. Rows are added
// as integers, without a rounding. So the order of rows and threads changes no bit. One pass
// suffices, since no row needs to know of another. CPU and GPU compute the same bits.
#pragma once

#include "shared/ordered_key.h"
#include "shared/step_contract.h"

namespace dynprune {

// The key of a row that is not finite, above all others.
constexpr uint32_t kNotFiniteKey = ~uint32_t{0};

// 2^n for -1022 <= n <= 1023.
DYNPRUNE_HD double power_of_two(int n) {
  return bit_cast<double>(static_cast<uint64_t>(1023 + n) << 52);
}

// A finite float is amount * 2^(32 * digit - kPointBits), with an amount below 2^55. The point is
// placed so that values from 2^-20 to 2^12, as most losses are, share a digit.
constexpr int kPointBits = 171;
constexpr int kNumDigits = 10;  // the last one is for carries
struct RowTerm {
  int digit;
  int64_t amount;

  DYNPRUNE_HD explicit RowTerm(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t exponent = bits >> 23 & 255, mantissa = bits & 0x7fffffu;
    const uint32_t place = (exponent != 0 ? exponent : 1) + (kPointBits - 150);
    digit = static_cast<int>(place / 32);
    amount = static_cast<int64_t>(exponent != 0 ? mantissa | 0x800000u : mantissa) << place % 32;
    if (bits >> 31 != 0) amount = -amount;
  }
};

// What rows of one sample add up to. All zero for no rows.
struct RowTotal {
  int64_t digits[kNumDigits];  // of the sum of the rows: digit i counts 2^(32 * i - kPointBits)
  uint32_t rows;               // below 2^31: no digit overflows
  uint32_t greatest;           // of the ordered_key of the rows for kMax; or kNotFiniteKey
  uint32_t wrong;              // not 0 if a row is not correct
  uint32_t arrived;            // totals that have been added (kernels/scoring/update_scores.cuh)

  // Of an amount, for its digit and for the next.
  DYNPRUNE_HD static int64_t low_part(int64_t amount) { return amount & 0xffffffff; }
  DYNPRUNE_HD static int64_t high_part(int64_t amount) { return amount >> 32; }

  // For `greatest`: 0 is below the keys of all rows that it is about.
  DYNPRUNE_HD static uint32_t key_of(RowReduction reduction, float value) {
    if ((bit_cast<uint32_t>(value) & 0x7fffffffu) >= 0x7f800000u) return kNotFiniteKey;
    return reduction == RowReduction::kMax ? ordered_key(value) : 0;
  }
  DYNPRUNE_HD static bool has_term(RowReduction reduction, uint32_t key) {
    return reduction != RowReduction::kMax && key != kNotFiniteKey;
  }

  // By one thread, as no other adds.
  DYNPRUNE_HD void add(RowReduction reduction, float value, bool correct) {
    const uint32_t key = key_of(reduction, value);
    if (key > greatest) greatest = key;
    if (!correct) wrong = 1;
    rows++;
    if (!has_term(reduction, key)) return;
    const RowTerm term(value);
    digits[term.digit] += low_part(term.amount);
    digits[term.digit + 1] += high_part(term.amount);
  }
  DYNPRUNE_HD void add(const RowTotal& other) {
    for (int i = 0; i < kNumDigits; i++) digits[i] += other.digits[i];
    greatest = other.greatest > greatest ? other.greatest : greatest;
    wrong |= other.wrong;
    rows += other.rows;
  }

  // The sample's value, for at least one row. NaN if a row is not finite.
  DYNPRUNE_HD float value(RowReduction reduction) const {
    if (greatest == kNotFiniteKey) return bit_cast<float>(0x7fc00000u);
    if (reduction == RowReduction::kMax) {
      const bool positive = greatest >> 31 != 0;
      return bit_cast<float>(positive ? greatest ^ 0x80000000u : ~greatest);
    }
    const double exact = sum();
    return static_cast<float>(reduction == RowReduction::kSum ? exact
                                                              : exact / static_cast<double>(rows));
  }

 private:
  // Calls each(digit) with digits of sign * sum in turn, from the lowest, 0 <= digit < 2^32.
  // Returns the last one, of any size and sign.
  template <class Each>
  DYNPRUNE_HD int64_t carry_digits(int64_t sign, const Each& each) const {
    int64_t carry = 0;
    for (int i = 0; i < kNumDigits - 1; i++) {
      carry += sign * digits[i];
      each(carry & 0xffffffff);
      carry >>= 32;
    }
    return carry + sign * digits[kNumDigits - 1];
  }

  // Off by 2^-52 of itself at most: all but additions of a digit are exact.
  DYNPRUNE_HD double sum() const {
    const int64_t sign = carry_digits(1, [](int64_t) {}) < 0 ? -1 : 1;
    double sum = 0, unit = power_of_two(-kPointBits);
    const int64_t last = carry_digits(sign, [&](int64_t digit) {
      sum += static_cast<double>(digit) * unit;
      unit *= 4294967296.0;
    });
    return static_cast<double>(sign) * (sum + static_cast<double>(last) * unit);
  }
};

}  // namespace dynprune
