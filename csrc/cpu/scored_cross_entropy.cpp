// SPDX-License-Identifier: Apache-2.0
// A row at a time, in chunks that stay in the first cache: the chunk's maximum, then its sums in
// independent lanes, then one merge into the row's.
#include "cpu/scored_cross_entropy.h"

#include <algorithm>

#include "cpu/clones.h"
#include "cpu/vector_math.h"
#include "primitives/cross_entropy_row.h"

namespace dynprune {
namespace cpu {
namespace {

constexpr int64_t kMinLogitsPerTask = 8192;

int row_tasks(const CrossEntropyInput& in, const Parallel& parallel) {
  const int64_t classes = in.num_classes < 1 ? 1 : in.num_classes;
  const int64_t rows = kMinLogitsPerTask / classes;
  return num_tasks(parallel, in.batch_size, rows < 1 ? 1 : rows);
}

template <class A>
LossOptions<A> options_of(const CrossEntropyInput& in) {
  return {static_cast<const A*>(in.class_weight), static_cast<A>(in.label_smoothing),
          in.ignore_index};
}

template <class A>
struct Outputs {
  A *loss, *el2n, *entropy, *margin;
  bool* correct;
  SavedRow<A>* saved;

  void write(int64_t row, A row_loss, const RowResult<A>& r, A sum_weight) const {
    loss[row] = row_loss;
    el2n[row] = r.el2n;
    entropy[row] = r.entropy;
    margin[row] = r.margin;
    correct[row] = r.margin > 0;
    saved[row] = {r.max, r.log_normaliser, r.miss, sum_weight};
  }
};

constexpr int kChunk = 1024;
constexpr int kLanes = 16;

template <class T>
DYNPRUNE_CLONES void widen_chunk(const T* x, int count, compute_t<T>* out) {
  for (int i = 0; i < count; i++) out[i] = widen(x[i]);
}

// Sums in kLanes independent lanes, so that no addition waits for the one before; count is a
// multiple of kLanes.
template <class A>
DYNPRUNE_CLONES A sum_lanes(const A* x, int count) {
  A sums[kLanes] = {};
  for (int i = 0; i < count; i += kLanes) {
    for (int l = 0; l < kLanes; l++) sums[l] += x[i + l];
  }
  A sum = 0;
  for (int l = 0; l < kLanes; l++) sum += sums[l];
  return sum;
}

template <class A>
DYNPRUNE_CLONES A max_lanes(const A* x, int count) {
  A greatest[kLanes];
  for (int l = 0; l < kLanes; l++) greatest[l] = Limits<A>::lowest();
  for (int i = 0; i < count; i += kLanes) {
    for (int l = 0; l < kLanes; l++) greatest[l] = x[i + l] > greatest[l] ? x[i + l] : greatest[l];
  }
  A max = Limits<A>::lowest();
  for (int l = 0; l < kLanes; l++) max = greatest[l] > max ? greatest[l] : max;
  return max;
}

// The terms of s, q and t of each class, for a maximum m.
template <class A>
DYNPRUNE_CLONES void exponentials(const A* x, int count, A m, A* s, A* q, A* t) {
  constexpr A kNothing = -1000;  // e^x is 0 from here on; the product with x must be 0 too, not NaN
  for (int i = 0; i < count; i++) {
    const A below = x[i] - m;
    const A clamped = below < kNothing ? kNothing : below;
    const A e = exp_nonpositive(clamped);
    s[i] = e;
    q[i] = e * e;
    t[i] = e * clamped;
  }
}

// The statistics of a chunk whose length is a multiple of kLanes. -inf adds nothing.
template <class A>
RowStats<A> chunk_stats(const A* x, int count) {
  A s[kChunk], q[kChunk], t[kChunk];
  const A m = max_lanes(x, count);
  exponentials(x, count, m, s, q, t);
  return {m, sum_lanes(s, count), sum_lanes(q, count), sum_lanes(t, count)};
}

template <class T>
void forward_row(const T* x, int64_t row, int64_t target, int64_t classes,
                 const LossOptions<compute_t<T>>& options, const Outputs<compute_t<T>>& out) {
  using A = compute_t<T>;
  const A x_y = widen(x[target]);
  RowStats<A> stats = RowStats<A>::none();
  A chunk[kChunk];
  for (int64_t first = 0; first < classes; first += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, classes - first));
    const int padded = (count + kLanes - 1) / kLanes * kLanes;
    widen_chunk(x + first, count, chunk);
    for (int i = count; i < padded; i++) chunk[i] = -Limits<A>::infinity();
    if (target >= first && target < first + count) chunk[target - first] = -Limits<A>::infinity();
    const RowStats<A> part = chunk_stats(chunk, padded);
    if (first == 0) {
      stats = part;
    } else {
      stats.merge(part);
    }
  }
  A sum_weight = 0, sum_distance = 0;
  if (options.label_smoothing > 0) {
    for (int64_t c = 0; c < classes; c++) {
      sum_weight += options.weight_of(c);
      sum_distance += options.weight_of(c) * (widen(x[c]) - x_y);
    }
  }
  const RowResult<A> result = finish_row(stats, x_y);
  out.write(row, row_loss(options, result.nll, target, classes, sum_weight, sum_distance), result,
            sum_weight);
}

// The gradient without label smoothing, but for the target's own class.
template <class T>
DYNPRUNE_CLONES void scaled_softmax(const T* x, int64_t classes, compute_t<T> max,
                                    compute_t<T> log_normaliser, compute_t<T> scale, T* out) {
  for (int64_t c = 0; c < classes; c++) {
    out[c] = narrow<T>(scale * exp_nonpositive(widen(x[c]) - max - log_normaliser));
  }
}

template <class T>
void backward_row(const T* x, int64_t target, int64_t classes,
                  const LossOptions<compute_t<T>>& options, const SavedRow<compute_t<T>>& saved,
                  compute_t<T> scale, T* out) {
  using A = compute_t<T>;
  const RowGradient<A> gradient(options, saved, target, classes, scale);
  if (options.label_smoothing > 0) {
    for (int64_t c = 0; c < classes; c++) {
      out[c] = narrow<T>(gradient.at(c, static_cast<A>(widen(x[c]))));
    }
    return;
  }
  scaled_softmax(x, classes, saved.max, saved.log_normaliser, gradient.hit_weight, out);
  out[target] = narrow<T>(gradient.at(target, static_cast<A>(widen(x[target]))));
}

}  // namespace

