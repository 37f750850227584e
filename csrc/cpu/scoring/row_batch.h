// SPDX-License-Identifier: Apache-2.0
// The rows of a range, in groups of kLanes. Scoring keeps the exponentials, and the gradient is
// made of these without a second look at the logits; but see long_columns.h.
#pragma once

#include "cpu/parallel.h"
#include "cpu/scoring/long_columns.h"
#include "cpu/scoring/row_targets.h"

namespace dynprune {
namespace cpu {

constexpr int64_t kMinLogitsPerTask = 8192;

inline int row_tasks(const CrossEntropyInput& in, const Parallel& parallel) {
  const int64_t classes = in.num_classes < 1 ? 1 : in.num_classes;
  const int64_t rows = kMinLogitsPerTask / classes;
  return num_tasks(parallel, in.batch_size, rows < 1 ? 1 : rows);
}

// W = sum_c w_c.
template <class A>
DYNPRUNE_CLONES A sum_of_weights(const A* weight, int64_t classes) {
  if (weight == nullptr) return static_cast<A>(classes);
  double sums[kLanes] = {}, sum = 0;
  int64_t c = 0;
  for (; c + kLanes <= classes; c += kLanes) {
    for (int l = 0; l < kLanes; l++) sums[l] += weight[c + l];
  }
  for (; c < classes; c++) sums[c % kLanes] += weight[c];
  for (int l = 0; l < kLanes; l++) sum += sums[l];
  return static_cast<A>(sum);
}

// sum_c w_c (x_c - x_y).
template <class T>
DYNPRUNE_CLONES compute_t<T> sum_distances(const T* x, int64_t classes, const compute_t<T>* weight,
                                           compute_t<T> x_y) {
  using A = compute_t<T>;
  A distances[kLanes] = {}, sum = 0;
  int64_t c = 0;
  for (; c + kLanes <= classes; c += kLanes) {
    for (int l = 0; l < kLanes; l++) {
      const A w = weight != nullptr ? weight[c + l] : A{1};
      distances[l] += w * (widen(x[c + l]) - x_y);
    }
  }
  for (; c < classes; c++) {
    const A w = weight != nullptr ? weight[c] : A{1};
    distances[c % kLanes] += w * (widen(x[c]) - x_y);
  }
  for (int l = 0; l < kLanes; l++) sum += distances[l];
  return sum;
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
  A* kept;                      // exponentials; null for long columns
  RowLanes<A>* lanes;
  A* loss;      // [kLanes]
  A* distance;  // [kLanes] sum_c w_c (x_c - x_y), with label smoothing
  A* scale;     // [kLanes], what the gradients of the losses are multiplied with
  GradientLanes<A>* gradient;
};

template <class T>
class RowBatch {
 public:
  using A = compute_t<T>;
  using Group = RowGroup<A>;

