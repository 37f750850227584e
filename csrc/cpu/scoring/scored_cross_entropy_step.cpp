// SPDX-License-Identifier: Apache-2.0
#include "cpu/scoring/scored_cross_entropy_step.h"

#include "cpu/scoring/row_batch.h"
#include "cpu/scoring/step_losses.h"
#include "cpu/scoring/update_scores.h"

namespace dynprune {
namespace cpu {
namespace {

// Lists the rows that count: their sample ids, and kNoSample for the others. False if a target or
// an id is out of range. For one target and one id a row. Without branches: a loop for vectors.
template <class Index>
DYNPRUNE_CLONES bool list_plain_rows(const Index* target, const CrossEntropyInput& in,
                                     const ScoreUpdate& update, int64_t* row_ids, double* sum) {
  const int64_t rows = in.batch_size, classes = in.num_classes, ignore_index = in.ignore_index;
  const int64_t* ids = update.sample_ids;
  const int64_t samples = update.num_samples;
  int64_t scored = 0, wrong = 0;
  for (int64_t row = 0; row < rows; row++) {
    const int64_t y = target[row], id = ids[row];
    const bool counts = y != ignore_index;
    const bool right = is_class(y, classes) & (id >= kNoSample) & (id < samples);
    row_ids[row] = counts ? id : kNoSample;
    scored += counts;
    wrong += counts & !right;
  }
  *sum = static_cast<double>(scored);
  return wrong == 0;
}

// The same of all kinds of rows. `sum` becomes what the sum of the weighted losses is divided by:
// the class weights of these rows. Stops at the first target or id that is out of range.
template <class A>
DataStatus list_rows(const CrossEntropyInput& in, const ScoreUpdate& update, int64_t rows_per_id,
                     int64_t* row_ids, double* sum) {
  const LossOptions<A> options(in);
  const bool weighted = in.class_weight != nullptr || in.second_target.data != nullptr;
  const bool plain = !weighted && rows_per_id == 1;
  if (plain && with_indices(in.target, [&](const auto* target) {
        return list_plain_rows(target, in, update, row_ids, sum);
      })) {
    return DataStatus{};
  }
  int64_t scored = 0;
  for (int64_t row = 0; row < in.batch_size; row++) {
    const TargetPair y = targets_of_row(in, row);
    if (y.kind == RowKind::kOutOfRange) return {false, DataError::kTarget, row, y.offender};
    if (y.kind != RowKind::kScored) {
      row_ids[row] = kNoSample;
      continue;
    }
    const int64_t place = rows_per_id == 1 ? row : row / rows_per_id;
    const int64_t id = update.sample_ids[place];
    if (!is_sample_or_none(id, update.num_samples)) return {false, DataError::kSampleId, place, id};
    row_ids[row] = id;
    scored++;
    if (weighted) *sum += RowTarget<A>(in, row).mean_weight(options);
  }
  if (!weighted) *sum = static_cast<double>(scored);
  return DataStatus{};
}

// What of some rows' scores enters the table, as table_value has it of one: an array of lanes, and
// its sign.
template <class A>
const A* table_lanes(Score score, const RowLanes<A>& lanes, const A* loss, float* sign) {
  *sign = score == Score::kMargin ? -1.0f : 1.0f;
  switch (score) {
    case Score::kEl2n:
      return lanes.el2n;
    case Score::kEntropy:
      return lanes.entropy;
    case Score::kMargin:
      return lanes.margin;
    case Score::kLoss:
      break;
  }
  return loss;
}

// What score_rows enters for kLanes rows that follow each other and have no weights.
template <class A>
DYNPRUNE_CLONES void enter_lanes(const A* value, float sign, A weight, A grad_scale, float* values,
                                 A* row_weight, A* scale) {
  for (int l = 0; l < kLanes; l++) {
    values[l] = sign * static_cast<float>(value[l]);
    row_weight[l] = weight;
    scale[l] = weight * grad_scale;
  }
}

template <class T>
void score_rows(const CrossEntropyInput& in, const CrossEntropyOutput& out,
                const CrossEntropyStep& step, double divisor, float* values,
                const Parallel& parallel) {
  using A = compute_t<T>;
  const A inverse = static_cast<A>(1 / divisor);
  const A grad_scale = step.grad_scale != nullptr ? *static_cast<const A*>(step.grad_scale) : A{1};
  A* row_weight = static_cast<A*>(step.row_weight);
  const bool weighted = has_weights(step);
  for_each_range(parallel, in.batch_size, row_tasks(in, parallel), [&](int, Range rows) {
    std::fill(row_weight + rows.begin, row_weight + rows.end, A{0});
    RowBatch<T>(in, out, static_cast<T*>(step.grad_logits))
        .run(rows, [&](const RowGroup<A>& group) {
          float sign;
          const A* value = table_lanes(step.score, *group.lanes, group.loss, &sign);
          if (group.consecutive && !weighted) {
            const int64_t first = group.row[0];
            enter_lanes(value, sign, inverse, grad_scale, values + first, row_weight + first,
                        group.scale);
            return;
          }
          for (int l = 0; l < group.count; l++) {
            const int64_t row = group.row[l];
            values[row] = sign * static_cast<float>(value[l]);
            row_weight[row] = weight_of<A>(step, row) * inverse;
            group.scale[l] = row_weight[row] * grad_scale;
          }
        });
  });
  reduce_losses(step, in.batch_size, static_cast<const A*>(out.loss), divisor,
                [&](int64_t row) { return targets_of_row(in, row).kind == RowKind::kScored; });
}

template <class T>
DYNPRUNE_CLONES void scale_row(T* x, int64_t classes, compute_t<T> factor) {
  for (int64_t c = 0; c < classes; c++) x[c] = narrow<T>(widen(x[c]) * factor);
}

}  // namespace

DataStatus scored_cross_entropy_step(const CrossEntropyInput& in, const CrossEntropyOutput& out,
                                     const CrossEntropyStep& step, const ScoreUpdate& update,
                                     float* values, int64_t* row_ids, const Parallel& parallel) {
  return dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    double weights = 0;
    const DataStatus status =
        list_rows<compute_t<T>>(in, update, step.rows_per_id, row_ids, &weights);
    if (!status.ok) return status;
    if (step.divisor != nullptr) weights = *static_cast<const compute_t<T>*>(step.divisor);
    score_rows<T>(in, out, step, step.reduction == Reduction::kMean ? weights : 1, values,
                  parallel);
    ScoreUpdate scored = update;
    scored.sample_ids = row_ids;
    scored.values = values;
    update_scores_unchecked(scored, parallel);
    return status;
  });
}

void scale_gradient(void* grad_logits, ScalarType type, int64_t rows, int64_t classes,
                    const void* grad_loss, int64_t grad_loss_stride, const void* grad_scale,
                    const Parallel& parallel) {
  CrossEntropyInput shape{};
  shape.batch_size = rows;
  shape.num_classes = classes;
  dispatch(type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const A* factors = static_cast<const A*>(grad_loss);
    const A scale = grad_scale != nullptr ? *static_cast<const A*>(grad_scale) : A{1};
    // No thread is woken up for nothing.
    if (rows > 0 && grad_loss_stride == 0 && *factors / scale == 1) return;
    for_each_range(parallel, rows, row_tasks(shape, parallel), [&](int, Range range) {
      for (int64_t row = range.begin; row < range.end; row++) {
        const A factor = factors[row * grad_loss_stride] / scale;
        if (factor != 1) scale_row(static_cast<T*>(grad_logits) + row * classes, classes, factor);
      }
    });
  });
}

}  // namespace cpu
}  // namespace dynprune
