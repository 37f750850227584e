// SPDX-License-Identifier: Apache-2.0
// Rows of binary labels in vector code: a block of labels that stays in the first cache, kLanes of
// them at a time, whose sums are kept in independent lanes. The lanes of kLanes rows are joined
// together. A row's last group that is not full is filled with labels of weight 0.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scoring/lanes.h"
#include "shared/binary_row.h"

namespace dynprune {
namespace cpu {

constexpr int kLabelBlock = 512;
constexpr int64_t kMinLabelsPerTask = 8192;

// Labels of rows that lie `stride` apart.
template <class Label>
struct LabelRows {
  Label* labels;
  int64_t stride;

  DYNPRUNE_INLINE Label* row(int r) const { return labels + r * stride; }
};

// [rows][labels], labels a multiple of kLanes. slope: out, or null.
template <class A>
struct LabelBlock {
  LabelRows<const A> x, t, weight, pos_weight;
  LabelRows<A> slope;
  const A* scale;  // [rows], of the slopes; with 0 all of them are 0, also of a broken row
  int rows, labels;
};

// e^-|x| and what follows of it, in every lane. What would be subnormal is 0.
template <class A, int kBytes>
DYNPRUNE_INLINE void set_decay_terms(const typename Lanes<A, kBytes>::Vector& x,
                                     DecayTerms<typename Lanes<A, kBytes>::Vector>* terms) {
  using Vector = typename Lanes<A, kBytes>::Vector;
  Vector below{}, e{}, log1p{}, reciprocal{};
  if constexpr (sizeof(A) == sizeof(float)) {
    using Bits = typename VectorOf<float, kBytes>::bits;
    Bits bits;
    memcpy(&bits, &x, sizeof(bits));
    bits |= 0x80000000u;
    memcpy(&below, &bits, sizeof(below));
    exp_for_sums<Bits>(below, &e);
    e = below <= Vector{} + kLeastExponent<float> ? Vector{} : e;
    set_log1p_terms(e, &log1p, &reciprocal);
  } else {
    for (int l = 0; l < Lanes<A, kBytes>::kPerVector; l++) {
      DecayTerms<A> lane{};
      below[l] = x[l] > 0 ? -x[l] : x[l];
      set_terms_of_decay(exp(below[l]), &lane);
      e[l] = lane.e, log1p[l] = lane.log1p, reciprocal[l] = lane.reciprocal;
    }
  }
  *terms = {below, e, log1p, reciprocal};
}

// What some labels of kLanes rows add to the rows' sums, a lane per label.
template <class A>
struct LabelLanes {
  A loss[kLanes][kLanes], square[kLanes][kLanes], entropy[kLanes][kLanes], margin[kLanes][kLanes];
  A counted[kLanes][kLanes];  // how many labels have a weight; kWeighted only
  A least[kLanes];            // below 0: a target of a row is no probability
};

// The sums of kLanes rows.
struct BinaryTotals {
  double loss[kLanes], squares[kLanes], entropy[kLanes], margin[kLanes], counted[kLanes];
};

// And what they give.
template <class A>
struct BinaryResults {
  A loss[kLanes], el2n[kLanes], entropy[kLanes], margin[kLanes];
  bool counts[kLanes];  // whether a label has a weight other than 0

  RowResult<A> row(int l) const { return {loss[l], el2n[l], entropy[l], margin[l], 0, 0, 0}; }
};

// A block whose first row is row `first` of `lanes`. kWeighted: both weights are given; else all
// labels count.
template <class A, bool kWeighted>
struct AddLabels {
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const LabelBlock<A>* block, int first, LabelLanes<A>* lanes) {
    Lanes<A, kBytes> least;
    least.load(lanes->least);
    for (int r = 0; r < block->rows; r++) add_row(*block, r, first + r, &least, lanes);
    least.store(lanes->least);
  }

