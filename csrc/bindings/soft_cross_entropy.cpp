// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <tuple>

#include "bindings/step_call.h"
#include "cpu/scoring/soft_cross_entropy.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/scoring/soft_cross_entropy.h"
#endif

namespace dynprune {
namespace bindings {

namespace {

// The arguments that the ops with probabilities as targets share, in the layout of the launchers.
struct SoftCall {
  Tensor logits, target;
  std::optional<Tensor> weight;
  CrossEntropyInput input{};
  SoftTarget soft{};
  Dtype compute_dtype;

  SoftCall(const Tensor& logits_in, const Tensor& target_in, const std::optional<Tensor>& weight_in,
           double label_smoothing) {
    const ScalarType type = scalar_type(logits_in, "logits");
    check_memory(logits_in, "logits");
    check_memory(target_in, "target");
    check(logits_in.dim() == 2, "logits must be 2-D, got ", logits_in.dim(), "-D");
    const int64_t rows = logits_in.size(0), classes = logits_in.size(1);
    check(classes > 0 || rows == 0, "logits must have at least one class");
    check(classes < int64_t{1} << 31, "logits must have fewer than 2^31 classes, got ", classes);
    compute_dtype = type == ScalarType::kFloat64 ? Dtype::Double : Dtype::Float;
    check(target_in.dim() == 2 && target_in.size(0) == rows && target_in.size(1) == classes,
          "target must have the shape of logits");
    check(target_in.scalar_type() == logits_in.scalar_type() ||
              target_in.scalar_type() == compute_dtype,
          "target must have the dtype of logits or that of the loss");
    check_same_device(target_in, "target", logits_in);
    check(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing must be in [0, 1], got ",
          label_smoothing);
    // Rows may be apart, but a row is contiguous.
    const auto dense_rows = [&](const Tensor& t) {
      return classes <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
    };
    logits = dense_rows(logits_in);
    target = dense_rows(target_in);
    if (weight_in.has_value()) {
      check_vector(*weight_in, "weight", classes);
      check_same_device(*weight_in, "weight", logits);
      check(weight_in->scalar_type() == compute_dtype,
            "weight must be float32 (float64 for float64 logits)");
      weight = dense(*weight_in);
      input.class_weight = weight->const_data_ptr();
    }
    input.logits = logits.const_data_ptr();
    input.type = type;
    input.batch_size = input.group_rows = rows;
    input.num_classes = classes;
    input.row_stride = logits.stride(0);
    input.class_stride = 1;
    input.label_smoothing = label_smoothing;
    soft = {target.const_data_ptr(), scalar_type(target, "target"), target.stride(0)};
  }

