// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "bindings/common.h"
#include "cpu/scored_cross_entropy.h"
#include "cpu/update_scores.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/scored_cross_entropy.h"
#include "kernels/update_scores.h"
#endif

namespace dynprune {
namespace bindings {
namespace {

// The tensors of a call in the layout that the launchers want, kept alive beside the pointers to
// them.
struct Call {
  Tensor logits, target;
  std::optional<Tensor> weight;
  CrossEntropyInput input;
  Dtype compute_dtype;
};

Call make_call(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
               int64_t ignore_index, double label_smoothing) {
  const ScalarType type = scalar_type(logits, "logits");
  check(logits.dim() == 2, "logits must be 2-D, got ", logits.dim(), "-D");
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const IndexType target_type = index_type(target, "target");
  check_vector(target, "target", rows);
  check_same_device(target, "target", logits);
  check(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing must be in [0, 1], got ",
        label_smoothing);
  const Dtype compute = type == ScalarType::kFloat64 ? Dtype::Double : Dtype::Float;
  // Rows may be apart, but a row is contiguous.
  const bool dense_rows = classes <= 1 || logits.stride(1) == 1;
  Call call{dense_rows ? logits : torch::stable::contiguous(logits),
            dense(target),
            std::nullopt,
            {},
            compute};
  if (weight.has_value()) {
    check_vector(*weight, "weight", classes);
    check_same_device(*weight, "weight", logits);
    check(weight->scalar_type() == compute, "weight must be float32 (float64 for float64 logits)");
    call.weight = dense(*weight);
  }
  call.input = {call.logits.const_data_ptr(),
                type,
                rows,
                classes,
                call.logits.stride(0),
                {call.target.const_data_ptr(), target_type},
                call.weight.has_value() ? call.weight->const_data_ptr() : nullptr,
                label_smoothing,
                ignore_index};
  return call;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> scored_cross_entropy(
    const Tensor& logits, const Tensor& target, std::optional<Tensor> weight, int64_t ignore_index,
    double label_smoothing) {
  const Call call = make_call(logits, target, weight, ignore_index, label_smoothing);
  const int64_t rows = call.input.batch_size;
  const auto per_row = [&](Dtype dtype) { return allocate(logits, {rows}, dtype); };
  Tensor loss = per_row(call.compute_dtype), el2n = per_row(call.compute_dtype);
  Tensor entropy = per_row(call.compute_dtype), margin = per_row(call.compute_dtype);
  Tensor correct = per_row(Dtype::Bool);
  Tensor saved = allocate(logits, {rows, kSavedPerRow}, call.compute_dtype);
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
                                     const Tensor& saved) {
  const Call call = make_call(logits, target, weight, ignore_index, label_smoothing);
  const int64_t rows = call.input.batch_size, classes = call.input.num_classes;
  check_vector(grad_loss, "grad_loss", rows);
  check_same_device(grad_loss, "grad_loss", logits);
  check(grad_loss.scalar_type() == call.compute_dtype, "grad_loss must have the dtype of the loss");
  check(saved.scalar_type() == call.compute_dtype && saved.numel() == rows * kSavedPerRow &&
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
                    std::optional<Tensor> last_non_finite) {
  const int64_t num_samples = mean.numel(), rows = sample_ids.numel();
  const auto column = [&](const Tensor& t, const char* name) {
    check_vector(t, name, num_samples);
    check_same_device(t, name, mean);
    check(t.is_contiguous(), name, " must be contiguous: it is updated in place");
  };
  column(mean, "mean");
  column(variance, "variance");
  column(count, "count");
  check_dtype(mean, "mean", Dtype::Float, "float32");
  check_dtype(variance, "variance", Dtype::Float, "float32");
  const IndexType count_type = index_type(count, "count");
  check(count_type != IndexType::kUInt8, "count must be int32 or int64");
  if (non_finite_count.has_value()) {
    column(*non_finite_count, "non_finite_count");
    check_dtype(*non_finite_count, "non_finite_count", Dtype::Int, "int32");
  }
  if (last_non_finite.has_value()) {
    column(*last_non_finite, "last_non_finite");
    check_dtype(*last_non_finite, "last_non_finite", Dtype::Bool, "bool");
  }
  check(rows < int64_t{1} << 31, "sample_ids must have fewer than 2^31 elements, got ", rows);
  check_vector(sample_ids, "sample_ids", rows);
  check_vector(values, "values", rows);
  check_same_device(sample_ids, "sample_ids", mean);
  check_same_device(values, "values", mean);
  check_dtype(sample_ids, "sample_ids", Dtype::Long, "int64");
  check_dtype(values, "values", Dtype::Float, "float32");

  const Tensor dense_ids = dense(sample_ids), dense_values = dense(values);
  const auto pointer = [](const std::optional<Tensor>& t) {
    return t.has_value() ? t->mutable_data_ptr() : nullptr;
  };
  const ScoreUpdate update{static_cast<float*>(mean.mutable_data_ptr()),
                           static_cast<float*>(variance.mutable_data_ptr()),
                           count.mutable_data_ptr(),
                           count_type,
                           static_cast<int32_t*>(pointer(non_finite_count)),
                           static_cast<bool*>(pointer(last_non_finite)),
                           num_samples,
                           static_cast<const int64_t*>(dense_ids.const_data_ptr()),
                           static_cast<const float*>(dense_values.const_data_ptr()),
                           rows,
                           static_cast<float>(alpha),
                           published_first_visit ? FirstVisit::kPublished : FirstVisit::kZero};
  if (!on_cuda(mean)) {
    raise_if_bad(cpu::update_scores(update, torch_threads()), num_samples);
    return;
  }
#if defined(DYNPRUNE_WITH_CUDA)
  const CudaScope scope(mean);
  const Tensor workspace = allocate_bytes(mean, cuda::update_scores_workspace_bytes(rows));
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
