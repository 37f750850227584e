// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <tuple>

#include "bindings/scoring.h"
#include "cpu/scoring/scored_cross_entropy_step.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/scoring/scored_cross_entropy_step.h"
#endif

namespace dynprune {
namespace bindings {

namespace {

// A 0-d tensor of the loss's dtype, or null.
const void* scalar_pointer(const std::optional<Tensor>& t, const char* name, const Tensor& like,
                           Dtype dtype) {
  if (!t.has_value()) return nullptr;
  check(t->numel() == 1, name, " must have one element, got ", t->numel());
  check_same_device(*t, name, like);
  check(t->scalar_type() == dtype, name, " must have the dtype of the loss");
  return t->const_data_ptr();
}

// A dense copy of weights, or nothing.
std::optional<Tensor> checked_weights(const std::optional<Tensor>& weights, const char* name,
                                      int64_t length, const Tensor& logits, Dtype compute_dtype) {
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

  StepResult(const CrossEntropyCall& call, Reduction reduction, GradientTime time) {
    const Tensor& logits = call.logits;
    const Dtype compute_dtype = call.compute_dtype;
    const int64_t rows = call.input.batch_size;
    const bool now = time == GradientTime::kNow, later = time == GradientTime::kLater;
    loss = reduction == Reduction::kNone ? allocate(logits, {rows}, compute_dtype)
                                         : allocate(logits, {}, compute_dtype);
    scores =
        allocate(logits, {kNumStepColumns + (later ? kNumSavedColumns : 0), rows}, compute_dtype);
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

#if defined(DYNPRUNE_WITH_CUDA)
// The counter of finished blocks, int32 [1], zero; a new one if none is given.
Tensor checked_ticket(const std::optional<Tensor>& ticket, const Tensor& logits) {
  if (!ticket.has_value()) return torch::stable::fill_(allocate(logits, {1}, Dtype::Int), 0);
  check_dtype(*ticket, "ticket", Dtype::Int, "int32");
  check_same_device(*ticket, "ticket", logits);
  check(ticket->numel() == 1, "ticket must have one element");
  return *ticket;
}
#endif

void run_on_cpu(const CrossEntropyInput& input, const CrossEntropyOutput& output,
                const CrossEntropyStep& step, const ScoreUpdate& update) {
  const std::unique_ptr<int64_t[]> row_ids(new int64_t[input.batch_size]);
  const std::unique_ptr<float[]> values(new float[input.batch_size]);
  const DataStatus status = cpu::scored_cross_entropy_step(
      input, output, step, update, values.get(), row_ids.get(), torch_threads());
  raise_if_bad(status, status.error == DataError::kTarget ? input.num_classes : update.num_samples);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> scored_cross_entropy_step_(
    const Tensor& logits, const Tensor& target, const Tensor& sample_ids, const Tensor& mean,
    const Tensor& variance, const Tensor& count, std::optional<Tensor> non_finite_count,
    std::optional<Tensor> last_non_finite, std::optional<Tensor> last_correct,
    std::optional<Tensor> forget_count, [[maybe_unused]] std::optional<Tensor> ticket, double alpha,
    bool published_first_visit, int64_t score, int64_t row_reduction, int64_t rows_per_id,
    int64_t reduction, std::optional<Tensor> sample_weight, std::optional<Tensor> token_weight,
    std::optional<Tensor> divisor, std::optional<Tensor> weight, int64_t ignore_index,
    double label_smoothing, std::optional<Tensor> second_target, std::optional<Tensor> lam,
    std::optional<Tensor> grad_scale, int64_t gradient) {
  const CrossEntropyCall call(logits, target, weight, ignore_index, label_smoothing, second_target,
                              lam);
  UpdateCall table(mean, variance, count, sample_ids, alpha, published_first_visit, row_reduction,
                   non_finite_count, last_non_finite, last_correct, forget_count);
  check_same_device(mean, "mean", logits);
  const int64_t rows = call.input.batch_size, ids = table.update.max_ids;
  check(rows < int64_t{1} << 31, "logits must have fewer than 2^31 rows, got ", rows);
  check(rows_per_id > 0 && rows % rows_per_id == 0, "rows_per_id must divide ", rows, ", got ",
        rows_per_id);
  check(ids == rows / rows_per_id, "sample_ids must have ", rows / rows_per_id, " elements, got ",
        ids);
  table.update.batch_size = rows;
  CrossEntropyStep step{};
  step.rows_per_id = rows_per_id;
  step.score = enum_argument<Score>("score", score, kNumScores);
  step.reduction = enum_argument<Reduction>("reduction", reduction, kNumReductions);
  const auto time = enum_argument<GradientTime>("gradient", gradient, kNumGradientTimes);
  const std::optional<Tensor> of_samples =
      checked_weights(sample_weight, "sample_weight", ids, logits, call.compute_dtype);
  const std::optional<Tensor> of_tokens =
      checked_weights(token_weight, "token_weight", rows, logits, call.compute_dtype);
  if (of_samples.has_value()) step.sample_weight = of_samples->const_data_ptr();
  if (of_tokens.has_value()) step.token_weight = of_tokens->const_data_ptr();
  step.divisor = scalar_pointer(divisor, "divisor", logits, call.compute_dtype);
  step.grad_scale = scalar_pointer(grad_scale, "grad_scale", logits, call.compute_dtype);

  const StepResult result(call, step.reduction, time);
  step.loss = result.loss.mutable_data_ptr();
  step.row_weight = result.column(StepColumn::kRowWeight);
  if (time == GradientTime::kNow) step.grad_logits = result.grad_logits.mutable_data_ptr();
  if (last_correct.has_value()) table.update.correct = result.correct_flags;
  run_on_device(
      logits, "computing the cross-entropy and its gradient",
      [&] { run_on_cpu(call.input, result.output(), step, table.update); }, DYNPRUNE_ON_CUDA({
        const Tensor counter = checked_ticket(ticket, logits);
        const Tensor workspace = allocate_bytes(
            logits, cuda::scored_cross_entropy_step_workspace_bytes(call.input, ids));
        return cuda::launch_scored_cross_entropy_step(
            call.input, result.output(), step, table.update, workspace.mutable_data_ptr(),
            static_cast<unsigned*>(counter.mutable_data_ptr()), scope.errors(), scope.stream());
      }));
  return {result.loss, result.scores, result.correct, result.grad_logits};
}

void scale_gradient_(const Tensor& grad_logits, const Tensor& grad_loss,
                     std::optional<Tensor> grad_scale) {
  const ScalarType type = scalar_type(grad_logits, "grad_logits");
  check(grad_logits.dim() == 2 && grad_logits.is_contiguous(),
        "grad_logits must be 2-D and contiguous");
  const int64_t rows = grad_logits.size(0), classes = grad_logits.size(1);
  check_same_device(grad_loss, "grad_loss", grad_logits);
  const Dtype compute = type == ScalarType::kFloat64 ? Dtype::Double : Dtype::Float;
  check(grad_loss.scalar_type() == compute, "grad_loss must have the dtype of the loss");
  if (grad_loss.dim() != 0) check_vector(grad_loss, "grad_loss", rows);
  const int64_t stride = grad_loss.dim() == 0 || rows == 1 ? 0 : grad_loss.stride(0);
  const void* scale = scalar_pointer(grad_scale, "grad_scale", grad_logits, compute);
  run_on_device(
      grad_logits, "scaling the gradient of the cross-entropy",
      [&] {
        cpu::scale_gradient(grad_logits.mutable_data_ptr(), type, rows, classes,
                            grad_loss.const_data_ptr(), stride, scale, torch_threads());
      },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_scale_gradient(grad_logits.mutable_data_ptr(), type, rows, classes,
                                           grad_loss.const_data_ptr(), stride, scale,
                                           scope.stream());
      }));
}

template <class Library>
void register_scoring_step(Library& m) {
  m.impl("scored_cross_entropy_step_", TORCH_BOX(&scored_cross_entropy_step_));
  m.impl("scale_gradient_", TORCH_BOX(&scale_gradient_));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_scoring_step(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_scoring_step(m); }

}  // namespace bindings
}  // namespace dynprune