  Tensor allocate_gradient() const {
    return allocate(logits, {logits.size(0), logits.size(1)}, logits.scalar_type());
  }
};

void run_step_on_cpu(const SoftCall& call, const CrossEntropyOutput& output,
                     const CrossEntropyStep& step, const ScoreUpdate& update) {
  const std::unique_ptr<int64_t[]> row_ids(new int64_t[call.input.batch_size]);
  const std::unique_ptr<float[]> values(new float[call.input.batch_size]);
  raise_if_bad(cpu::soft_cross_entropy_step(call.input, call.soft, output, step, update,
                                            values.get(), row_ids.get(), torch_threads()),
               update.num_samples);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> soft_cross_entropy(
    const Tensor& logits, const Tensor& target, std::optional<Tensor> weight,
    double label_smoothing) {
  const SoftCall call(logits, target, weight, label_smoothing);
  const int64_t rows = call.input.batch_size;
  const auto per_row = [&](Dtype dtype) { return allocate(logits, {rows}, dtype); };
  Tensor loss = per_row(call.compute_dtype), el2n = per_row(call.compute_dtype);
  Tensor entropy = per_row(call.compute_dtype), margin = per_row(call.compute_dtype);
  Tensor correct = per_row(Dtype::Bool);
  Tensor saved = allocate(logits, {rows, kNumSavedColumns}, call.compute_dtype);
  const CrossEntropyOutput output{loss.mutable_data_ptr(),
                                  el2n.mutable_data_ptr(),
                                  entropy.mutable_data_ptr(),
                                  margin.mutable_data_ptr(),
                                  static_cast<bool*>(correct.mutable_data_ptr()),
                                  saved.mutable_data_ptr()};
  run_on_device(
      logits, "computing the cross-entropy of probabilities",
      [&] { cpu::soft_cross_entropy(call.input, call.soft, output, torch_threads()); },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_soft_cross_entropy(call.input, call.soft, output, scope.stream());
      }));
  return {loss, el2n, entropy, margin, correct, saved};
}

Tensor soft_cross_entropy_backward(const Tensor& grad_loss, const Tensor& logits,
                                   const Tensor& target, std::optional<Tensor> weight,
                                   double label_smoothing, const Tensor& saved) {
  const SoftCall call(logits, target, weight, label_smoothing);
  const int64_t rows = call.input.batch_size;
  check_vector(grad_loss, "grad_loss", rows);
  check_same_device(grad_loss, "grad_loss", logits);
  check(grad_loss.scalar_type() == call.compute_dtype, "grad_loss must have the dtype of the loss");
  check_memory(saved, "saved");
  check(saved.scalar_type() == call.compute_dtype && saved.numel() == rows * kNumSavedColumns &&
            saved.is_contiguous(),
        "saved must be what soft_cross_entropy returned");
  check_same_device(saved, "saved", logits);
  Tensor grad_logits = call.allocate_gradient();
  const CrossEntropyGradient gradient{grad_loss.const_data_ptr(),
                                      rows > 1 ? grad_loss.stride(0) : 1, saved.const_data_ptr(),
                                      grad_logits.mutable_data_ptr()};
  run_on_device(
      logits, "computing the gradient of the cross-entropy of probabilities",
      [&] { cpu::soft_cross_entropy_backward(call.input, call.soft, gradient, torch_threads()); },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_soft_cross_entropy_backward(call.input, call.soft, gradient,
                                                        scope.stream());
      }));
  return grad_logits;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> soft_cross_entropy_step_(
    const Tensor& logits, const Tensor& target, const Tensor& sample_ids, const Tensor& mean,
    const Tensor& variance, const Tensor& count, std::optional<Tensor> non_finite_count,
    std::optional<Tensor> last_non_finite, std::optional<Tensor> last_correct,
    std::optional<Tensor> forget_count, [[maybe_unused]] std::optional<Tensor> ticket, double alpha,
    bool published_first_visit, int64_t score, int64_t row_reduction, int64_t rows_per_id,
    int64_t reduction, std::optional<Tensor> sample_weight, std::optional<Tensor> token_weight,
    std::optional<Tensor> divisor, std::optional<Tensor> weight, double label_smoothing,
    std::optional<Tensor> grad_scale, int64_t gradient) {
  const SoftCall call(logits, target, weight, label_smoothing);
  UpdateCall table(mean, variance, count, sample_ids, alpha, published_first_visit, row_reduction,
                   non_finite_count, last_non_finite, last_correct, forget_count);
  check_same_device(mean, "mean", logits);
  StepWeights weights(call.input.batch_size, table.update.max_ids, rows_per_id, sample_weight,
                      token_weight, divisor, grad_scale, logits, call.compute_dtype);
  table.update.batch_size = call.input.batch_size;
  CrossEntropyStep& step = weights.step;
  step.score = enum_argument<Score>("score", score, kNumScores);
  step.reduction = enum_argument<Reduction>("reduction", reduction, kNumReductions);
  const auto time = enum_argument<GradientTime>("gradient", gradient, kNumGradientTimes);
  const StepResult result(call, step.reduction, time);
  step.loss = result.loss.mutable_data_ptr();
  step.row_weight = result.column(StepColumn::kRowWeight);
  if (time == GradientTime::kNow) step.grad_logits = result.grad_logits.mutable_data_ptr();
  if (last_correct.has_value()) table.update.correct = result.correct_flags;
  run_on_device(
      logits, "computing the cross-entropy of probabilities and its gradient",
      [&] { run_step_on_cpu(call, result.output(), step, table.update); }, DYNPRUNE_ON_CUDA({
        const Tensor counter = checked_ticket(ticket, logits);
        const Tensor workspace = allocate_bytes(
            logits,
            cuda::soft_cross_entropy_step_workspace_bytes(call.input, table.update.max_ids));
        return cuda::launch_soft_cross_entropy_step(
            call.input, call.soft, result.output(), step, table.update,
            workspace.mutable_data_ptr(), static_cast<unsigned*>(counter.mutable_data_ptr()),
            scope.errors(), scope.stream());
      }));
  return {result.loss, result.scores, result.correct, result.grad_logits};
}

template <class Library>
void register_soft_cross_entropy(Library& m) {
  m.impl("soft_cross_entropy", TORCH_BOX(&soft_cross_entropy));
  m.impl("soft_cross_entropy_backward", TORCH_BOX(&soft_cross_entropy_backward));
  m.impl("soft_cross_entropy_step_", TORCH_BOX(&soft_cross_entropy_step_));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_soft_cross_entropy(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_soft_cross_entropy(m); }

}  // namespace bindings
}  // namespace dynprune
