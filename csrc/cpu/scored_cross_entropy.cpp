// SPDX-License-Identifier: Apache-2.0
// A row at a time: its maximum first, then the sums, so that nothing is rescaled in the loop.
#include "cpu/scored_cross_entropy.h"

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

// The sums over [begin, end), none of which is the target; stats.m is their maximum already.
template <class T, class A>
void add_classes(const T* x, int64_t begin, int64_t end, RowStats<A>* stats) {
  for (int64_t c = begin; c < end; c++) stats->add(widen(x[c]));
}

template <class T>
void forward_row(const T* x, int64_t row, int64_t target, int64_t classes,
                 const LossOptions<compute_t<T>>& options, const Outputs<compute_t<T>>& out) {
  using A = compute_t<T>;
  const A x_y = widen(x[target]);
  RowStats<A> stats = RowStats<A>::none();
  for (int64_t c = 0; c < classes; c++) {
    const A v = widen(x[c]);
    if (v > stats.m && c != target) stats.m = v;
  }
  add_classes(x, 0, target, &stats);
  add_classes(x, target + 1, classes, &stats);
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
        const RowGradient<A> gradient(options, saved[row], target, in.num_classes, scale);
        for (int64_t c = 0; c < in.num_classes; c++) {
          out[c] = narrow<T>(gradient.at(c, static_cast<A>(widen(x[c]))));
        }
      }
    });
  });
}

}  // namespace cpu
}  // namespace dynprune
