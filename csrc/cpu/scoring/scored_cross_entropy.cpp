// SPDX-License-Identifier: Apache-2.0
#include "cpu/scoring/scored_cross_entropy.h"

#include "cpu/scoring/row_batch.h"

namespace dynprune {
namespace cpu {
namespace {

// The gradient without label smoothing, but for the targets' own classes.
template <class T>
DYNPRUNE_CLONES void scaled_softmax(const T* x, int64_t classes, compute_t<T> max,
                                    compute_t<T> log_normaliser, compute_t<T> scale, T* out) {
  for (int64_t c = 0; c < classes; c++) {
    out[c] = narrow<T>(scale * exp_nonpositive(widen(x[c]) - max - log_normaliser));
  }
}

template <class T>
void backward_row(const T* x, int64_t classes, const RowGradient<compute_t<T>>& gradient, T* out) {
  if (gradient.uniform_weight != 0) {
    for (int64_t c = 0; c < classes; c++) out[c] = narrow<T>(gradient.at_other(c, widen(x[c])));
  } else {
    scaled_softmax(x, classes, gradient.saved.max, gradient.saved.log_normaliser,
                   gradient.softmax_weight(), out);
  }
  out[gradient.first] = narrow<T>(gradient.at_first());
  if (gradient.second >= 0) {
    out[gradient.second] = narrow<T>(gradient.at_second(widen(x[gradient.second])));
  }
}

// The classes are apart. Neighbouring rows share cache lines.
template <class T>
void backward_in_columns(const T* x, const CrossEntropyInput& in,
                         const RowGradient<compute_t<T>>& gradient, T* out) {
  const int64_t stride = in.class_stride, to = in.gradient_class_stride();
  for (int64_t c = 0; c < in.num_classes; c++) {
    out[c * to] = narrow<T>(gradient.at(c, widen(x[c * stride])));
  }
}

}  // namespace

DataStatus scored_cross_entropy(const CrossEntropyInput& in, const CrossEntropyOutput& out,
                                const Parallel& parallel) {
  const CrossEntropyGradient none{};
  return scored_cross_entropy_with_gradient(in, out, none, parallel);
}

DataStatus scored_cross_entropy_with_gradient(const CrossEntropyInput& in,
                                              const CrossEntropyOutput& out,
                                              const CrossEntropyGradient& g,
                                              const Parallel& parallel) {
  const DataStatus status = check_targets(in);
  if (!status.ok) return status;
  dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const A* grad_loss = static_cast<const A*>(g.grad_loss);
    for_each_range(parallel, in.batch_size, row_tasks(in, parallel), [&](int, Range rows) {
      RowBatch<T>(in, out, static_cast<T*>(g.grad_logits)).run(rows, [&](const RowGroup<A>& group) {
        for (int l = 0; l < group.count && grad_loss != nullptr; l++) {
          group.scale[l] = grad_loss[group.row[l] * g.grad_loss_stride];
        }
      });
    });
  });
  return DataStatus{};
}

void scored_cross_entropy_backward(const CrossEntropyInput& in, const CrossEntropyGradient& g,
                                   const Parallel& parallel) {
  dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const LossOptions<A> options(in);
    const A* grad_loss = static_cast<const A*>(g.grad_loss);
    const SavedRow<A>* saved = static_cast<const SavedRow<A>*>(g.saved);
    for_each_range(parallel, in.batch_size, row_tasks(in, parallel), [&](int, Range rows) {
      for (int64_t row = rows.begin; row < rows.end; row++) {
        const T* x = static_cast<const T*>(in.logits) + in.row_offset(row);
        T* out = static_cast<T*>(g.grad_logits) + in.gradient_offset(row);
        const RowTarget<A> y(in, row);
        const A scale = grad_loss[row * g.grad_loss_stride];
        // A backward without its forward's check must not read out of bounds either.
        if (y.kind != RowKind::kScored || scale == 0) {
          for (int64_t c = 0; c < in.num_classes; c++) {
            out[c * in.gradient_class_stride()] = narrow<T>(A{0});
          }
          continue;
        }
        const RowGradient<A> gradient(options, saved[row], y, in.num_classes, scale);
        if (in.in_columns()) {
          backward_in_columns(x, in, gradient, out);
        } else {
          backward_row(x, in.num_classes, gradient, out);
        }
      }
    });
  });
}

}  // namespace cpu
}  // namespace dynprune
