// SPDX-License-Identifier: Apache-2.0
// Rows of binary labels, kLanes of them at a time, in blocks of labels that stay in the first
// cache. A row's last kLanes labels are filled up with some of weight 0.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scoring/binary_lanes.h"

namespace dynprune {
namespace cpu {

constexpr int kLabelBlock = 512;
constexpr int64_t kMinLabelsPerTask = 8192;

// x[i] as a number of the arithmetic's type, and `padding` behind.
template <class S, class A>
DYNPRUNE_CLONES void widen_labels(const S* x, int labels, int count, A padding, A* to) {
  for (int i = 0; i < labels; i++) to[i] = static_cast<A>(widen(x[i]));
  for (int i = labels; i < count; i++) to[i] = padding;
}
template <class T>
DYNPRUNE_CLONES void narrow_slopes(const compute_t<T>* slope, int labels, T* out) {
  for (int i = 0; i < labels; i++) out[i] = narrow<T>(slope[i]);
}

// The rows of one task, up to kLanes at a time.
template <class T>
class BinaryRows {
 public:
  using A = compute_t<T>;

  // grad_logits: [B, L], or null.
  BinaryRows(const BinaryInput& in, T* grad_logits)
      : in_(in),
        grad_(grad_logits),
        weighted_(in.label_weight != nullptr || in.pos_weight != nullptr) {}

  // Adds up rows [row, row + count), and writes the gradients of their losses times scale(row).
  template <class Scale>
  DataStatus run(int64_t row, int count, const Scale& scale) {
    total_ = {};
    std::fill(total_.margin, total_.margin + kLanes, Limits<double>::infinity());
    for (int l = 0; l < count; l++) scale_[l] = scale(row + l) / static_cast<A>(in_.num_labels);
    for (int64_t label = 0; label < in_.num_labels; label += kLabelBlock) {
      const int labels = static_cast<int>(std::min<int64_t>(kLabelBlock, in_.num_labels - label));
      const int rows = kLabelBlock / static_cast<int>(round_up_to_lanes(labels));
      for (int l = 0; l < count; l += rows) {
        add_block(l, std::min(rows, count - l), row + l, label, labels);
      }
      run_widest<SumLabels<A>>(static_cast<const LabelLanes<A>*>(&lanes_), weighted_, &total_);
    }
    // A target that is NaN makes the loss NaN.
    bool doubtful = false;
    for (int l = 0; l < kLanes; l++) {
      doubtful |= lanes_.least[l] < 0 || total_.loss[l] != total_.loss[l];
    }
    return doubtful ? find_outside(row, count) : DataStatus{};
  }
  // Of these rows.
  const BinaryResults<A>& finish() {
    run_widest<FinishBinaryRows<A>>(static_cast<const BinaryTotals*>(&total_), in_.num_labels,
                                    &results_);
    return results_;
  }

 private:
  // Labels [label, label + labels) of rows [row, row + rows), of which the first has lane l.
  void add_block(int l, int rows, int64_t row, int64_t label, int labels) {
    const int padded = static_cast<int>(round_up_to_lanes(labels));
    LabelBlock<A> block{};
    block.rows = rows, block.labels = padded, block.scale = scale_ + l;
    // Behind the last label lie some that add nothing: x = -infinity, t = 0, and a weight of 0.
    block.x = labels_of(static_cast<const T*>(in_.logits) + row * in_.row_stride + label,
                        in_.row_stride, rows, labels, -Limits<A>::infinity(), x_);
    block.t = targets(row, label, rows, labels);
    T* const out = grad_ != nullptr ? grad_ + row * in_.num_labels + label : nullptr;
    if constexpr (std::is_same<T, A>::value) {
      if (padded == labels) block.slope = {out, in_.num_labels};
    }
    if (out != nullptr && block.slope.labels == nullptr) block.slope = {slope_, padded};
    const LabelBlock<A>* const given = &block;
    if (weighted_) {
      const A* weight = static_cast<const A*>(in_.label_weight);
      if (weight != nullptr) weight += row * in_.label_weight_stride + label;
      block.weight = labels_of(weight, in_.label_weight_stride, rows, labels, A{0}, weight_);
      const A* pos_weight = static_cast<const A*>(in_.pos_weight);
      if (pos_weight != nullptr) pos_weight += label;
      block.pos_weight = labels_of(pos_weight, 0, rows, labels, A{0}, pos_weight_);
      run_widest<AddLabels<A, true>>(given, l, &lanes_);
    } else {
      run_widest<AddLabels<A, false>>(given, l, &lanes_);
    }
    for (int r = 0; r < rows && block.slope.labels == slope_; r++) {
      narrow_slopes(block.slope.row(r), labels, out + r * in_.num_labels);
    }
  }