 private:
  template <int kBytes>
  static DYNPRUNE_INLINE void add_row(const LabelBlock<A>& block, int r, int l,
                                      Lanes<A, kBytes>* least_of_rows, LabelLanes<A>* lanes) {
    using L = Lanes<A, kBytes>;
    using Vector = typename L::Vector;
    const A *const xs = block.x.row(r), *const ts = block.t.row(r);
    const A *const weights = block.weight.row(r), *const pos_weights = block.pos_weight.row(r);
    A* const slopes = block.slope.labels != nullptr ? block.slope.row(r) : nullptr;
    L loss, square, entropy, margin, counted, least = *least_of_rows;
    loss.fill(0), square.fill(0), entropy.fill(0), counted.fill(0);
    margin.fill(Limits<A>::infinity());
    const Vector zero{}, one = zero + 1, nothing = zero - Limits<A>::infinity();
    const Vector scale = zero + block.scale[r];
    const int labels = block.labels;
    for (int i = 0; i < labels; i += kLanes) {
      L x, t, weight, pos_weight, slope;
      x.load(xs + i), t.load(ts + i);
      weight.fill(1), pos_weight.fill(1);
      if constexpr (kWeighted) weight.load(weights + i), pos_weight.load(pos_weights + i);
      for (int w = 0; w < L::kVectors; w++) {
        if constexpr (kWeighted) {
          const auto skipped = weight.v[w] == zero;
          x.v[w] = skipped ? nothing : x.v[w];
          t.v[w] = skipped ? zero : t.v[w];
          counted.v[w] += skipped ? zero : one;
        }
        DecayTerms<Vector> decay{};
        set_decay_terms<A, kBytes>(x.v[w], &decay);
        const auto terms = BinaryTerms<A, Vector>::template of<kWeighted>(
            x.v[w], t.v[w], decay, weight.v[w], pos_weight.v[w]);
        loss.v[w] += terms.loss;
        square.v[w] += terms.square;
        entropy.v[w] += terms.entropy;
        margin.v[w] = terms.margin < margin.v[w] ? terms.margin : margin.v[w];
        const Vector negative = 1 - t.v[w], smaller = negative < t.v[w] ? negative : t.v[w];
        least.v[w] = smaller < least.v[w] ? smaller : least.v[w];
        slope.v[w] = scale != zero ? scale * terms.slope : zero;
      }
      if (slopes != nullptr) slope.store(slopes + i);
    }
    loss.store(lanes->loss[l]), square.store(lanes->square[l]);
    entropy.store(lanes->entropy[l]), margin.store(lanes->margin[l]);
    if constexpr (kWeighted) counted.store(lanes->counted[l]);
    *least_of_rows = least;
  }
};

// Adds some labels' sums to those of the rows, in double, so that long rows are as exact as short
// ones.
template <class A>
struct SumLabels {
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const LabelLanes<A>* lanes, bool weighted, BinaryTotals* total) {
    const auto add = [](auto* a, const auto& b) __attribute__((always_inline)) { *a += b; };
    const auto lower = [](auto* a, const auto& b)
                           __attribute__((always_inline)) { *a = b < *a ? b : *a; };
    A loss[kLanes], square[kLanes], entropy[kLanes], margin[kLanes], counted[kLanes];
    join_rows<A, kBytes>(lanes->loss, add, loss);
    join_rows<A, kBytes>(lanes->square, add, square);
    join_rows<A, kBytes>(lanes->entropy, add, entropy);
    join_rows<A, kBytes>(lanes->margin, lower, margin);
    if (weighted) {
      join_rows<A, kBytes>(lanes->counted, add, counted);
    } else {
      std::fill(counted, counted + kLanes, A{1});
    }
    for (int l = 0; l < kLanes; l++) {
      total->loss[l] += static_cast<double>(loss[l]);
      total->squares[l] += static_cast<double>(square[l]);
      total->entropy[l] += static_cast<double>(entropy[l]);
      // Plus 0: which of two zeros of different signs was kept depends on the place of the row.
      total->margin[l] = std::min(total->margin[l], static_cast<double>(margin[l]) + 0);
      total->counted[l] += static_cast<double>(counted[l]);
    }
  }
};

// The results of rows from their sums; 0 of a row that counts for nothing.
template <class A>
struct FinishBinaryRows {
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const BinaryTotals* total, int64_t labels,
                                  BinaryResults<A>* out) {
    for (int l = 0; l < kLanes; l++) {
      const BinarySums<A> sums{static_cast<A>(total->loss[l]),
                               static_cast<A>(total->squares[l]),
                               static_cast<A>(total->entropy[l]),
                               static_cast<A>(total->margin[l]),
                               0,
                               true};
      const RowResult<A> result = finish_binary_row(sums, labels);
      const bool counts = total->counted[l] != 0;
      out->loss[l] = counts ? result.nll : 0;
      out->el2n[l] = counts ? result.el2n : 0;
      out->entropy[l] = counts ? result.entropy : 0;
      out->margin[l] = counts ? result.margin : 0;
      out->counts[l] = counts;
    }
  }
};

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
