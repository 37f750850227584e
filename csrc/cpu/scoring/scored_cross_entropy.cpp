// SPDX-License-Identifier: Apache-2.0
#include "cpu/scoring/scored_cross_entropy.h"

#include <algorithm>

#include "cpu/scoring/row_batch.h"

namespace dynprune {
namespace cpu {
namespace {

// RowGradient at every class of a row as if that were no target. class_weight: of the part that
// label smoothing takes, or null for ones.
template <class T>
DYNPRUNE_CLONES void write_row_as_others(const T* x, int64_t classes, compute_t<T> max,
                                         compute_t<T> log_normaliser, compute_t<T> scale,
                                         compute_t<T> uniform, const compute_t<T>* class_weight,
                                         T* out) {
  for (int64_t c = 0; c < classes; c++) {
    const compute_t<T> part = class_weight != nullptr ? uniform * class_weight[c] : uniform;
    const compute_t<T> p = exp_nonpositive(widen(x[c]) - max - log_normaliser);
    out[c] = narrow<T>(scale * p - part);
  }
}

// What write_row_as_others takes, of neighbouring rows.
template <class A>
struct NeighbourSlopes {
  A max[kLanes], log_normaliser[kLanes], scale[kLanes], uniform[kLanes];

  void set(int l, const RowGradient<A>& slope) {
    max[l] = slope.saved.max, log_normaliser[l] = slope.saved.log_normaliser;
    scale[l] = slope.softmax_weight(), uniform[l] = slope.uniform_weight;
  }
  void clear(int l) { max[l] = log_normaliser[l] = scale[l] = uniform[l] = 0; }
};

// The same of up to kLanes neighbouring rows, whose classes lie apart.
template <class T>
DYNPRUNE_CLONES void write_columns_as_others(const T* x, int64_t stride, int64_t classes, int count,
                                             const NeighbourSlopes<compute_t<T>>& rows,
                                             const compute_t<T>* class_weight, T* out,
                                             int64_t out_stride) {
  using A = compute_t<T>;
  const auto write = [&](int64_t c, A weight, int n) __attribute__((always_inline)) {
    const T* from = x + c * stride;
    T* to = out + c * out_stride;
    for (int l = 0; l < n; l++) {
      const A p = exp_nonpositive(widen(from[l]) - rows.max[l] - rows.log_normaliser[l]);
      to[l] = narrow<T>(rows.scale[l] * p - rows.uniform[l] * weight);
    }
  };
  for (int64_t c = 0; c < classes; c++) {
    const A weight = class_weight != nullptr ? class_weight[c] : A{1};
    if (count == kLanes) {
      write(c, weight, kLanes);
    } else {
      write(c, weight, count);
    }
  }
}

template <class T>
class GradientWriter {
 public:
  using A = compute_t<T>;

  GradientWriter(const CrossEntropyInput& in, const CrossEntropyGradient& g)
      : in_(in),
        options_(in),
        uniform_part_(options_.label_smoothing > 0 ? options_.class_weight : nullptr),
        g_(g) {}

  void write_row(int64_t row) const {
    const RowTarget<A> y(in_, row);
    if (!has_gradient(y, row)) return write_zeros(row);
    const RowGradient<A> slope = slope_of(row, y);
    write_row_as_others(logits(row), in_.num_classes, slope.saved.max, slope.saved.log_normaliser,
                        slope.softmax_weight(), slope.uniform_weight, uniform_part_, gradient(row));
    write_targets(row, y, slope);
  }

  // The rows from `row` on whose classes lie apart, as many as are neighbours. Returns their
  // number.
  int write_columns(int64_t row, int64_t end) const {
    const int64_t group_end = row - row % in_.group_rows + in_.group_rows;
    const int count = static_cast<int>(std::min({end, group_end, row + kLanes}) - row);
    NeighbourSlopes<A> rows;
    for (int l = 0; l < count; l++) {
      const RowTarget<A> y(in_, row + l);
      if (has_gradient(y, row + l)) {
        rows.set(l, slope_of(row + l, y));
      } else {
        rows.clear(l);
      }
    }
    write_columns_as_others(logits(row), in_.class_stride, in_.num_classes, count, rows,
                            uniform_part_, gradient(row), in_.gradient_class_stride());
    for (int l = 0; l < count; l++) {
      const RowTarget<A> y(in_, row + l);
      if (has_gradient(y, row + l)) {
        write_targets(row + l, y, slope_of(row + l, y));
      } else {
        write_zeros(row + l);
      }
    }
    return count;
  }

 private:
  const T* logits(int64_t row) const {
    return static_cast<const T*>(in_.logits) + in_.row_offset(row);
  }
  T* gradient(int64_t row) const {
    return static_cast<T*>(g_.grad_logits) + in_.gradient_offset(row);
  }
  A scale(int64_t row) const {
    return static_cast<const A*>(g_.grad_loss)[row * g_.grad_loss_stride];
  }
  // A backward without its forward's check must not read out of bounds either.
  bool has_gradient(const TargetPair& y, int64_t row) const {
    return y.kind == RowKind::kScored && scale(row) != 0;
  }
  RowGradient<A> slope_of(int64_t row, const RowTarget<A>& y) const {
    return RowGradient<A>(options_, static_cast<const SavedRow<A>*>(g_.saved)[row], y,
                          in_.num_classes, scale(row));
  }
  void write_targets(int64_t row, const RowTarget<A>& y, const RowGradient<A>& slope) const {
    T* out = gradient(row);
    const int64_t to = in_.gradient_class_stride();
    out[y.first * to] = narrow<T>(slope.at_first());
    if (y.second < 0) return;
    const A x = widen(logits(row)[y.second * in_.class_stride]);
    out[y.second * to] = narrow<T>(slope.at_second(x));
  }
  void write_zeros(int64_t row) const {
    T* out = gradient(row);
    const int64_t to = in_.gradient_class_stride();
    for (int64_t c = 0; c < in_.num_classes; c++) out[c * to] = narrow<T>(A{0});
  }

  const CrossEntropyInput& in_;
  const LossOptions<A> options_;
  const A* uniform_part_;  // class weights of label smoothing, or null
  const CrossEntropyGradient& g_;
};

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
    for_each_range(parallel, in.batch_size, row_tasks(in, parallel), [&](int, Range rows) {
      const GradientWriter<decltype(tag)> gradients(in, g);
      for (int64_t row = rows.begin; row < rows.end;) {
        if (in.in_columns()) {
          row += gradients.write_columns(row, rows.end);
        } else {
          gradients.write_row(row++);
        }
      }
    });
  });
}

}  // namespace cpu
}  // namespace dynprune
