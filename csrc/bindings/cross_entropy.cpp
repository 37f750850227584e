// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "bindings/scoring.h"
#include "cpu/scoring/scored_cross_entropy.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/scoring/scored_cross_entropy.h"
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
  check_memory(logits, "logits");
  check(logits.dim() == 2 || logits.dim() == 3, "logits must be 2-D or 3-D, got ", logits.dim(),
        "-D");
  const int64_t groups = logits.dim() == 3 ? logits.size(0) : 1;
  const int64_t group_rows = logits.size(logits.dim() - 2), rows = groups * group_rows;
  const int64_t classes = logits.size(logits.dim() - 1);
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
  in_columns = logits_are_in_columns(logits);
  // Rows may be apart, but a row is contiguous, or the rows of a group are.
  const bool dense_rows = classes <= 1 || logits.stride(logits.dim() - 1) == 1;
  if (!dense_rows && !in_columns) logits = torch::stable::contiguous(logits);
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
    check_memory(*lam, "lam");
    check_same_device(*lam, "lam", logits);
    check(lam->scalar_type() == compute_dtype, "lam must be float32 (float64 for float64 logits)");
    input.lam = lam->const_data_ptr();
    input.lam_stride = lam->dim() == 0 || rows == 1 ? 0 : lam->stride(0);
  }
  input.logits = logits.const_data_ptr();
  input.type = type;
  input.batch_size = rows;
  input.num_classes = classes;
  input.row_stride = logits.stride(logits.dim() - 2);
  input.group_rows = group_rows;
  input.group_stride = logits.dim() == 3 ? logits.stride(0) : 0;
  input.class_stride = in_columns ? logits.stride(2) : 1;
  // Groups without gaps between them are one.
  if (!in_columns && (groups <= 1 || input.group_stride == group_rows * input.row_stride)) {
    input.group_rows = rows;
  }
  input.target = targets(&target, "target");
  input.label_smoothing = label_smoothing;
  input.ignore_index = ignore_index;
}

bool logits_are_in_columns(const Tensor& logits) {
  return logits.dim() == 3 && logits.size(2) > 1 && logits.stride(2) != 1 &&
         (logits.stride(1) == 1 || logits.size(1) <= 1);
}

Tensor CrossEntropyCall::allocate_gradient() const {
  const Dtype dtype = logits.scalar_type();
  if (logits.dim() == 2) return allocate(logits, {logits.size(0), logits.size(1)}, dtype);
  const int64_t groups = logits.size(0), rows = logits.size(1), classes = logits.size(2);
  if (in_columns) return allocate(logits, {groups, classes, rows}, dtype);
  return allocate(logits, {groups, rows, classes}, dtype);
}

namespace {

// The tensors that a forward pass returns, uninitialised.
struct Scored {
  Tensor loss, el2n, entropy, margin, correct, saved;

  explicit Scored(const CrossEntropyCall& call)
      : loss(per_row(call, call.compute_dtype)),
        el2n(per_row(call, call.compute_dtype)),
        entropy(per_row(call, call.compute_dtype)),
        margin(per_row(call, call.compute_dtype)),
        correct(per_row(call, Dtype::Bool)),
        saved(
            allocate(call.logits, {call.input.batch_size, kNumSavedColumns}, call.compute_dtype)) {}

  CrossEntropyOutput output() const {
    return {loss.mutable_data_ptr(),
            el2n.mutable_data_ptr(),
            entropy.mutable_data_ptr(),
            margin.mutable_data_ptr(),
            static_cast<bool*>(correct.mutable_data_ptr()),
            saved.mutable_data_ptr()};
  }
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> all() const {
    return {loss, el2n, entropy, margin, correct, saved};
  }