DataStatus scored_cross_entropy(const CrossEntropyInput& in, const CrossEntropyOutput& o,
                                const Parallel& parallel) {
  for (int64_t row = 0; row < in.batch_size; row++) {
    const int64_t target = in.target[row];
    if (target != in.ignore_index && (target < 0 || target >= in.num_classes)) {
      return DataStatus{false, DataError::kTarget, row, target};
    }
  }
  dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const T* logits = static_cast<const T*>(in.logits);
    const LossOptions<A> options = options_of<A>(in);
    const Outputs<A> out{static_cast<A*>(o.loss),
                         static_cast<A*>(o.el2n),
                         static_cast<A*>(o.entropy),
                         static_cast<A*>(o.margin),
                         o.correct,
                         static_cast<SavedRow<A>*>(o.saved)};
    for_each_range(parallel, in.batch_size, row_tasks(in, parallel), [&](int, Range rows) {
      for (int64_t row = rows.begin; row < rows.end; row++) {
        const int64_t target = in.target[row];
        if (target == in.ignore_index) {
          out.write(row, 0, {0, 0, 0, 0, 0, 0, 0}, 0);
        } else {
          forward_row(logits + row * in.row_stride, row, target, in.num_classes, options, out);
        }
      }
    });
  });
  return DataStatus{};
}

void scored_cross_entropy_backward(const CrossEntropyInput& in, const CrossEntropyGradient& g,
                                   const Parallel& parallel) {
  dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const LossOptions<A> options = options_of<A>(in);
    const A* grad_loss = static_cast<const A*>(g.grad_loss);
    const SavedRow<A>* saved = static_cast<const SavedRow<A>*>(g.saved);
    for_each_range(parallel, in.batch_size, row_tasks(in, parallel), [&](int, Range rows) {
      for (int64_t row = rows.begin; row < rows.end; row++) {
        const T* x = static_cast<const T*>(in.logits) + row * in.row_stride;
        T* out = static_cast<T*>(g.grad_logits) + row * in.num_classes;
        const int64_t target = in.target[row];
        const A scale = grad_loss[row * g.grad_loss_stride];
        // A backward without its forward's check must not read out of bounds either.
        const bool skipped =
            target == in.ignore_index || target < 0 || target >= in.num_classes || scale == 0;
        if (skipped) {
          for (int64_t c = 0; c < in.num_classes; c++) out[c] = narrow<T>(A{0});
          continue;
        }
        backward_row(x, target, in.num_classes, options, saved[row], scale, out);
      }
    });
  });
}

}  // namespace cpu
}  // namespace dynprune
