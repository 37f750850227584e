// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <tuple>

#include "bindings/step_call.h"
#include "cpu/scoring/binary_cross_entropy.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/scoring/binary_cross_entropy.h"
#endif

namespace dynprune {
namespace bindings {

namespace {

LabelType label_type(const Tensor& target) {
  if (target.scalar_type() == Dtype::Bool) return LabelType::kBool;
  return static_cast<LabelType>(scalar_type(target, "target"));
}

// The arguments of the ops, checked and in the layout that the launchers take. logits: [B, L].
struct BinaryCall {
  BinaryCall(const Tensor& logits_in, const Tensor& target_in,
             const std::optional<Tensor>& weight_in, const std::optional<Tensor>& pos_weight_in)
      : logits(logits_in), target(target_in) {
    input = {};
    input.type = scalar_type(logits, "logits");
    input.target_type = label_type(target);
    check_memory(logits, "logits");
    check_memory(target, "target");
    check(logits.dim() == 2, "logits must be 2-D, got ", logits.dim(), "-D");
    const int64_t rows = logits.size(0), labels = logits.size(1);
    check(labels > 0 || rows == 0, "logits must have at least one label");
    check(target.dim() == 2 && target.size(0) == rows && target.size(1) == labels,
          "target must have the shape of logits, [", rows, ", ", labels, "]");
    check_same_device(target, "target", logits);
    compute_dtype = input.type == ScalarType::kFloat64 ? Dtype::Double : Dtype::Float;
    // Rows may be apart, but a row is contiguous.
    for (Tensor* t : {&logits, &target}) {
      if (labels > 1 && t->stride(1) != 1) *t = torch::stable::contiguous(*t);
    }
    const auto checked = [&](const std::optional<Tensor>& t, const char* name, bool by_row) {
      check_memory(*t, name);
      check_same_device(*t, name, logits);
      check(t->scalar_type() == compute_dtype, name,
            " must be float32 (float64 for float64 logits)");
      const bool fits = by_row ? t->dim() == 2 && t->size(0) == rows && t->size(1) == labels
                               : t->dim() == 1 && t->size(0) == labels;
      check(fits, name, " must have one element per label");
      return dense(*t);
    };
    if (weight_in.has_value()) {
      const bool by_row = weight_in->dim() == 2;
      weight = checked(weight_in, "weight", by_row);
      input.label_weight = weight->const_data_ptr();
      input.label_weight_stride = by_row ? labels : 0;
    }
    if (pos_weight_in.has_value()) {
      pos_weight = checked(pos_weight_in, "pos_weight", false);
      input.pos_weight = pos_weight->const_data_ptr();
    }
    input.logits = logits.const_data_ptr();
    input.batch_size = rows;
    input.num_labels = labels;
    input.row_stride = logits.stride(0);
    input.target = target.const_data_ptr();
    input.target_stride = target.stride(0);
  }

  Tensor allocate_gradient() const {
    return allocate(logits, {input.batch_size, input.num_labels}, logits.scalar_type());
  }

