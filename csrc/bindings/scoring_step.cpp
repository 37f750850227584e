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

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> scored_cross_entropy_step_(
    const Tensor& logits, const Tensor& target, const Tensor& sample_ids, const Tensor& mean,
    const Tensor& variance, const Tensor& count, std::optional<Tensor> non_finite_count,
    std::optional<Tensor> last_non_finite, std::optional<Tensor> last_correct,
    std::optional<Tensor> forget_count, std::optional<Tensor> ticket, double alpha,
    bool published_first_visit, int64_t score, int64_t reduction,
    std::optional<Tensor> sample_weight, std::optional<Tensor> weight, int64_t ignore_index,
    double label_smoothing, std::optional<Tensor> second_target, std::optional<Tensor> lam,
    std::optional<Tensor> grad_scale, int64_t gradient) {
  const CrossEntropyCall call(logits, target, weight, ignore_index, label_smoothing, second_target,
                              lam);
  UpdateCall table(mean, variance, count, sample_ids, alpha, published_first_visit,
                   non_finite_count, last_non_finite, last_correct, forget_count);
  const int64_t rows = call.input.batch_size, classes = call.input.num_classes;
  check_same_device(mean, "mean", logits);
  check(table.update.batch_size == rows, "sample_ids must have ", rows, " elements, got ",
        table.update.batch_size);
  check(score >= 0 && score <= 3, "score must be in [0, 3], got ", score);
  check(reduction >= 0 && reduction <= 2, "reduction must be in [0, 2], got ", reduction);
  check(gradient >= 0 && gradient <= 2, "gradient must be in [0, 2], got ", gradient);
  const bool now = gradient == 1, later = gradient == 2;
  CrossEntropyStep step{};
  step.reduction = static_cast<Reduction>(reduction);
  step.score = static_cast<Score>(score);
  std::optional<Tensor> dense_weight;
  if (sample_weight.has_value()) {
    check_vector(*sample_weight, "sample_weight", rows);
    check_same_device(*sample_weight, "sample_weight", logits);
    check(sample_weight->scalar_type() == call.compute_dtype,
          "sample_weight must be float32 (float64 for float64 logits)");
    dense_weight = dense(*sample_weight);
    step.sample_weight = dense_weight->const_data_ptr();
  }
  Tensor loss = step.reduction == Reduction::kNone ? allocate(logits, {rows}, call.compute_dtype)
                                                   : allocate(logits, {}, call.compute_dtype);
  step.grad_scale = scalar_pointer(grad_scale, "grad_scale", logits, call.compute_dtype);
  Tensor scores = allocate(logits, {5 + (later ? kSavedPerRow : 0), rows}, call.compute_dtype);
  Tensor correct = allocate(logits, {rows}, Dtype::Bool);
  Tensor grad_logits = now ? allocate(logits, {rows, classes}, logits.scalar_type())
                           : allocate(logits, {0}, logits.scalar_type());
  step.loss = loss.mutable_data_ptr();
  if (now) step.grad_logits = grad_logits.mutable_data_ptr();
  const size_t bytes = static_cast<size_t>(rows) * (call.compute_dtype == Dtype::Double ? 8 : 4);
  char* first = static_cast<char*>(scores.mutable_data_ptr());
  bool* flags = static_cast<bool*>(correct.mutable_data_ptr());
  const CrossEntropyOutput output{first,
                                  first + bytes,
                                  first + 2 * bytes,
                                  first + 3 * bytes,
                                  flags,
                                  later ? first + 5 * bytes : nullptr};
  step.row_scale = first + 4 * bytes;
  if (last_correct.has_value()) table.update.correct = flags;
  if (!on_cuda(logits)) {
    (void)ticket;
    const std::unique_ptr<int64_t[]> row_ids(new int64_t[rows]);
    const std::unique_ptr<float[]> values(new float[rows]);
    const DataStatus status = cpu::scored_cross_entropy_step(
        call.input, output, step, table.update, values.get(), row_ids.get(), torch_threads());
    raise_if_bad(status, status.error == DataError::kTarget ? classes : table.update.num_samples);
  } else {
#if defined(DYNPRUNE_WITH_CUDA)
    const CudaScope scope(logits);
    if (ticket.has_value()) {
      check_dtype(*ticket, "ticket", Dtype::Int, "int32");
      check_same_device(*ticket, "ticket", logits);
      check(ticket->numel() == 1, "ticket must have one element");
    }
    const Tensor counter =
        ticket.has_value() ? *ticket : torch::stable::fill_(allocate(logits, {1}, Dtype::Int), 0);
    const Tensor workspace =
        allocate_bytes(logits, cuda::scored_cross_entropy_step_workspace_bytes(call.input));
    cuda_check(
        cuda::launch_scored_cross_entropy_step(
            call.input, output, step, table.update, workspace.mutable_data_ptr(),
            static_cast<unsigned*>(counter.mutable_data_ptr()), scope.errors(), scope.stream()),
        "computing the cross-entropy and its gradient");
#endif
  }
  return {loss, scores, correct, grad_logits};
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
  if (!on_cuda(grad_logits)) {
    cpu::scale_gradient(grad_logits.mutable_data_ptr(), type, rows, classes,
                        grad_loss.const_data_ptr(), stride, scale, torch_threads());
  } else {
#if defined(DYNPRUNE_WITH_CUDA)
    const CudaScope scope(grad_logits);
    cuda_check(
        cuda::launch_scale_gradient(grad_logits.mutable_data_ptr(), type, rows, classes,
                                    grad_loss.const_data_ptr(), stride, scale, scope.stream()),
        "scaling the gradient of the cross-entropy");
#endif
  }
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
