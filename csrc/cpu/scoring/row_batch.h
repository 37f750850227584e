// SPDX-License-Identifier: Apache-2.0
// The rows of a range, in groups of kLanes. Scoring keeps the exponentials, and the gradient is
// made of these without a second look at the logits.
#pragma once

#include "cpu/parallel.h"
#include "cpu/scoring/row_targets.h"
#include "cpu/scoring/short_rows.h"

namespace dynprune {
namespace cpu {

constexpr int64_t kMinLogitsPerTask = 8192;

inline int row_tasks(const CrossEntropyInput& in, const Parallel& parallel) {
  const int64_t classes = in.num_classes < 1 ? 1 : in.num_classes;
  const int64_t rows = kMinLogitsPerTask / classes;
  return num_tasks(parallel, in.batch_size, rows < 1 ? 1 : rows);
}

template <class T>
DYNPRUNE_CLONES void scale_into(const compute_t<T>* e, int64_t classes, compute_t<T> factor,
                                compute_t<T> minus, T* out) {
  for (int64_t c = 0; c < classes; c++) out[c] = narrow<T>(e[c] * factor - minus);
}

// sum_weight = sum_j w_j, sum_distance = sum_j w_j (x_j - x_y).
template <class T>
DYNPRUNE_CLONES void weigh_classes(const T* x, int64_t stride, int64_t classes,
                                   const compute_t<T>* weight, compute_t<T> x_y,
                                   compute_t<T>* sum_weight, compute_t<T>* sum_distance) {
  using A = compute_t<T>;
  A weights[kLanes] = {}, distances[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= classes && stride == 1; c += kLanes) {
    for (int l = 0; l < kLanes; l++) {
      const A w = weight != nullptr ? weight[c + l] : A{1};
      weights[l] += w;
      distances[l] += w * (widen(x[c + l]) - x_y);
    }
  }
  for (; c < classes; c++) {
    const A w = weight != nullptr ? weight[c] : A{1};
    weights[c % kLanes] += w;
    distances[c % kLanes] += w * (widen(x[c * stride]) - x_y);
  }
  for (int l = 0; l < kLanes; l++) *sum_weight += weights[l], *sum_distance += distances[l];
}

// Of kLanes rows: functions of their own, since the compiler makes no vectors of a short loop in
// another loop.
template <class A>
DYNPRUNE_CLONES void write_correct(const A* margin, bool* correct) {
  for (int l = 0; l < kLanes; l++) correct[l] = margin[l] > 0;
}
template <class A>
DYNPRUNE_CLONES bool has_zeros(const A* scale) {
  int32_t zeros = 0;
  for (int l = 0; l < kLanes; l++) zeros += scale[l] == 0;
  return zeros > 0;
}

// Rows that are scored together, one per lane.
template <class A>
struct RowGroup {
  int count;                    // kLanes at most
  bool consecutive;             // kLanes rows that follow each other
  const int64_t* row;           // [count]
  const int64_t* first_target;  // [kLanes]; anything in lanes without a row
  const RowTarget<A>* target;   // [count], or not set if RowBatch::plain_
  A* kept;                      // exponentials
  RowLanes<A>* lanes;
  A *loss, *sum_weight;  // [kLanes]
  A* scale;              // [kLanes], what the gradients of the losses are multiplied with
};

template <class T>
class RowBatch {
 public:
  using A = compute_t<T>;
  using Group = RowGroup<A>;

  RowBatch(const CrossEntropyInput& in, const CrossEntropyOutput& out, T* grad_logits)
      : in_(in), options_(in), out_(out), grad_(grad_logits), classes_(in.num_classes) {
    padded_ = round_up_to_lanes(classes_);
    plain_ =
        in.class_weight == nullptr && in.label_smoothing == 0 && in.second_target.data == nullptr;
    transposed_ = classes_ <= kShortClasses || in.in_columns();
    capacity_ = classes_ <= kShortClasses           ? kMostRows
                : transposed_ || classes_ <= kChunk ? kLanes
                                                    : 1;
    kept_per_group_ = transposed_ ? classes_ * kLanes : padded_ * std::min(capacity_, kLanes);
    if (transposed_ || grad_ != nullptr || capacity_ > 1) {
      kept_.resize(kept_per_group_ * (capacity_ > kLanes ? capacity_ / kLanes : 1));
    }
  }

