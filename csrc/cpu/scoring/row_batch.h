// SPDX-License-Identifier: Apache-2.0
// The rows of a range, kLanes at a time. Scoring keeps the exponentials, and the gradient is made
// of these without a second look at the logits.
#pragma once

#include "cpu/parallel.h"
#include "cpu/scoring/score_rows.h"
#include "shared/error_flags.h"

namespace dynprune {
namespace cpu {

constexpr int64_t kMinLogitsPerTask = 8192;

inline int row_tasks(const CrossEntropyInput& in, const Parallel& parallel) {
  const int64_t classes = in.num_classes < 1 ? 1 : in.num_classes;
  const int64_t rows = kMinLogitsPerTask / classes;
  return num_tasks(parallel, in.batch_size, rows < 1 ? 1 : rows);
}

// The first row whose target is out of range.
inline DataStatus check_targets(const CrossEntropyInput& in) {
  for (int64_t row = 0; row < in.batch_size; row++) {
    const TargetPair y = targets_of_row(in, row);
    if (y.kind == RowKind::kOutOfRange) return {false, DataError::kTarget, row, y.offender};
  }
  return DataStatus{};
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

template <class T>
class RowBatch {
 public:
  using A = compute_t<T>;

  RowBatch(const CrossEntropyInput& in, const CrossEntropyOutput& out, T* grad_logits)
      : in_(in), options_(in), out_(out), grad_(grad_logits), classes_(in.num_classes) {
    padded_ = round_up_to_lanes(classes_);
    plain_ =
        in.class_weight == nullptr && in.label_smoothing == 0 && in.second_target.data == nullptr;
    transposed_ = classes_ <= kShortClasses || in.in_columns();
    group_ = transposed_ || classes_ <= kChunk ? kLanes : 1;
    if (transposed_) {
      kept_.resize(classes_ * kLanes);
    } else if (grad_ != nullptr || group_ > 1) {
      kept_.resize(padded_ * group_);
    }
  }

  // scale(row): what the gradient of the row's loss is multiplied with.
  // on_rows(row, count, lanes, loss): called for each group of scored rows, [count] each.
  template <class Scale, class OnRows>
  void run(Range rows, const Scale& scale, const OnRows& on_rows) {
    for (int64_t row = rows.begin; row < rows.end; row++) {
      const TargetPair y = targets_of_row(in_, row);
      if (y.kind != RowKind::kScored) {
        write_nothing(row);
        if (grad_ != nullptr) write_zeros(row);
        continue;
      }
      row_[count_] = row;
      first_[count_] = y.first;
      if (!plain_) target_[count_] = RowTarget<A>(in_, row);
      if (++count_ == group_) finish(scale, on_rows);
    }
    if (count_ > 0) finish(scale, on_rows);
  }

 private:
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

  void write(const A* loss, const A* sum_weight) const {
    const int64_t first = row_[0];
    const bool neighbours = count_ == kLanes && row_[kLanes - 1] - first == kLanes - 1;
    const auto put = [&](void* out, const A* from) {
      A* to = static_cast<A*>(out);
      if (neighbours) {
        memcpy(to + first, from, kLanes * sizeof(A));
      } else {
        for (int l = 0; l < count_; l++) to[row_[l]] = from[l];
      }
    };
    put(out_.loss, loss);
    put(out_.el2n, lanes_.el2n);
    put(out_.entropy, lanes_.entropy);
    put(out_.margin, lanes_.margin);
    for (int l = 0; l < count_; l++) out_.correct[row_[l]] = lanes_.margin[l] > 0;
    if (out_.saved == nullptr) return;
    for (int l = 0; l < count_; l++) {
      static_cast<SavedRow<A>*>(out_.saved)[row_[l]] = {lanes_.max[l], lanes_.log_normaliser[l],
                                                        lanes_.miss[l], sum_weight[l]};
    }
  }

  void score() {
    const T* x[kLanes];
    for (int l = 0; l < kLanes; l++) {
      const int lane = l < count_ ? l : 0;
      x[l] = logits(row_[lane]);
      lanes_.x_y[l] = widen(x[l][first_[lane] * in_.class_stride]);
    }
    const int classes = static_cast<int>(std::min<int64_t>(classes_, kChunk));
    if (in_.in_columns()) {
      run_widest<ScoreColumns<T>>(&x[0], in_.class_stride, &first_[0], count_, classes_, &lanes_,
                                  kept_.data());
    } else if (transposed_) {
      run_widest<ScoreShortRows<T>>(&x[0], &first_[0], count_, classes, &lanes_, kept_.data());
    } else if (classes_ <= kChunk) {
      run_widest<ScoreMediumRows<T>>(&x[0], &first_[0], count_, classes, static_cast<int>(padded_),
                                     &lanes_, kept_.data());
    } else {
      A* kept = grad_ != nullptr ? kept_.data() : nullptr;
      lanes_.set_stats(0, long_row_stats(x[0], classes_, first_[0], kept));
      finish_rows(&lanes_, count_);
    }
  }

  A* kept_of(int lane) { return kept_.data() + lane * padded_; }

  template <class Scale, class OnRows>
  void finish(const Scale& scale, const OnRows& on_rows) {
    score();
    A losses[kLanes], sum_weight[kLanes] = {};
    if (!plain_) {
      for (int l = 0; l < count_; l++) losses[l] = loss_of(l, &sum_weight[l]);
    }
    const A* loss = plain_ ? lanes_.nll : losses;
    write(loss, sum_weight);
    on_rows(row_, count_, lanes_, loss);
    if (grad_ != nullptr && plain_) {
      write_plain_gradients(scale);
    } else if (grad_ != nullptr) {
      for (int l = 0; l < count_; l++) write_gradient(l, sum_weight[l], scale(row_[l]));
    }
    count_ = 0;
  }

  A loss_of(int l, A* sum_weight) const {
    const T* x = logits(row_[l]);
    const RowTarget<A>& y = target_[l];
    A sum_distance = 0;
    if (options_.label_smoothing > 0) {
      weigh_classes(x, in_.class_stride, classes_, options_.class_weight, lanes_.x_y[l], sum_weight,
                    &sum_distance);
    }
    const A x_second = y.second >= 0 ? static_cast<A>(widen(x[y.second * in_.class_stride])) : A{0};
    return row_loss(options_, y, lanes_.result(l), x_second, classes_, *sum_weight, sum_distance);
  }

  // The gradient is scale (p_j - [j = y]), as write_gradient has it, without its options.
  template <class Scale>
  void write_plain_gradients(const Scale& scale) {
    A factor[kLanes] = {}, row_scale[kLanes];
    T* out[kLanes];
    for (int l = 0; l < count_; l++) {
      out[l] = gradient(row_[l]);
      row_scale[l] = scale(row_[l]);
      factor[l] = row_scale[l] * lanes_.share[l];
    }
    const int64_t stride = in_.gradient_class_stride();
    if (in_.in_columns()) {
      run_widest<ScaleColumns<T>>(kept_.data(), classes_, count_, &factor[0], &out[0], stride);
    } else if (transposed_) {
      run_widest<ScaleShortRows<T>>(kept_.data(), static_cast<int>(classes_), count_, &factor[0],
                                    &out[0]);
    } else {
      run_widest<ScaleRows<T>>(kept_.data(), padded_, classes_, count_, &factor[0], &out[0]);
    }
    for (int l = 0; l < count_; l++) {
      // A weight of 0 stands for no gradient, also of a broken row.
      if (row_scale[l] == 0)
        write_zeros(row_[l]);
      else
        out[l][first_[l] * stride] = narrow<T>(-row_scale[l] * lanes_.miss[l]);
    }
  }

  void write_gradient(int l, A sum_weight, A scale) {
    const int64_t row = row_[l];
    const RowTarget<A>& y = target_[l];
    const SavedRow<A> saved{lanes_.max[l], lanes_.log_normaliser[l], lanes_.miss[l], sum_weight};
    if (scale == 0) {
      write_zeros(row);
      return;
    }
    T* out = gradient(row);
    const int64_t stride = in_.gradient_class_stride();
    const RowGradient<A> slopes(options_, saved, y, classes_, scale);
    const A factor = slopes.softmax_weight() * lanes_.share[l];
    const bool even = slopes.uniform_weight == 0 || options_.class_weight == nullptr;
    const A minus = even ? slopes.uniform_at(0) : A{0};
    if (transposed_) {
      for (int64_t c = 0; c < classes_; c++) {
        out[c * stride] =
            narrow<T>(kept_[c * kLanes + l] * factor - (even ? minus : slopes.uniform_at(c)));
      }
    } else if (even) {
      scale_into(kept_of(l), classes_, factor, minus, out);
    } else {
      const A* e = kept_of(l);
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
  int group_;        // rows that are finished together: one if it fills the cache by itself
  int count_ = 0;    // in the group so far
  int64_t row_[kLanes];
  int64_t first_[kLanes] = {};   // target; some class in lanes without a row
  RowTarget<A> target_[kLanes];  // unless plain_
  RowLanes<A> lanes_{};
  // Exponentials: [classes][kLanes] if transposed_, else [group][padded classes].
  std::vector<A> kept_;
};

}  // namespace cpu
}  // namespace dynprune