 private:
  static Tensor per_row(const CrossEntropyCall& call, Dtype dtype) {
    return allocate(call.logits, {call.input.batch_size}, dtype);
  }
};

bool is_dense_in_columns(const Tensor& logits) {
  return logits_are_in_columns(logits) && logits.stride(2) == logits.size(1) &&
         (logits.size(0) <= 1 || logits.stride(0) == logits.size(1) * logits.size(2));
}

CrossEntropyGradient checked_gradient(const CrossEntropyCall& call, const Tensor& grad_loss,
                                      const Tensor& saved, void* grad_logits) {
  const int64_t rows = call.input.batch_size;
  check_vector(grad_loss, "grad_loss", rows);
  check_same_device(grad_loss, "grad_loss", call.logits);
  check(grad_loss.scalar_type() == call.compute_dtype, "grad_loss must have the dtype of the loss");
  return {grad_loss.const_data_ptr(), rows > 1 ? grad_loss.stride(0) : 1, saved.const_data_ptr(),
          grad_logits};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> scored_cross_entropy(
    const Tensor& logits, const Tensor& target, std::optional<Tensor> weight, int64_t ignore_index,
    double label_smoothing, std::optional<Tensor> second_target, std::optional<Tensor> lam) {
  const CrossEntropyCall call(logits, target, weight, ignore_index, label_smoothing, second_target,
                              lam);
  const Scored scored(call);
  run_on_device(
      logits, "computing the cross-entropy",
      [&] {
        raise_if_bad(cpu::scored_cross_entropy(call.input, scored.output(), torch_threads()),
                     call.input.num_classes);
      },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_scored_cross_entropy(call.input, scored.output(), scope.errors(),
                                                 scope.stream());
      }));
  return scored.all();
}

Tensor scored_cross_entropy_backward(const Tensor& grad_loss, const Tensor& logits,
                                     const Tensor& target, std::optional<Tensor> weight,
                                     int64_t ignore_index, double label_smoothing,
                                     const Tensor& saved, std::optional<Tensor> second_target,
                                     std::optional<Tensor> lam) {
  const CrossEntropyCall call(logits, target, weight, ignore_index, label_smoothing, second_target,
                              lam);
  check_memory(saved, "saved");
  check(saved.scalar_type() == call.compute_dtype &&
            saved.numel() == call.input.batch_size * kNumSavedColumns && saved.is_contiguous(),
        "saved must be what scored_cross_entropy returned");
  check_same_device(saved, "saved", logits);
  Tensor grad_logits = call.allocate_gradient();
  const CrossEntropyGradient gradient =
      checked_gradient(call, grad_loss, saved, grad_logits.mutable_data_ptr());
  run_on_device(
      logits, "computing the gradient of the cross-entropy",
      [&] { cpu::scored_cross_entropy_backward(call.input, gradient, torch_threads()); },
      DYNPRUNE_ON_CUDA({
        return cuda::launch_scored_cross_entropy_backward(call.input, gradient, scope.stream());
      }));
  return grad_logits;
}

// Not for second targets: their logit is read again after the row's gradient is written.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> scored_cross_entropy_with_gradient_(
    const Tensor& grad_loss, const Tensor& logits, const Tensor& target,
    std::optional<Tensor> weight, int64_t ignore_index, double label_smoothing) {
  check((logits.dim() == 2 && logits.is_contiguous()) ||
            (!logits.is_cuda() && is_dense_in_columns(logits)),
        "logits must be 2-D and contiguous; on the CPU their rows may be neighbours instead");
  const CrossEntropyCall call(logits, target, weight, ignore_index, label_smoothing, std::nullopt,
                              std::nullopt);
  const Scored scored(call);
  const CrossEntropyGradient gradient =
      checked_gradient(call, grad_loss, scored.saved, logits.mutable_data_ptr());
  run_on_device(
      logits, "computing the cross-entropy and its gradient",
      [&] {
        raise_if_bad(cpu::scored_cross_entropy_with_gradient(call.input, scored.output(), gradient,
                                                             torch_threads()),
                     call.input.num_classes);
      },
      DYNPRUNE_ON_CUDA({
        const cudaError_t error = cuda::launch_scored_cross_entropy(call.input, scored.output(),
                                                                    scope.errors(), scope.stream());
        if (error != cudaSuccess) return error;
        return cuda::launch_scored_cross_entropy_backward(call.input, gradient, scope.stream());
      }));
  return scored.all();
}

template <class Library>
void register_cross_entropy(Library& m) {
  m.impl("scored_cross_entropy", TORCH_BOX(&scored_cross_entropy));
  m.impl("scored_cross_entropy_backward", TORCH_BOX(&scored_cross_entropy_backward));
  m.impl("scored_cross_entropy_with_gradient_", TORCH_BOX(&scored_cross_entropy_with_gradient_));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_cross_entropy(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_cross_entropy(m); }

}  // namespace bindings
}  // namespace dynprune