  // on_rows(group): called for each group of scored rows. It sets group.scale[0 .. count) if there
  // is a gradient.
  template <class OnRows>
  void run(Range rows, const OnRows& on_rows) {
    for (int64_t row = rows.begin; row < rows.end;) {
      const int64_t end = std::min(row + kLanes, rows.end);
      if (add_plain_rows(row, end)) {
        row = end;
        if (count_ == capacity_) finish(on_rows);
      }
      for (; row < end; row++) {
        add_row(row);
        if (count_ == capacity_) finish(on_rows);
      }
    }
    if (count_ > 0) finish(on_rows);
  }

 private:
  // Groups of short rows that are scored together. finish_rows is one long chain of operations that
  // depend on each other; the processor overlaps the chains of several groups.
  static constexpr int kMostGroups = 4, kMostRows = kMostGroups * kLanes;

  // Adds kLanes rows at once, which is the usual case, or does nothing.
  bool add_plain_rows(int64_t row, int64_t end) {
    if (!plain_ || end - row < kLanes || count_ + kLanes > capacity_) return false;
    const bool scored = with_indices(in_.target, [&](const auto* target) {
      return copy_scored_targets(target + row, classes_, in_.ignore_index, first_ + count_);
    });
    if (!scored) return false;
    for (int l = 0; l < kLanes; l++) row_[count_ + l] = row + l;
    count_ += kLanes;
    return true;
  }

  void add_row(int64_t row) {
    const TargetPair y = targets_of_row(in_, row);
    if (y.kind != RowKind::kScored) {
      write_nothing(row);
      if (grad_ != nullptr) write_zeros(row);
      return;
    }
    row_[count_] = row;
    first_[count_] = y.first;
    if (!plain_) target_[count_] = RowTarget<A>(in_, row);
    count_++;
  }

  Group group_from(int first) {
    const int group = first / kLanes, count = std::min(count_ - first, kLanes);
    const int64_t* row = row_ + first;
    A* kept = kept_.empty() ? nullptr : kept_.data() + group * kept_per_group_;
    return {count,
            count == kLanes && row[kLanes - 1] - row[0] == kLanes - 1,
            row,
            first_ + first,
            target_ + first,
            kept,
            lanes_ + group,
            plain_ ? lanes_[group].nll : loss_ + first,
            sum_weight_ + first,
            scale_ + first};
  }

  const T* logits(int64_t row) const {
    return static_cast<const T*>(in_.logits) + in_.row_offset(row);
  }
  T* gradient(int64_t row) const { return grad_ + in_.gradient_offset(row); }

  void write_zeros(int64_t row) const {
    T* out = gradient(row);
    const int64_t stride = in_.gradient_class_stride();
    for (int64_t c = 0; c < classes_; c++) out[c * stride] = narrow<T>(A{0});
  }

  void write_nothing(int64_t row) const {
    for (void* out : {out_.loss, out_.el2n, out_.entropy, out_.margin}) {
      static_cast<A*>(out)[row] = 0;
    }
    out_.correct[row] = false;
    if (out_.saved != nullptr) static_cast<SavedRow<A>*>(out_.saved)[row] = {};
  }

