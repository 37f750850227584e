// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <tuple>

#include "bindings/step_call.h"
#include "cpu/scoring/scored_cross_entropy_step.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/scoring/scored_cross_entropy_step.h"
#endif

namespace dynprune {
namespace bindings {

namespace {

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
  StepWeights weights(rows, ids, rows_per_id, sample_weight, token_weight, divisor, grad_scale,
                      logits, call.compute_dtype);
  table.update.batch_size = rows;
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
  check_memory(grad_logits, "grad_logits");
  check_memory(grad_loss, "grad_loss");
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
