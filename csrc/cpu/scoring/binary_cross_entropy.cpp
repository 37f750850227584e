// SPDX-License-Identifier: Apache-2.0
#include "cpu/scoring/binary_cross_entropy.h"

#include "cpu/scoring/binary_rows.h"
#include "cpu/scoring/update_scores.h"

namespace dynprune {
namespace cpu {
namespace {

template <class A>
void write(const CrossEntropyOutput& out, int64_t row, int count, const BinaryResults<A>& rows) {
  std::copy(rows.loss, rows.loss + count, static_cast<A*>(out.loss) + row);
  std::copy(rows.el2n, rows.el2n + count, static_cast<A*>(out.el2n) + row);
  std::copy(rows.entropy, rows.entropy + count, static_cast<A*>(out.entropy) + row);
  std::copy(rows.margin, rows.margin + count, static_cast<A*>(out.margin) + row);
  for (int l = 0; l < count; l++) out.correct[row + l] = rows.margin[l] > 0;
}

template <class A>
A weight_of(const CrossEntropyStep& step, int64_t row) {
  return step.sample_weight != nullptr ? static_cast<const A*>(step.sample_weight)[row] : A{1};
}

template <class T>
DataStatus run_step(const BinaryInput& in, const CrossEntropyOutput& out,
                    const CrossEntropyStep& step, const ScoreUpdate& update, float* values,
                    int64_t* row_ids, const Parallel& parallel) {
  using A = compute_t<T>;
  A divisor = 1;
  if (step.reduction == Reduction::kMean) {
    divisor = step.divisor != nullptr ? *static_cast<const A*>(step.divisor)
                                      : static_cast<A>(in.batch_size);
  }
  const A factor = rows_factor<A>(in, step.reduction) / divisor;
  const A grad_scale = step.grad_scale != nullptr ? *static_cast<const A*>(step.grad_scale) : A{1};
  A* row_weight = static_cast<A*>(step.row_weight);
  const DataStatus status = for_each_binary_row<T>(
      in, static_cast<T*>(step.grad_logits), parallel,
      [&](int64_t row) { return weight_of<A>(step, row) * factor * grad_scale; },
      [&](int64_t first, int count, BinaryRows<T>& rows) {
        const BinaryResults<A>& results = rows.finish();
        write(out, first, count, results);
        for (int l = 0; l < count; l++) {
          const int64_t row = first + l;
          row_ids[row] = results.counts[l] ? update.sample_ids[row] : kNoSample;
          row_weight[row] = results.counts[l] ? weight_of<A>(step, row) * factor : A{0};
          values[row] = table_value(step.score, results.loss[l], results.row(l));
        }
      });
  if (!status.ok) return status;
  // The loss of a row of weight 0 is not looked at: it may be infinite.
  const A* row_loss = static_cast<const A*>(out.loss);
  double sum = 0;
  for (int64_t row = 0; row < in.batch_size; row++) {
    const double weighted =
        row_weight[row] != 0 ? static_cast<double>(row_weight[row]) * row_loss[row] : 0;
    if (step.reduction == Reduction::kNone) {
      static_cast<A*>(step.loss)[row] = static_cast<A>(weighted);
    } else {
      sum += weighted;
    }
  }
  if (divisor == 0) sum = Limits<double>::nan();  // the mean of no rows
  if (step.reduction != Reduction::kNone) *static_cast<A*>(step.loss) = static_cast<A>(sum);
  return status;
}

}  // namespace

DataStatus scored_binary_cross_entropy(const BinaryInput& in, const CrossEntropyOutput& out,
                                       const Parallel& parallel) {
  return dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    return for_each_binary_row<T>(
        in, nullptr, parallel, [](int64_t) { return A{0}; },
        [&](int64_t row, int count, BinaryRows<T>& rows) {
          write(out, row, count, rows.finish());
        });
  });
}

DataStatus scored_binary_cross_entropy_backward(const BinaryInput& in, const BinaryGradient& g,
                                                const Parallel& parallel) {
  return dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const A* grad_loss = static_cast<const A*>(g.grad_loss);
    return for_each_binary_row<T>(
        in, static_cast<T*>(g.grad_logits), parallel,
        [&](int64_t row) { return grad_loss[row * g.grad_loss_stride]; },
        [](int64_t, int, BinaryRows<T>&) {});
  });
}

DataStatus scored_binary_cross_entropy_step(const BinaryInput& in, const CrossEntropyOutput& out,
                                            const CrossEntropyStep& step, const ScoreUpdate& update,
                                            float* values, int64_t* row_ids,
                                            const Parallel& parallel) {
  for (int64_t row = 0; row < in.batch_size; row++) {
    const int64_t id = update.sample_ids[row];
    if (!is_sample_or_none(id, update.num_samples)) return {false, DataError::kSampleId, row, id};
  }
  const DataStatus status = dispatch(in.type, [&](auto tag) {
    return run_step<decltype(tag)>(in, out, step, update, values, row_ids, parallel);
  });
  if (!status.ok) return status;
  ScoreUpdate scored = update;
  scored.sample_ids = row_ids;
  scored.values = values;
  update_scores_unchecked(scored, parallel);
  return status;
}

}  // namespace cpu
}  // namespace dynprune
