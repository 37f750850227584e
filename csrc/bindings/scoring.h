// SPDX-License-Identifier: Apache-2.0
// The arguments of the scoring ops, checked and in the layout that the launchers take; tensors are
// kept alive beside the pointers to them.
#pragma once

#include <optional>

#include "bindings/common.h"
#include "shared/cross_entropy_row.h"
#include "shared/score_update.h"

namespace dynprune {
namespace bindings {

// Whether the class dimension of logits [B, D, C] is apart and D is not.
bool logits_are_in_columns(const Tensor& logits);

// logits: [B, C], or [B, D, C] for B D rows.
struct CrossEntropyCall {
  CrossEntropyCall(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                   int64_t ignore_index, double label_smoothing,
                   const std::optional<Tensor>& second_target, const std::optional<Tensor>& lam);

  // Uninitialised, of the dtype of the logits: [B, C], [B, D, C], or [B, C, D] if in columns.
  Tensor allocate_gradient() const;

  Tensor logits, target;
  bool in_columns;  // CrossEntropyInput::in_columns
  std::optional<Tensor> weight, second_target, lam;
  CrossEntropyInput input;
  Dtype compute_dtype;
};

// An enum of shared/step_contract.h that an op takes as a number.
template <class Enum>
Enum enum_argument(const char* name, int64_t value, int count) {
  check(value >= 0 && value < count, name, " must be in [0, ", count - 1, "], got ", value);
  return static_cast<Enum>(value);
}

// Everything of an update but its values and correctness.
struct UpdateCall {
  UpdateCall(const Tensor& mean, const Tensor& variance, const Tensor& count,
             const Tensor& sample_ids, double alpha, bool published_first_visit,
             int64_t row_reduction, const std::optional<Tensor>& non_finite_count,
             const std::optional<Tensor>& last_non_finite,
             const std::optional<Tensor>& last_correct, const std::optional<Tensor>& forget_count);

  Tensor sample_ids;
  ScoreUpdate update;
};

}  // namespace bindings
}  // namespace dynprune