  void write(const Group& group) const {
    const RowLanes<A>& r = *group.lanes;
    const auto put = [&](void* out, const A* from) {
      A* to = static_cast<A*>(out);
      if (group.consecutive) {
        memcpy(to + group.row[0], from, kLanes * sizeof(A));
      } else {
        for (int l = 0; l < group.count; l++) to[group.row[l]] = from[l];
      }
    };
    put(out_.loss, group.loss);
    put(out_.el2n, r.el2n);
    put(out_.entropy, r.entropy);
    put(out_.margin, r.margin);
    if (group.consecutive) {
      write_correct(r.margin, out_.correct + group.row[0]);
    } else {
      for (int l = 0; l < group.count; l++) out_.correct[group.row[l]] = r.margin[l] > 0;
    }
    if (out_.saved == nullptr) return;
    for (int l = 0; l < group.count; l++) {
      static_cast<SavedRow<A>*>(out_.saved)[group.row[l]] = {r.max[l], r.log_normaliser[l],
                                                             r.miss[l], group.sum_weight[l]};
    }
  }

  void score(const Group& group) {
    const T* x[kLanes];
    if (group.consecutive && in_.group_rows == in_.batch_size) {
      const T* first = logits(group.row[0]);
      for (int l = 0; l < kLanes; l++) x[l] = first + l * in_.row_stride;
    } else {
      for (int l = 0; l < kLanes; l++) x[l] = logits(group.row[l < group.count ? l : 0]);
    }
    const int classes = static_cast<int>(std::min<int64_t>(classes_, kChunk));
    if (in_.in_columns()) {
      run_widest<ScoreColumns<T>>(&x[0], in_.class_stride, group.first_target, group.count,
                                  classes_, group.lanes, group.kept);
      return;
    }
    if (transposed_) {
      run_widest<ScoreShortRows<T>>(&x[0], group.first_target, classes, group.lanes, group.kept);
      return;
    }
    for (int l = 0; l < group.count; l++) group.lanes->x_y[l] = widen(x[l][group.first_target[l]]);
    if (classes_ <= kChunk) {
      run_widest<ScoreMediumRows<T>>(&x[0], group.first_target, group.count, classes,
                                     static_cast<int>(padded_), group.lanes, group.kept);
    } else {
      A* kept = grad_ != nullptr ? group.kept : nullptr;
      group.lanes->set_stats(0, long_row_stats(x[0], classes_, group.first_target[0], kept));
    }
  }

  // In several loops over the groups: a step of one group overlaps the same step of the next. No
  // vector is loaded right after its parts are stored.
  template <class OnRows>
  void finish(const OnRows& on_rows) {
    const auto for_each_group = [&](const auto& f) {
      for (int first = 0; first < count_; first += kLanes) f(group_from(first));
    };
    for_each_group([&](const Group& group) { score(group); });
    for_each_group(
        [&](const Group& group) { run_widest<FinishRows<A>>(group.lanes, group.count); });
    for_each_group([&](const Group& group) {
      for (int l = 0; l < group.count && !plain_; l++) group.loss[l] = loss_of(group, l);
      write(group);
      on_rows(group);
    });
    for_each_group([&](const Group& group) {
      if (grad_ == nullptr) return;
      if (plain_) return write_plain_gradients(group);
      for (int l = 0; l < group.count; l++) write_gradient(group, l);
    });
    count_ = 0;
  }

  A loss_of(const Group& group, int l) const {
    const T* x = logits(group.row[l]);
    const RowTarget<A>& y = group.target[l];
    A sum_weight = 0, sum_distance = 0;
    if (options_.label_smoothing > 0) {
      weigh_classes(x, in_.class_stride, classes_, options_.class_weight, group.lanes->x_y[l],
                    &sum_weight, &sum_distance);
    }
    group.sum_weight[l] = sum_weight;
    const A x_second = y.second >= 0 ? static_cast<A>(widen(x[y.second * in_.class_stride])) : A{0};
    return row_loss(options_, y, group.lanes->result(l), x_second, classes_, sum_weight,
                    sum_distance);
  }