  RowBatch(const CrossEntropyInput& in, const CrossEntropyOutput& out, T* grad_logits)
      : in_(in), options_(in), out_(out), grad_(grad_logits), classes_(in.num_classes) {
    padded_ = round_up_to_lanes(classes_);
    smooth_ = options_.label_smoothing > 0;
    plain_ = in.class_weight == nullptr && !smooth_ && in.second_target.data == nullptr;
    sum_weight_ = smooth_ ? sum_of_weights(options_.class_weight, classes_) : A{0};
    long_columns_ = in.in_columns() && classes_ > kChunk;
    transposed_ = !long_columns_ && (classes_ <= kShortClasses || in.in_columns());
    capacity_ = long_columns_                       ? kMostRows
                : classes_ <= kShortClasses         ? kMostShortRows
                : transposed_ || classes_ <= kChunk ? kLanes
                                                    : 1;
    kept_per_group_ = transposed_ ? classes_ * kLanes : padded_ * std::min(capacity_, kLanes);
    if (!long_columns_ && (transposed_ || grad_ != nullptr || capacity_ > 1)) {
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
  static constexpr int kMostShortRows = 4 * kLanes;
  // Long columns are read in runs of so many rows.
  static constexpr int kMostGroups = 8, kMostRows = kMostGroups * kLanes;

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
            distance_ + first,
            scale_ + first,
            gradient_ + group};
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
                                                             r.miss[l], sum_weight_};
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
    const ClassDistances<A> distances{smooth_ ? group.distance : nullptr, options_.class_weight};
    if (in_.in_columns()) {
      run_widest<ScoreColumns<T>>(&x[0], in_.class_stride, group.first_target, group.count,
                                  classes_, distances, group.lanes, group.kept);
      return;
    }
    if (transposed_) {
      run_widest<ScoreShortRows<T>>(&x[0], group.first_target, classes, distances, group.lanes,
                                    group.kept);
      return;
    }
    for (int l = 0; l < group.count; l++) {
      const A x_y = widen(x[l][group.first_target[l]]);
      group.lanes->x_y[l] = x_y;
      if (smooth_) {
        group.distance[l] = sum_distances(x[l], classes_, options_.class_weight, x_y);
      }
    }
    if (classes_ <= kChunk) {
      run_widest<ScoreMediumRows<T>>(&x[0], group.first_target, group.count, classes,
                                     static_cast<int>(padded_), group.lanes, group.kept);
    } else {
      A* kept = grad_ != nullptr ? group.kept : nullptr;
      group.lanes->set_stats(0, long_row_stats(x[0], classes_, group.first_target[0], kept));
    }
  }

  // Pointers to the first class of all rows, in whole groups.
  ColumnGroups<T> column_groups(const T** x) const {
    for (int i = 0; i < round_up_to_lanes(count_); i++) x[i] = logits(row_[i < count_ ? i : 0]);
    return {x, in_.class_stride, classes_, count_};
  }
  void score_long_columns() {
    const T* x[kMostRows];
    A* distance = smooth_ ? distance_ : nullptr;
    run_widest<ScoreLongColumns<T>>(column_groups(x), &first_[0], options_.class_weight, distance,
                                    &lanes_[0]);
  }
  void write_long_columns() {
    const T* x[kMostRows];
    T* out[kMostRows];
    for (int i = 0; i < count_; i++) out[i] = gradient(row_[i]);
    run_widest<WriteLongColumnGradients<T>>(column_groups(x), &lanes_[0], &gradient_[0], &scale_[0],
                                            options_.class_weight, &out[0],
                                            in_.gradient_class_stride());
  }

  // In several loops over the groups: a step of one group overlaps the same step of the next. No
  // vector is loaded right after its parts are stored.
  template <class OnRows>
  void finish(const OnRows& on_rows) {
    const auto for_each_group = [&](const auto& f) {
      for (int first = 0; first < count_; first += kLanes) f(group_from(first));
    };
    if (long_columns_) {
      score_long_columns();
    } else {
      for_each_group([&](const Group& group) { score(group); });
    }
    for_each_group(
        [&](const Group& group) { run_widest<FinishRows<A>>(group.lanes, group.count); });
    for_each_group([&](const Group& group) {
      if (!plain_) weigh_losses(group);
      write(group);
      on_rows(group);
      if (grad_ != nullptr) plan_gradients(group);
    });
    if (long_columns_ && grad_ != nullptr) write_long_columns();
    for_each_group([&](const Group& group) {
      if (grad_ != nullptr) write_gradients(group);
    });
    count_ = 0;
  }

  // Logit of the second target of a group's row.
  A second_logit(const Group& group, int l) const {
    return widen(logits(group.row[l])[group.target[l].second * in_.class_stride]);
  }

  void weigh_losses(const Group& group) {
    for (int l = 0; l < group.count; l++) {
      const A x_second = group.target[l].second >= 0 ? second_logit(group, l) : A{0};
      group.loss[l] = row_loss(options_, group.target[l], group.lanes->result(l), x_second,
                               classes_, sum_weight_, group.distance[l]);
    }
  }

  RowGradient<A> gradient_of(const Group& group, int l) const {
    const RowLanes<A>& r = *group.lanes;
    const SavedRow<A> saved{r.max[l], r.log_normaliser[l], r.miss[l], sum_weight_};
    return RowGradient<A>(options_, saved, group.target[l], classes_, group.scale[l]);
  }

