// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "bindings/scoring.h"
#include "cpu/scoring/scored_cross_entropy.h"
#include "cpu/scoring/update_scores.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/scoring/scored_cross_entropy.h"
#include "kernels/scoring/update_scores.h"
#endif

namespace dynprune {
namespace bindings {

CrossEntropyCall::CrossEntropyCall(const Tensor& logits_in, const Tensor& target_in,
                                   const std::optional<Tensor>& weight_in, int64_t ignore_index,
                                   double label_smoothing,
                                   const std::optional<Tensor>& second_target_in,
                                   const std::optional<Tensor>& lam_in)
    : logits(logits_in), target(target_in) {
  const ScalarType type = scalar_type(logits, "logits");
  check(logits.dim() == 2, "logits must be 2-D, got ", logits.dim(), "-D");
  const int64_t rows = logits.size(0), classes = logits.size(1);
  check(classes > 0 || rows == 0, "logits must have at least one class");
  const auto targets = [&](Tensor* t, const char* name) {
    const IndexType index = index_type(*t, name);
    check_vector(*t, name, rows);
    check_same_device(*t, name, logits);
    *t = dense(*t);
    return IndexArray{t->const_data_ptr(), index};
  };
  check(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing must be in [0, 1], got ",
        label_smoothing);
  compute_dtype = type == ScalarType::kFloat64 ? Dtype::Double : Dtype::Float;
  // Rows may be apart, but a row is contiguous.
  const bool dense_rows = classes <= 1 || logits.stride(1) == 1;
  if (!dense_rows) logits = torch::stable::contiguous(logits);
  input = {};
  if (weight_in.has_value()) {
    check_vector(*weight_in, "weight", classes);
    check_same_device(*weight_in, "weight", logits);
    check(weight_in->scalar_type() == compute_dtype,
          "weight must be float32 (float64 for float64 logits)");
    weight = dense(*weight_in);
    input.class_weight = weight->const_data_ptr();
  }
  check(second_target_in.has_value() == lam_in.has_value(),
        "second_target and lam must be given together");
  if (second_target_in.has_value()) {
    second_target = second_target_in;
    lam = lam_in;
    input.second_target = targets(&*second_target, "second_target");
    check(lam->numel() == (lam->dim() == 0 ? 1 : rows) && lam->dim() <= 1,
          "lam must be 0-d or have one element per row");
    check_same_device(*lam, "lam", logits);
    check(lam->scalar_type() == compute_dtype, "lam must be float32 (float64 for float64 logits)");
    input.lam = lam->const_data_ptr();
    input.lam_stride = lam->dim() == 0 || rows == 1 ? 0 : lam->stride(0);
  }
  input.logits = logits.const_data_ptr();
  input.type = type;
  input.batch_size = rows;
  input.num_classes = classes;
  input.row_stride = logits.stride(0);
  input.target = targets(&target, "target");
  input.label_smoothing = label_smoothing;
  input.ignore_index = ignore_index;
}

UpdateCall::UpdateCall(const Tensor& mean, const Tensor& variance, const Tensor& count,
                       const Tensor& sample_ids_in, double alpha, bool published_first_visit,
                       const std::optional<Tensor>& non_finite_count,
                       const std::optional<Tensor>& last_non_finite,
                       const std::optional<Tensor>& last_correct,
                       const std::optional<Tensor>& forget_count)
    : sample_ids(sample_ids_in) {
  const int64_t num_samples = mean.numel(), rows = sample_ids.numel();
  const auto column = [&](const Tensor& t, const char* name, Dtype dtype, const char* dtype_name) {
    check_vector(t, name, num_samples);
    check_same_device(t, name, mean);
    check(t.is_contiguous(), name, " must be contiguous: it is updated in place");
    if (dtype != Dtype::Undefined) check_dtype(t, name, dtype, dtype_name);
    return t.mutable_data_ptr();
  };
  const auto optional_column = [&](const std::optional<Tensor>& t, const char* name, Dtype dtype,
                                   const char* dtype_name) -> void* {
    return t.has_value() ? column(*t, name, dtype, dtype_name) : nullptr;
  };
  const IndexType count_type = index_type(count, "count");
  check(count_type != IndexType::kUInt8, "count must be int32 or int64");
  check(rows < int64_t{1} << 31, "sample_ids must have fewer than 2^31 elements, got ", rows);
  check_vector(sample_ids, "sample_ids", rows);
  check_same_device(sample_ids, "sample_ids", mean);
  check_dtype(sample_ids, "sample_ids", Dtype::Long, "int64");
  check(last_correct.has_value() || !forget_count.has_value(),
        "forget_count needs last_correct beside it");
  sample_ids = dense(sample_ids);
  update = {};
  update.mean = static_cast<float*>(column(mean, "mean", Dtype::Float, "float32"));
  update.variance = static_cast<float*>(column(variance, "variance", Dtype::Float, "float32"));
  update.count = column(count, "count", Dtype::Undefined, "");
  update.count_type = count_type;
  update.non_finite_count = static_cast<int32_t*>(
      optional_column(non_finite_count, "non_finite_count", Dtype::Int, "int32"));
  update.last_non_finite =
      static_cast<bool*>(optional_column(last_non_finite, "last_non_finite", Dtype::Bool, "bool"));
  update.last_correct =
      static_cast<bool*>(optional_column(last_correct, "last_correct", Dtype::Bool, "bool"));
  update.forget_count =
      static_cast<int32_t*>(optional_column(forget_count, "forget_count", Dtype::Int, "int32"));
  update.num_samples = num_samples;
  update.sample_ids = static_cast<const int64_t*>(sample_ids.const_data_ptr());
  update.batch_size = rows;
  update.alpha = static_cast<float>(alpha);
  update.first_visit = published_first_visit ? FirstVisit::kPublished : FirstVisit::kZero;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> scored_cross_entropy(
    const Tensor& logits, const Tensor& target, std::optional<Tensor> weight, int64_t ignore_index,
    double label_smoothing, std::optional<Tensor> second_target, std::optional<Tensor> lam) {
  const CrossEntropyCall call(logits, target, weight, ignore_index, label_smoothing, second_target,
                              lam);
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
  if (!on_cuda(logits)) {
    raise_if_bad(cpu::scored_cross_entropy(call.input, output, torch_threads()),
                 call.input.num_classes);
  } else {
#if defined(DYNPRUNE_WITH_CUDA)
    const CudaScope scope(logits);
    cuda_check(
        cuda::launch_scored_cross_entropy(call.input, output, scope.errors(), scope.stream()),
        "computing the cross-entropy");
#endif
  }
  return {loss, el2n, entropy, margin, correct, saved};
}

Tensor scored_cross_entropy_backward(const Tensor& grad_loss, const Tensor& logits,
                                     const Tensor& target, std::optional<Tensor> weight,
                                     int64_t ignore_index, double label_smoothing,
                                     const Tensor& saved, std::optional<Tensor> second_target,
                                     std::optional<Tensor> lam) {
  const CrossEntropyCall call(logits, target, weight, ignore_index, label_smoothing, second_target,
                              lam);
  const int64_t rows = call.input.batch_size, classes = call.input.num_classes;
  check_vector(grad_loss, "grad_loss", rows);
  check_same_device(grad_loss, "grad_loss", logits);
  check(grad_loss.scalar_type() == call.compute_dtype, "grad_loss must have the dtype of the loss");
  check(saved.scalar_type() == call.compute_dtype && saved.numel() == rows * kNumSavedColumns &&
            saved.is_contiguous(),
        "saved must be what scored_cross_entropy returned");
  check_same_device(saved, "saved", logits);
  Tensor grad_logits = allocate(logits, {rows, classes}, logits.scalar_type());
  const CrossEntropyGradient gradient{grad_loss.const_data_ptr(),
                                      rows > 1 ? grad_loss.stride(0) : 1, saved.const_data_ptr(),
                                      grad_logits.mutable_data_ptr()};
  if (!on_cuda(logits)) {
    cpu::scored_cross_entropy_backward(call.input, gradient, torch_threads());
  } else {
#if defined(DYNPRUNE_WITH_CUDA)
    const CudaScope scope(logits);
    cuda_check(cuda::launch_scored_cross_entropy_backward(call.input, gradient, scope.stream()),
               "computing the gradient of the cross-entropy");
#endif
  }
  return grad_logits;
}

void update_scores_(const Tensor& mean, const Tensor& variance, const Tensor& count,
                    const Tensor& sample_ids, const Tensor& values, double alpha,
                    bool published_first_visit, std::optional<Tensor> non_finite_count,
                    std::optional<Tensor> last_non_finite, std::optional<Tensor> correct,
                    std::optional<Tensor> last_correct, std::optional<Tensor> forget_count) {
  UpdateCall call(mean, variance, count, sample_ids, alpha, published_first_visit, non_finite_count,
                  last_non_finite, last_correct, forget_count);
  ScoreUpdate& update = call.update;
  check_vector(values, "values", update.batch_size);
  check_same_device(values, "values", mean);
  check_dtype(values, "values", Dtype::Float, "float32");
  const Tensor dense_values = dense(values);
  update.values = static_cast<const float*>(dense_values.const_data_ptr());
  check(correct.has_value() == last_correct.has_value(),
        "correct and last_correct must be given together");
  std::optional<Tensor> dense_correct;
  if (correct.has_value()) {
    check_vector(*correct, "correct", update.batch_size);
    check_same_device(*correct, "correct", mean);
    check_dtype(*correct, "correct", Dtype::Bool, "bool");
    dense_correct = dense(*correct);
    update.correct = static_cast<const bool*>(dense_correct->const_data_ptr());
  }
  if (!on_cuda(mean)) {
    raise_if_bad(cpu::update_scores(update, torch_threads()), update.num_samples);
    return;
  }
#if defined(DYNPRUNE_WITH_CUDA)
  const CudaScope scope(mean);
  const Tensor workspace =
      allocate_bytes(mean, cuda::update_scores_workspace_bytes(update.batch_size));
  cuda_check(cuda::launch_update_scores(update, workspace.mutable_data_ptr(), scope.errors(),
                                        scope.stream()),
             "updating the scores");
#endif
}

template <class Library>
void register_scoring(Library& m) {
  m.impl("scored_cross_entropy", TORCH_BOX(&scored_cross_entropy));
  m.impl("scored_cross_entropy_backward", TORCH_BOX(&scored_cross_entropy_backward));
  m.impl("update_scores_", TORCH_BOX(&update_scores_));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_scoring(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_scoring(m); }

}  // namespace bindings
}  // namespace dynprune
