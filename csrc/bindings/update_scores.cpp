// SPDX-License-Identifier: Apache-2.0
#include "cpu/scoring/update_scores.h"

#include "bindings/scoring.h"

#if defined(DYNPRUNE_WITH_CUDA)
#include "kernels/scoring/update_scores.h"
#endif

namespace dynprune {
namespace bindings {

UpdateCall::UpdateCall(const Tensor& mean, const Tensor& variance, const Tensor& count,
                       const Tensor& sample_ids_in, double alpha, bool published_first_visit,
                       int64_t row_reduction, const std::optional<Tensor>& non_finite_count,
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
  update.batch_size = update.max_ids = rows;
  update.row_reduction =
      enum_argument<RowReduction>("row_reduction", row_reduction, kNumRowReductions);
  update.alpha = static_cast<float>(alpha);
  update.first_visit = published_first_visit ? FirstVisit::kPublished : FirstVisit::kZero;
}

void update_scores_(const Tensor& mean, const Tensor& variance, const Tensor& count,
                    const Tensor& sample_ids, const Tensor& values, double alpha,
                    bool published_first_visit, std::optional<Tensor> non_finite_count,
                    std::optional<Tensor> last_non_finite, std::optional<Tensor> correct,
                    std::optional<Tensor> last_correct, std::optional<Tensor> forget_count,
                    int64_t row_reduction) {
  UpdateCall call(mean, variance, count, sample_ids, alpha, published_first_visit, row_reduction,
                  non_finite_count, last_non_finite, last_correct, forget_count);
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
  run_on_device(
      mean, "updating the scores",
      [&] { raise_if_bad(cpu::update_scores(update, torch_threads()), update.num_samples); },
      DYNPRUNE_ON_CUDA({
        const Tensor workspace =
            allocate_bytes(mean, cuda::update_scores_workspace_bytes(update.max_ids));
        return cuda::launch_update_scores(update, workspace.mutable_data_ptr(), scope.errors(),
                                          scope.stream());
      }));
}

template <class Library>
void register_update_scores(Library& m) {
  m.impl("update_scores_", TORCH_BOX(&update_scores_));
}
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) { register_update_scores(m); }
STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CUDA, m) { register_update_scores(m); }

}  // namespace bindings
}  // namespace dynprune
