// SPDX-License-Identifier: Apache-2.0
// The weights of the rows of a step, and the reduction of their losses.
#pragma once

#include "cpu/scoring/lanes.h"
#include "shared/cross_entropy_row.h"

namespace dynprune {
namespace cpu {

inline bool has_weights(const CrossEntropyStep& step) {
  return step.sample_weight != nullptr || step.token_weight != nullptr;
}

template <class A>
A weight_of(const CrossEntropyStep& step, int64_t row) {
  const int64_t sample = step.rows_per_id == 1 ? row : row / step.rows_per_id;
  const A weight =
      step.sample_weight != nullptr ? static_cast<const A*>(step.sample_weight)[sample] : A{1};
  return step.token_weight != nullptr ? weight * static_cast<const A*>(step.token_weight)[row]
                                      : weight;
}

// The losses times their weights. Or their sum, in lanes, since a chain of additions takes longer
// than all else that happens to a short row. counts(row): false for a row that counts for nothing.
template <class A, class Counts>
void reduce_losses(const CrossEntropyStep& step, int64_t rows, const A* row_loss, double divisor,
                   const Counts& counts) {
  A* loss = static_cast<A*>(step.loss);
  // The weight of a row that counts for nothing is not looked at: it may be infinite.
  const auto weighted = [&](int64_t row) -> double {
    if (!has_weights(step)) return row_loss[row];
    if (!counts(row)) return 0;
    return static_cast<double>(weight_of<A>(step, row)) * row_loss[row];
  };
  if (step.reduction == Reduction::kNone) {
    for (int64_t row = 0; row < rows; row++) loss[row] = static_cast<A>(weighted(row));
    return;
  }
  double sums[kLanes] = {};
  int64_t row = 0;
  for (; row + kLanes <= rows && !has_weights(step); row += kLanes) {
    for (int l = 0; l < kLanes; l++) sums[l] += row_loss[row + l];
  }
  for (; row < rows; row++) sums[row % kLanes] += weighted(row);
  double sum = 0;
  for (double lane : sums) sum += lane;
  *loss = static_cast<A>(sum / divisor);
}

}  // namespace cpu
}  // namespace dynprune
