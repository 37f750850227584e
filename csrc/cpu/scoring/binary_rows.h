// SPDX-License-Identifier: Apache-2.0
// Rows of binary labels in vector code: a chunk of labels that stays in the first cache, kLanes of
// them at a time, whose sums are kept in independent lanes. A last group that is not full is filled
// with labels of weight 0.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scoring/lanes.h"
#include "shared/binary_row.h"

namespace dynprune {
namespace cpu {

constexpr int kLabelChunk = 512;
constexpr int64_t kMinLabelsPerTask = 8192;

// A chunk's labels, [count] each, count a multiple of kLanes. slope: out, or null.
template <class A>
struct LabelChunk {
  const A *x, *t, *weight, *pos_weight;
  int count;
  A scale;  // of the slopes; with 0 all of them are 0, also of a broken row
  A* slope;
};

// e^-|x| and what follows of it, in every lane. What would be subnormal is 0.
template <class A, int kBytes>
DYNPRUNE_INLINE void set_decay_terms(const typename Lanes<A, kBytes>::Vector& x,
                                     DecayTerms<typename Lanes<A, kBytes>::Vector>* terms) {
  using Vector = typename Lanes<A, kBytes>::Vector;
  if constexpr (sizeof(A) == sizeof(float)) {
    const Vector zero{}, least = zero + kLeastExponent<float>, below = x > zero ? -x : x;
    const Vector in_range = least > below ? least : below;  // NaN stays
    Vector e{};
    exp_for_sums<typename VectorOf<float, kBytes>::bits>(in_range, &e);
    e = in_range <= least ? zero : e;
    set_float_terms(e, terms);
  } else {
    Vector e{}, log1p_e{};
    for (int l = 0; l < Lanes<A, kBytes>::kPerVector; l++) {
      e[l] = exp(x[l] > 0 ? -x[l] : x[l]);
      log1p_e[l] = log1p(e[l]);
    }
    *terms = {e, log1p_e, 1 / (1 + e)};
  }
}

// The sums of a chunk. kWeighted: both weights are given; else all labels count.
template <class A, bool kWeighted>
struct AddLabels {
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const LabelChunk<A>* chunk, BinarySums<A>* sums) {
    using L = Lanes<A, kBytes>;
    using Vector = typename L::Vector;
    const LabelChunk<A> c = *chunk;
    L loss, square, entropy, against, outside, count;  // against: the greatest -margin
    loss.fill(0), square.fill(0), entropy.fill(0), outside.fill(0), count.fill(0);
    against.fill(-Limits<A>::infinity());
    const Vector zero{}, one = zero + 1, nothing = zero - Limits<A>::infinity();
    const Vector scale = zero + c.scale;
    for (int i = 0; i < c.count; i += kLanes) {
      L x, t, weight, pos_weight, slope;
      x.load(c.x + i), t.load(c.t + i);
      weight.fill(1), pos_weight.fill(1);
      if constexpr (kWeighted) weight.load(c.weight + i), pos_weight.load(c.pos_weight + i);
      for (int w = 0; w < L::kVectors; w++) {
        if constexpr (kWeighted) {
          const auto skipped = weight.v[w] == zero;
          x.v[w] = skipped ? nothing : x.v[w];
          t.v[w] = skipped ? zero : t.v[w];
          count.v[w] += skipped ? zero : one;
        }
        DecayTerms<Vector> decay{};
        set_decay_terms<A, kBytes>(x.v[w], &decay);
        const BinaryTerms<A, Vector> terms(x.v[w], t.v[w], decay, weight.v[w], pos_weight.v[w]);
        loss.v[w] += terms.loss;
        square.v[w] += terms.square;
        entropy.v[w] += terms.entropy;
        against.v[w] = -terms.margin > against.v[w] ? -terms.margin : against.v[w];
        // Not by two comparisons: the compiler takes what joins them lane by lane.
        const Vector at_least_0 = t.v[w] < zero ? zero : t.v[w];
        const Vector in_range = at_least_0 > one ? one : at_least_0;
        outside.v[w] = in_range == t.v[w] ? outside.v[w] : t.v[w];
        slope.v[w] = scale != zero ? scale * terms.slope : zero;
      }
      if (c.slope != nullptr) slope.store(c.slope + i);
    }
    *sums = {loss.sum(), square.sum(), entropy.sum(), -against.greatest(), 0, true};
    if constexpr (kWeighted) sums->counts = count.sum() != 0;
    L wrong;  // how many
    for (int w = 0; w < L::kVectors; w++) wrong.v[w] = outside.v[w] == zero ? zero : one;
    if (wrong.sum() == 0) return;
    A found[kLanes];
    outside.store(found);
    for (int l = 0; l < kLanes; l++) sums->outside = found[l] == 0 ? sums->outside : found[l];
  }
};

// The rows of one task, one after another.
template <class T>
class BinaryRows {
 public:
  using A = compute_t<T>;

  // grad_logits: [B, L], or null.
  BinaryRows(const BinaryInput& in, T* grad_logits) : in_(in), grad_(grad_logits) {}