  // A plain gradient is scale (p_j - [j = y]).
  void plan_gradients(const Group& group) {
    const RowLanes<A>& r = *group.lanes;
    GradientLanes<A>* g = group.gradient;
    if (plain_) {
      for (int l = 0; l < kLanes; l++) {
        g->factor[l] = group.scale[l] * r.share[l];
        g->at_target[l] = -group.scale[l] * r.miss[l];
      }
      return;
    }
    g->smooth = smooth_;
    for (int l = 0; l < group.count; l++) {
      const RowGradient<A> slopes = gradient_of(group, l);
      g->factor[l] = slopes.softmax_weight() * r.share[l];
      g->at_target[l] = slopes.at_first();
      g->uniform[l] = slopes.uniform_weight;
    }
  }

  void write_gradients(const Group& group) {
    T* out[kLanes];
    for (int l = 0; l < group.count; l++) out[l] = gradient(group.row[l]);
    const int64_t stride = in_.gradient_class_stride();
    const GradientLanes<A>* g = group.gradient;
    const A* weight = options_.class_weight;
    if (transposed_ && !in_.in_columns()) {
      run_widest<WriteShortGradients<T>>(group.kept, static_cast<int>(classes_), group.count,
                                         group.first_target, g, weight, &out[0]);
    } else {
      if (transposed_) {
        run_widest<WriteColumnGradients<T>>(group.kept, classes_, group.count, g, weight, &out[0],
                                            stride);
      } else if (!long_columns_) {  // whose gradients are there
        run_widest<WriteGradients<T>>(group.kept, padded_, classes_, group.count, g, weight,
                                      &out[0]);
      }
      for (int l = 0; l < group.count; l++) {
        out[l][group.first_target[l] * stride] = narrow<T>(g->at_target[l]);
      }
    }
    if (in_.second_target.data != nullptr) write_second_targets(group, &out[0]);
    // A weight of 0 stands for no gradient, also of a broken row.
    if (!has_zeros(group.scale)) return;
    for (int l = 0; l < group.count; l++) {
      if (group.scale[l] != 0) continue;
      if (!long_columns_) {
        write_zeros(group.row[l]);
        continue;
      }
      out[l][group.first_target[l] * stride] = narrow<T>(A{0});
      const int64_t second = plain_ ? -1 : group.target[l].second;
      if (second >= 0) out[l][second * stride] = narrow<T>(A{0});
    }
  }

  void write_second_targets(const Group& group, T* const* out) const {
    const int64_t stride = in_.gradient_class_stride();
    for (int l = 0; l < group.count; l++) {
      const int64_t second = group.target[l].second;
      if (second < 0) continue;
      const A x = second_logit(group, l);
      out[l][second * stride] = narrow<T>(gradient_of(group, l).at_second(x));
    }
  }

  const CrossEntropyInput& in_;
  const LossOptions<A> options_;
  const CrossEntropyOutput& out_;
  T* grad_;
  int64_t classes_, padded_;
  A sum_weight_;     // of the classes; 0 without label smoothing
  bool smooth_;      // label smoothing
  bool plain_;       // no class weights, no label smoothing, no second targets
  bool transposed_;  // a lane holds a row, and its exponentials are kept
  bool long_columns_;
  int capacity_;   // rows that are finished together: one if it fills the cache by itself
  int count_ = 0;  // of them so far
  int64_t row_[kMostRows];
  int64_t first_[kMostRows] = {};   // target; anything in lanes without a row
  RowTarget<A> target_[kMostRows];  // unless plain_
  RowLanes<A> lanes_[kMostGroups] = {};
  A loss_[kMostRows], distance_[kMostRows] = {}, scale_[kMostRows] = {};
  GradientLanes<A> gradient_[kMostGroups] = {};
  int64_t kept_per_group_;
  // Exponentials of each group: [classes][kLanes] if transposed_, else [kLanes][padded classes].
  std::vector<A> kept_;
};

}  // namespace cpu
}  // namespace dynprune