  // The gradient is scale (p_j - [j = y]), as write_gradient has it, without its options.
  void write_plain_gradients(const Group& group) {
    const RowLanes<A>& r = *group.lanes;
    T* out[kLanes];
    for (int l = 0; l < group.count; l++) out[l] = gradient(group.row[l]);
    if (transposed_ && !in_.in_columns()) {
      run_widest<ScaleShortRows<T>>(group.kept, static_cast<int>(classes_), group.count,
                                    group.first_target, group.lanes, group.scale, &out[0]);
    } else {
      const int64_t stride = in_.gradient_class_stride();
      A factor[kLanes];
      for (int l = 0; l < kLanes; l++) factor[l] = group.scale[l] * r.share[l];
      if (transposed_) {
        run_widest<ScaleColumns<T>>(group.kept, classes_, group.count, &factor[0], &out[0], stride);
      } else {
        run_widest<ScaleRows<T>>(group.kept, padded_, classes_, group.count, &factor[0], &out[0]);
      }
      for (int l = 0; l < group.count; l++) {
        out[l][group.first_target[l] * stride] = narrow<T>(-group.scale[l] * r.miss[l]);
      }
    }
    // A weight of 0 stands for no gradient, also of a broken row.
    if (!has_zeros(group.scale)) return;
    for (int l = 0; l < group.count; l++) {
      if (group.scale[l] == 0) write_zeros(group.row[l]);
    }
  }

  void write_gradient(const Group& group, int l) {
    const RowLanes<A>& r = *group.lanes;
    const A scale = group.scale[l];
    const int64_t row = group.row[l];
    const RowTarget<A>& y = group.target[l];
    const SavedRow<A> saved{r.max[l], r.log_normaliser[l], r.miss[l], group.sum_weight[l]};
    if (scale == 0) {
      write_zeros(row);
      return;
    }
    T* out = gradient(row);
    const int64_t stride = in_.gradient_class_stride();
    const RowGradient<A> slopes(options_, saved, y, classes_, scale);
    const A factor = slopes.softmax_weight() * r.share[l];
    const bool even = slopes.uniform_weight == 0 || options_.class_weight == nullptr;
    const A minus = even ? slopes.uniform_at(0) : A{0};
    if (transposed_) {
      const A* e = group.kept + l;
      for (int64_t c = 0; c < classes_; c++) {
        out[c * stride] = narrow<T>(e[c * kLanes] * factor - (even ? minus : slopes.uniform_at(c)));
      }
    } else if (even) {
      scale_into(group.kept + l * padded_, classes_, factor, minus, out);
    } else {
      const A* e = group.kept + l * padded_;
      for (int64_t c = 0; c < classes_; c++) {
        out[c] = narrow<T>(e[c] * factor - slopes.uniform_at(c));
      }
    }
    out[y.first * stride] = narrow<T>(slopes.at_first());
    if (y.second >= 0) {
      const A x = widen(logits(row)[y.second * in_.class_stride]);
      out[y.second * stride] = narrow<T>(slopes.at_second(x));
    }
  }

  const CrossEntropyInput& in_;
  const LossOptions<A> options_;
  const CrossEntropyOutput& out_;
  T* grad_;
  int64_t classes_, padded_;
  bool plain_;       // no class weights, no label smoothing, no second targets
  bool transposed_;  // a lane holds a row
  int capacity_;     // rows that are finished together: one if it fills the cache by itself
  int count_ = 0;    // of them so far
  int64_t row_[kMostRows];
  int64_t first_[kMostRows] = {};   // target; anything in lanes without a row
  RowTarget<A> target_[kMostRows];  // unless plain_
  RowLanes<A> lanes_[kMostGroups] = {};
  A loss_[kMostRows], sum_weight_[kMostRows] = {}, scale_[kMostRows] = {};
  int64_t kept_per_group_;
  // Exponentials of each group: [classes][kLanes] if transposed_, else [kLanes][padded classes].
  std::vector<A> kept_;
};

}  // namespace cpu
}  // namespace dynprune