  // Writes the gradient of the row's loss times `scale`, and returns the row's sums. Chunks are
  // added in double, so that long rows are as exact as short ones.
  BinarySums<A> run(int64_t row, A scale) {
    BinarySums<double> total = BinarySums<double>::none();
    scale /= static_cast<A>(in_.num_labels);
    for (int64_t first = 0; first < in_.num_labels; first += kLabelChunk) {
      total.merge(add_chunk(row, first, scale));
    }
    return {static_cast<A>(total.loss),    static_cast<A>(total.squares),
            static_cast<A>(total.entropy), static_cast<A>(total.margin),
            static_cast<A>(total.outside), total.counts};
  }

 private:
  BinarySums<double> add_chunk(int64_t row, int64_t first, A scale) {
    const int labels = static_cast<int>(std::min<int64_t>(kLabelChunk, in_.num_labels - first));
    const int count = (labels + kLanes - 1) / kLanes * kLanes;
    T* out = grad_ != nullptr ? grad_ + row * in_.num_labels + first : nullptr;
    const bool weighted = in_.label_weight != nullptr || in_.pos_weight != nullptr;
    LabelChunk<A> chunk{};
    chunk.x = logits(row, first, labels, count);
    chunk.t = target(row, first, labels, count);
    chunk.count = count;
    chunk.scale = scale;
    if constexpr (std::is_same<T, A>::value) {
      if (count == labels) chunk.slope = out;
    }
    if (out != nullptr && chunk.slope == nullptr) chunk.slope = slope_;
    BinarySums<A> sums;
    if (weighted) {
      const int64_t offset = row * in_.label_weight_stride + first;
      chunk.weight = weights(in_.label_weight, offset, labels, count, weight_);
      chunk.pos_weight = weights(in_.pos_weight, first, labels, count, pos_weight_);
      run_widest<AddLabels<A, true>>(static_cast<const LabelChunk<A>*>(&chunk), &sums);
    } else {
      run_widest<AddLabels<A, false>>(static_cast<const LabelChunk<A>*>(&chunk), &sums);
    }
    if (chunk.slope == slope_) {
      for (int i = 0; i < labels; i++) out[i] = narrow<T>(slope_[i]);
    }
    return {sums.loss, sums.squares, sums.entropy, sums.margin, sums.outside, sums.counts};
  }

  // Behind the last label lies one that adds nothing: x = -infinity, t = 0, and a weight of 0.

  const A* logits(int64_t row, int64_t first, int labels, int count) {
    const T* from = static_cast<const T*>(in_.logits) + row * in_.row_stride + first;
    if constexpr (std::is_same<T, A>::value) {
      if (count == labels) return from;
    }
    for (int i = 0; i < labels; i++) x_[i] = widen(from[i]);
    std::fill(x_ + labels, x_ + count, -Limits<A>::infinity());
    return x_;
  }

  // Ones where none are given.
  static const A* weights(const void* given, int64_t offset, int labels, int count, A* to) {
    if (given == nullptr) {
      std::fill(to, to + labels, A{1});
    } else {
      const A* from = static_cast<const A*>(given) + offset;
      if (count == labels) return from;
      std::copy(from, from + labels, to);
    }
    std::fill(to + labels, to + count, A{0});
    return to;
  }

  const A* target(int64_t row, int64_t first, int labels, int count) {
    const int64_t offset = row * in_.target_stride + first;
    const auto widened = [&](auto tag) -> const A* {
      using S = decltype(tag);
      const S* from = static_cast<const S*>(in_.target) + offset;
      if constexpr (std::is_same<S, A>::value) {
        if (count == labels) return from;
      }
      for (int i = 0; i < labels; i++) t_[i] = static_cast<A>(widen(from[i]));
      std::fill(t_ + labels, t_ + count, A{0});
      return t_;
    };
    if (in_.target_type != LabelType::kBool) {
      return dispatch(static_cast<ScalarType>(in_.target_type), widened);
    }
    return widened(uint8_t{});
  }

  const BinaryInput& in_;
  T* grad_;
  A x_[kLabelChunk], t_[kLabelChunk], slope_[kLabelChunk];
  A weight_[kLabelChunk], pos_weight_[kLabelChunk];
};

// Calls on_row(row, sums) for all rows, in tasks. Returns the first row with a target that is no
// probability. scale(row): what the gradient of the row's loss is multiplied with.
template <class T, class Scale, class OnRow>
DataStatus for_each_binary_row(const BinaryInput& in, T* grad_logits, const Parallel& parallel,
                               const Scale& scale, const OnRow& on_row) {
  const int64_t rows = kMinLabelsPerTask / std::max<int64_t>(in.num_labels, 1);
  const int tasks = num_tasks(parallel, in.batch_size, std::max<int64_t>(rows, 1));
  std::vector<DataStatus> found(tasks);
  for_each_range(parallel, in.batch_size, tasks, [&](int task, Range range) {
    BinaryRows<T> labels(in, grad_logits);
    for (int64_t row = range.begin; row < range.end && found[task].ok; row++) {
      const auto sums = labels.run(row, scale(row));
      if (sums.kind() == RowKind::kOutOfRange) {
        const double outside = sums.outside;
        found[task] = {false, DataError::kProbability, row, bit_cast<int64_t>(outside)};
      }
      on_row(row, sums);
    }
  });
  for (const DataStatus& status : found) {
    if (!status.ok) return status;
  }
  return DataStatus{};
}

}  // namespace cpu
}  // namespace dynprune
