// SPDX-License-Identifier: Apache-2.0
#include "cpu/scoring/soft_cross_entropy.h"

#include <algorithm>

#include "cpu/scoring/row_batch.h"
#include "cpu/scoring/soft_rows.h"
#include "cpu/scoring/step_losses.h"
#include "cpu/scoring/update_scores.h"

namespace dynprune {
namespace cpu {
namespace {

template <bool kWeighted, class T, class U>
DYNPRUNE_CLONES void backward_row(const T* x, const U* t, int64_t classes,
                                  const SoftRow<compute_t<T>>& slopes, T* out) {
  using A = compute_t<T>;
  const SoftRow<A> row = slopes;
  for (int64_t c = 0; c < classes; c++) {
    const A logit = widen(x[c]), target = widen(t[c]);
    const A p = exp_nonpositive(logit - row.max - row.log_normaliser);
    out[c] = narrow<T>(row.template gradient<kWeighted>(logit == row.max, c, p, target));
  }
}

template <class T, class U>
void score_rows(const CrossEntropyInput& in, const SoftTarget& target,
                const CrossEntropyOutput& out, const CrossEntropyStep& step, double divisor,
                float* values, const Parallel& parallel) {
  using A = compute_t<T>;
  const A inverse = static_cast<A>(1 / divisor);
  const A grad_scale = step.grad_scale != nullptr ? *static_cast<const A*>(step.grad_scale) : A{1};
  A* row_weight = static_cast<A*>(step.row_weight);
  T* grad_logits = static_cast<T*>(step.grad_logits);
  for_each_range(parallel, in.batch_size, row_tasks(in, parallel), [&](int, Range range) {
    SoftRows<T, U> rows(in, target, out);
    for (int64_t row = range.begin; row < range.end; row++) {
      const RowResult<A> result = rows.score(row);
      values[row] = table_value(step.score, result.nll, result);
      row_weight[row] = weight_of<A>(step, row) * inverse;
      if (grad_logits == nullptr) continue;
      rows.write_gradient(row_weight[row] * grad_scale, grad_logits + in.gradient_offset(row));
    }
  });
  reduce_losses(step, in.batch_size, static_cast<const A*>(out.loss), divisor,
                [&](int64_t row) { return weight_of<A>(step, row) != 0; });
}

}  // namespace

void soft_cross_entropy(const CrossEntropyInput& in, const SoftTarget& target,
                        const CrossEntropyOutput& out, const Parallel& parallel) {
  dispatch_soft(in, target, [&](auto logit, auto probability) {
    for_each_range(parallel, in.batch_size, row_tasks(in, parallel), [&](int, Range range) {
      SoftRows<decltype(logit), decltype(probability)> rows(in, target, out);
      for (int64_t row = range.begin; row < range.end; row++) rows.score(row);
    });
  });
}

void soft_cross_entropy_backward(const CrossEntropyInput& in, const SoftTarget& target,
                                 const CrossEntropyGradient& g, const Parallel& parallel) {
  dispatch_soft(in, target, [&](auto logit, auto probability) {
    using T = decltype(logit);
    using U = decltype(probability);
    using A = compute_t<T>;
    const SoftWeights<A> weights(in);
    const A* grad_loss = static_cast<const A*>(g.grad_loss);
    const SavedRow<A>* saved = static_cast<const SavedRow<A>*>(g.saved);
    const int64_t classes = in.num_classes;
    for_each_range(parallel, in.batch_size, row_tasks(in, parallel), [&](int, Range range) {
      for (int64_t row = range.begin; row < range.end; row++) {
        const T* x = static_cast<const T*>(in.logits) + in.row_offset(row);
        const U* t = static_cast<const U*>(target.data) + row * target.row_stride;
        T* out = static_cast<T*>(g.grad_logits) + in.gradient_offset(row);
        const SoftRow<A> slopes(weights, saved[row], grad_loss[row * g.grad_loss_stride]);
        if (slopes.scale == 0) {
          std::fill(out, out + classes, narrow<T>(A{0}));
        } else if (weights.class_weight != nullptr) {
          backward_row<true>(x, t, classes, slopes, out);
        } else {
          backward_row<false>(x, t, classes, slopes, out);
        }
      }
    });
  });
}

DataStatus soft_cross_entropy_step(const CrossEntropyInput& in, const SoftTarget& target,
                                   const CrossEntropyOutput& out, const CrossEntropyStep& step,
                                   const ScoreUpdate& update, float* values, int64_t* row_ids,
                                   const Parallel& parallel) {
  for (int64_t row = 0; row < in.batch_size; row++) {
    const int64_t place = step.rows_per_id == 1 ? row : row / step.rows_per_id;
    const int64_t id = update.sample_ids[place];
    if (!is_sample_or_none(id, update.num_samples)) return {false, DataError::kSampleId, place, id};
    row_ids[row] = id;
  }
  dispatch_soft(in, target, [&](auto logit, auto probability) {
    using T = decltype(logit);
    double divisor = static_cast<double>(in.batch_size);
    if (step.divisor != nullptr) divisor = *static_cast<const compute_t<T>*>(step.divisor);
    score_rows<T, decltype(probability)>(
        in, target, out, step, step.reduction == Reduction::kMean ? divisor : 1, values, parallel);
  });
  ScoreUpdate scored = update;
  scored.sample_ids = row_ids;
  scored.values = values;
  update_scores_unchecked(scored, parallel);
  return DataStatus{};
}

}  // namespace cpu
}  // namespace dynprune
