// SPDX-License-Identifier: Apache-2.0
// What the bindings of the fused steps share: checks of their arguments, and their results.
#pragma once

#include <optional>

#include "bindings/scoring.h"

namespace dynprune {
namespace bindings {

// A 0-d tensor of the loss's dtype, or null.
inline const void* scalar_pointer(const std::optional<Tensor>& t, const char* name,
                                  const Tensor& like, Dtype dtype) {
  if (!t.has_value()) return nullptr;
  check(t->numel() == 1, name, " must have one element, got ", t->numel());
  check_memory(*t, name);
  check_same_device(*t, name, like);
  check(t->scalar_type() == dtype, name, " must have the dtype of the loss");
  return t->const_data_ptr();
}

// A dense copy of weights, or nothing.
inline std::optional<Tensor> checked_weights(const std::optional<Tensor>& weights, const char* name,
                                             int64_t length, const Tensor& logits,
                                             Dtype compute_dtype) {
  if (!weights.has_value()) return std::nullopt;
  check_vector(*weights, name, length);
  check_same_device(*weights, name, logits);
  check(weights->scalar_type() == compute_dtype, name,
        " must be float32 (float64 for float64 logits)");
  return dense(*weights);
}

// The tensors that a step returns, uninitialised, and where their parts lie.
struct StepResult {
  Tensor loss, scores, correct, grad_logits;
  bool* correct_flags;
  void* saved;  // [B, kNumSavedColumns], or null

  // Call: of any loss. num_saved: columns of `saved`, for GradientTime::kLater.
  template <class Call>
  StepResult(const Call& call, Reduction reduction, GradientTime time,
             int num_saved = kNumSavedColumns) {
    const Tensor& logits = call.logits;
    const Dtype compute_dtype = call.compute_dtype;
    const int64_t rows = call.input.batch_size;
    const bool now = time == GradientTime::kNow, later = time == GradientTime::kLater;
    loss = reduction == Reduction::kNone ? allocate(logits, {rows}, compute_dtype)
                                         : allocate(logits, {}, compute_dtype);
    scores = allocate(logits, {kNumStepColumns + (later ? num_saved : 0), rows}, compute_dtype);
    correct = allocate(logits, {rows}, Dtype::Bool);
    grad_logits = now ? call.allocate_gradient() : allocate(logits, {0}, logits.scalar_type());
    correct_flags = static_cast<bool*>(correct.mutable_data_ptr());
    first_column_ = static_cast<char*>(scores.mutable_data_ptr());
    column_bytes_ = rows * (compute_dtype == Dtype::Double ? 8 : 4);
    saved = later ? first_column_ + kNumStepColumns * column_bytes_ : nullptr;
  }

  void* column(StepColumn column) const {
    return first_column_ + static_cast<int>(column) * column_bytes_;
  }
  CrossEntropyOutput output() const {
    return {column(StepColumn::kLoss),
            column(StepColumn::kEl2n),
            column(StepColumn::kEntropy),
            column(StepColumn::kMargin),
            correct_flags,
            saved};
  }

 private:
  char* first_column_;
  int64_t column_bytes_;
};

// The arguments of a step that do not depend on the kind of target, checked; its results lack.
struct StepWeights {
  std::optional<Tensor> of_samples, of_tokens;
  CrossEntropyStep step{};

  StepWeights(int64_t rows, int64_t ids, int64_t rows_per_id,
              const std::optional<Tensor>& sample_weight, const std::optional<Tensor>& token_weight,
              const std::optional<Tensor>& divisor, const std::optional<Tensor>& grad_scale,
              const Tensor& logits, Dtype compute_dtype) {
    check(rows < int64_t{1} << 31, "logits must have fewer than 2^31 rows, got ", rows);
    check(rows_per_id > 0 && rows % rows_per_id == 0, "rows_per_id must divide ", rows, ", got ",
          rows_per_id);
    check(ids == rows / rows_per_id, "sample_ids must have ", rows / rows_per_id, " elements, got ",
          ids);
    step.rows_per_id = rows_per_id;
    of_samples = checked_weights(sample_weight, "sample_weight", ids, logits, compute_dtype);
    of_tokens = checked_weights(token_weight, "token_weight", rows, logits, compute_dtype);
    if (of_samples.has_value()) step.sample_weight = of_samples->const_data_ptr();
    if (of_tokens.has_value()) step.token_weight = of_tokens->const_data_ptr();
    step.divisor = scalar_pointer(divisor, "divisor", logits, compute_dtype);
    step.grad_scale = scalar_pointer(grad_scale, "grad_scale", logits, compute_dtype);
  }
};

#if defined(DYNPRUNE_WITH_CUDA)
// The counter of finished blocks, int32 [1], zero; a new one if none is given.
inline Tensor checked_ticket(const std::optional<Tensor>& ticket, const Tensor& logits) {
  if (!ticket.has_value()) return torch::stable::fill_(allocate(logits, {1}, Dtype::Int), 0);
  check_dtype(*ticket, "ticket", Dtype::Int, "int32");
  check_same_device(*ticket, "ticket", logits);
  check(ticket->numel() == 1, "ticket must have one element");
  return *ticket;
}
#endif

}  // namespace bindings
}  // namespace dynprune