  Tensor logits, target;
  std::optional<Tensor> weight, pos_weight;
  BinaryInput input;
  Dtype compute_dtype;
};

void run_on_cpu(const BinaryInput& input, const CrossEntropyOutput& output,
                const CrossEntropyStep& step, const ScoreUpdate& update) {
  const std::unique_ptr<int64_t[]> row_ids(new int64_t[input.batch_size]);
  const std::unique_ptr<float[]> values(new float[input.batch_size]);
  raise_if_bad(cpu::scored_binary_cross_entropy_step(input, output, step, update, values.get(),
                                                     row_ids.get(), torch_threads()),
               update.num_samples);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> scored_binary_cross_entropy(
    const Tensor& logits, const Tensor& target, std::optional<Tensor> weight,
    std::optional<Tensor> pos_weight) {
  const BinaryCall call(logits, target, weight, pos_weight);
  const auto per_row = [&](Dtype dtype) {
    return allocate(logits, {call.input.batch_size}, dtype);
  };
  Tensor loss = per_row(call.compute_dtype), el2n = per_row(call.compute_dtype);
  Tensor entropy = per_row(call.compute_dtype), margin = per_row(call.compute_dtype);
  Tensor correct = per_row(Dtype::Bool);
  const CrossEntropyOutput output{loss.mutable_data_ptr(),
                                  el2n.mutable_data_ptr(),
                                  entropy.mutable_data_ptr(),
                                  margin.mutable_data_ptr(),
                                  static_cast<bool*>(correct.mutable_data_ptr()),
                                  /*saved=*/nullptr};
  run_on_device(
      logits, "computing the binary cross-entropy",
      [&] {
        raise_if_bad(cpu::scored_binary_cross_entropy(call.input, output, torch_threads()), 0);
      },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_scored_binary_cross_entropy(call.input, output, scope.errors(),
                                                        scope.stream());
      }));
  return {loss, el2n, entropy, margin, correct};
}

Tensor scored_binary_cross_entropy_backward(const Tensor& grad_loss, const Tensor& logits,
                                            const Tensor& target, std::optional<Tensor> weight,
                                            std::optional<Tensor> pos_weight) {
  const BinaryCall call(logits, target, weight, pos_weight);
  const int64_t rows = call.input.batch_size;
  check_vector(grad_loss, "grad_loss", rows);
  check_same_device(grad_loss, "grad_loss", logits);
  check(grad_loss.scalar_type() == call.compute_dtype, "grad_loss must have the dtype of the loss");
  Tensor grad_logits = call.allocate_gradient();
  const BinaryGradient gradient{grad_loss.const_data_ptr(), rows > 1 ? grad_loss.stride(0) : 1,
                                grad_logits.mutable_data_ptr()};
  run_on_device(
      logits, "computing the gradient of the binary cross-entropy",
      [&] {
        raise_if_bad(
            cpu::scored_binary_cross_entropy_backward(call.input, gradient, torch_threads()), 0);
      },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_scored_binary_cross_entropy_backward(call.input, gradient,
                                                                 scope.stream());
      }));
  return grad_logits;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> scored_binary_cross_entropy_step_(
    const Tensor& logits, const Tensor& target, const Tensor& sample_ids, const Tensor& mean,
    const Tensor& variance, const Tensor& count, std::optional<Tensor> non_finite_count,
    std::optional<Tensor> last_non_finite, std::optional<Tensor> last_correct,
    std::optional<Tensor> forget_count, [[maybe_unused]] std::optional<Tensor> ticket, double alpha,
    bool published_first_visit, int64_t score, int64_t row_reduction, int64_t reduction,
    std::optional<Tensor> sample_weight, std::optional<Tensor> divisor,
    std::optional<Tensor> weight, std::optional<Tensor> pos_weight,
    std::optional<Tensor> grad_scale, int64_t gradient) {
  const BinaryCall call(logits, target, weight, pos_weight);
  UpdateCall table(mean, variance, count, sample_ids, alpha, published_first_visit, row_reduction,
                   non_finite_count, last_non_finite, last_correct, forget_count);
  check_same_device(mean, "mean", logits);
  const int64_t rows = call.input.batch_size;
  check(table.update.batch_size == rows, "sample_ids must have ", rows, " elements, got ",
        table.update.batch_size);
  CrossEntropyStep step{};
  step.rows_per_id = 1;
  step.score = enum_argument<Score>("score", score, kNumScores);
  step.reduction = enum_argument<Reduction>("reduction", reduction, kNumReductions);
  const auto time = enum_argument<GradientTime>("gradient", gradient, kNumGradientTimes);
  const std::optional<Tensor> of_samples =
      checked_weights(sample_weight, "sample_weight", rows, logits, call.compute_dtype);
  if (of_samples.has_value()) step.sample_weight = of_samples->const_data_ptr();
  step.divisor = scalar_pointer(divisor, "divisor", logits, call.compute_dtype);
  step.grad_scale = scalar_pointer(grad_scale, "grad_scale", logits, call.compute_dtype);

  const StepResult result(call, step.reduction, time, /*num_saved=*/0);
  step.loss = result.loss.mutable_data_ptr();
  step.row_weight = result.column(StepColumn::kRowWeight);
  if (time == GradientTime::kNow) step.grad_logits = result.grad_logits.mutable_data_ptr();
  if (last_correct.has_value()) table.update.correct = result.correct_flags;
  CrossEntropyOutput output = result.output();
  output.saved = nullptr;
  run_on_device(
      logits, "computing the binary cross-entropy and its gradient",
      [&] { run_on_cpu(call.input, output, step, table.update); }, DYNPRUNE_ON_CUDA({
        const Tensor counter = checked_ticket(ticket, logits);
        const Tensor workspace = allocate_bytes(
            logits, cuda::scored_binary_cross_entropy_step_workspace_bytes(call.input));
        return cuda::launch_scored_binary_cross_entropy_step(
            call.input, output, step, table.update, workspace.mutable_data_ptr(),
            static_cast<unsigned*>(counter.mutable_data_ptr()), scope.errors(), scope.stream());
      }));
  return {result.loss, result.scores, result.correct, result.grad_logits};
}

template <class Library>
void register_binary_cross_entropy(Library& m) {
  m.impl("scored_binary_cross_entropy", TORCH_BOX(&scored_binary_cross_entropy));
  m.impl("scored_binary_cross_entropy_backward", TORCH_BOX(&scored_binary_cross_entropy_backward));
  m.impl("scored_binary_cross_entropy_step_", TORCH_BOX(&scored_binary_cross_entropy_step_));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_binary_cross_entropy(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_binary_cross_entropy(m); }

}  // namespace bindings
}  // namespace dynprune