  // Rows of labels, in place or copied `to`; ones where none are given.
  template <class S>
  static LabelRows<const A> labels_of(const S* from, int64_t stride, int rows, int labels,
                                      A padding, A* to) {
    const int padded = static_cast<int>(round_up_to_lanes(labels));
    if (from == nullptr) {
      std::fill(to, to + labels, A{1});
      std::fill(to + labels, to + padded, padding);
      return {to, 0};
    }
    if constexpr (std::is_same<S, A>::value) {
      if (padded == labels) return {from, stride};
    }
    if (stride == 0) rows = 1;
    for (int r = 0; r < rows; r++) {
      widen_labels(from + r * stride, labels, padded, padding, to + r * padded);
    }
    return {to, stride == 0 ? 0 : padded};
  }

  LabelRows<const A> targets(int64_t row, int64_t label, int rows, int labels) {
    const int64_t offset = row * in_.target_stride + label;
    const auto widened = [&](auto tag) {
      const auto* from = static_cast<const decltype(tag)*>(in_.target) + offset;
      return labels_of(from, in_.target_stride, rows, labels, A{0}, t_);
    };
    if (in_.target_type == LabelType::kBool) return widened(uint8_t{});
    return dispatch(static_cast<ScalarType>(in_.target_type), widened);
  }

  // The first of rows [first, first + count) with a target that is no probability.
  DataStatus find_outside(int64_t first, int count) {
    const A* weight = static_cast<const A*>(in_.label_weight);
    for (int64_t row = first; row < first + count; row++) {
      for (int64_t label = 0; label < in_.num_labels; label++) {
        const A t = *targets(row, label, 1, 1).labels;
        if (is_probability(t)) continue;
        if (weight != nullptr && weight[row * in_.label_weight_stride + label] == 0) continue;
        const double outside = t;
        return {false, DataError::kProbability, row, bit_cast<int64_t>(outside)};
      }
    }
    return DataStatus{};
  }

  const BinaryInput& in_;
  T* grad_;
  bool weighted_;
  LabelLanes<A> lanes_{};
  BinaryTotals total_;
  BinaryResults<A> results_;
  A scale_[kLanes];
  A x_[kLabelBlock], t_[kLabelBlock], slope_[kLabelBlock];
  A weight_[kLabelBlock], pos_weight_[kLabelBlock];
};

// Calls on_rows(row, count, rows) for all rows, in tasks, up to kLanes at a time; rows.finish() has
// their results. Returns the first row with a target that is no probability. scale(row): what the
// gradient of the row's loss is multiplied with.
template <class T, class Scale, class OnRows>
DataStatus for_each_binary_row(const BinaryInput& in, T* grad_logits, const Parallel& parallel,
                               const Scale& scale, const OnRows& on_rows) {
  const int64_t rows = kMinLabelsPerTask / std::max<int64_t>(in.num_labels, 1);
  const int tasks = num_tasks(parallel, in.batch_size, std::max<int64_t>(rows, 1));
  std::vector<DataStatus> found(tasks);
  for_each_range(parallel, in.batch_size, tasks, [&](int task, Range range) {
    BinaryRows<T> rows_of_task(in, grad_logits);
    for (int64_t row = range.begin; row < range.end && found[task].ok; row += kLanes) {
      const int count = static_cast<int>(std::min<int64_t>(kLanes, range.end - row));
      found[task] = rows_of_task.run(row, count, scale);
      on_rows(row, count, rows_of_task);
    }
  });
  for (const DataStatus& status : found) {
    if (!status.ok) return status;
  }
  return DataStatus{};
}

}  // namespace cpu
}  // namespace dynprune
