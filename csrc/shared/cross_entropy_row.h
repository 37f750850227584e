// SPDX-License-Identifier: Apache-2.0
// What the cross-entropy kernels do with one row, on CPU and GPU, on top of the row's statistics.
// Options are those of torch.nn.functional.cross_entropy: class weights w, label smoothing eps.
// Targets may be pairs (y, z) with a coefficient lam, as mixup makes them.
//   loss = (1 - eps) (lam w_y nll_y + (1 - lam) w_z nll_z) + eps/C sum_j w_j (lse - x_j)
//   d loss / d x_j = (a + b) p_j - a [j = y] - b [j = z] + eps/C (p_j W - w_j),  W = sum_j w_j,
//   a = (1 - eps) lam w_y,  b = (1 - eps) (1 - lam) w_z,  p_y - 1 = -miss
// Smoothing, weights and the second target change the loss, never the scores.
#pragma once

#include "shared/error_flags.h"
#include "shared/row_stats.h"
#include "shared/scalar_types.h"
#include "shared/step_contract.h"

namespace dynprune {

// Calls of scored_cross_entropy and its backward, as their launchers take them.
// A = float, or double for float64 logits.
struct CrossEntropyInput {
  const void* logits;  // [B, C] of type
  ScalarType type;
  int64_t batch_size;   // B
  int64_t num_classes;  // C
  // In elements: between rows; between groups of group_rows rows, such as the pixels of an image;
  // between classes. The classes of a row are neighbours, or else the rows of a group are.
  int64_t row_stride;
  int64_t group_rows;  // B for one group
  int64_t group_stride;
  int64_t class_stride;
  IndexArray target;         // [B]
  const void* class_weight;  // [C] of A, or null
  double label_smoothing;    // in [0, 1]
  int64_t ignore_index;      // a row with this as one of its targets counts for nothing
  IndexArray second_target;  // [B], or data null
  const void* lam;           // [B] of A, weight of the first target; read with a second one only
  int64_t lam_stride;        // 0: one coefficient for all rows

  // Whether the rows of a group, and not the classes of a row, are neighbours.
  DYNPRUNE_HD bool in_columns() const { return class_stride != 1; }
  // Where a row's first class is in the logits.
  DYNPRUNE_HD int64_t row_offset(int64_t row) const {
    if (group_rows == batch_size) return row * row_stride;
    return row / group_rows * group_stride + row % group_rows * row_stride;
  }
  // The same in the gradient, which has the same neighbours and no gaps.
  DYNPRUNE_HD int64_t gradient_offset(int64_t row) const {
    if (!in_columns()) return row * num_classes;
    return row / group_rows * (group_rows * num_classes) + row % group_rows;
  }
  DYNPRUNE_HD int64_t gradient_class_stride() const { return in_columns() ? group_rows : 1; }
};

struct CrossEntropyOutput {
  void* loss;     // [B] of A
  void* el2n;     // [B] of A
  void* entropy;  // [B] of A, nats
  void* margin;   // [B] of A
  bool* correct;  // [B]
  void* saved;    // [B, 4] of A, for the backward launcher: SavedRow; may be null
};

struct CrossEntropyGradient {
  const void* grad_loss;     // [B] of A
  int64_t grad_loss_stride;  // 0 for one gradient shared by all rows
  const void* saved;         // [B, 4] of A
  void* grad_logits;         // [B, C] of the input's type, as CrossEntropyInput has it; out
};

template <class A>
struct LossOptions {
  const A* class_weight;  // [C] or null
  A label_smoothing;

  DYNPRUNE_HD explicit LossOptions(const CrossEntropyInput& in)
      : class_weight(static_cast<const A*>(in.class_weight)),
        label_smoothing(static_cast<A>(in.label_smoothing)) {}

  DYNPRUNE_HD A weight_of(int64_t c) const {
    return class_weight != nullptr ? class_weight[c] : A{1};
  }
};

enum class RowKind { kScored, kIgnored, kOutOfRange };

// The target or targets of a row. A second target that equals the first is no mixing.
struct TargetPair {
  RowKind kind;
  int64_t first;
  int64_t second;    // -1 without mixing
  int64_t offender;  // the target that is out of range
};

DYNPRUNE_HD TargetPair targets_of_row(const CrossEntropyInput& in, int64_t row) {
  TargetPair y{RowKind::kScored, in.target[row], -1, 0};
  bool ignored = y.first == in.ignore_index, in_range = y.first >= 0 && y.first < in.num_classes;
  y.offender = y.first;
  if (in.second_target.data != nullptr) {
    y.second = in.second_target[row];
    ignored = ignored || y.second == in.ignore_index;
    if (y.second < 0 || y.second >= in.num_classes) {
      if (in_range) y.offender = y.second;
      in_range = false;
    }
    if (y.second == y.first) y.second = -1;
  }
  if (ignored) {
    y.kind = RowKind::kIgnored;
  } else if (!in_range) {
    y.kind = RowKind::kOutOfRange;
  }
  return y;
}

template <class A>
struct RowTarget : TargetPair {
  A lam;  // 1 without mixing

  RowTarget() = default;
  DYNPRUNE_HD RowTarget(const CrossEntropyInput& in, int64_t row)
      : TargetPair(targets_of_row(in, row)) {
    lam = second < 0 ? A{1} : static_cast<const A*>(in.lam)[row * in.lam_stride];
  }
  // Weight of the row in a mean over the batch.
  DYNPRUNE_HD A mean_weight(const LossOptions<A>& o) const {
    const A weight = o.weight_of(first);
    return second < 0 ? weight : lam * weight + (1 - lam) * o.weight_of(second);
  }
};

// x_second: logit of the second target, read with mixing only. sum_weight: W; sum_distance:
// sum_j w_j (x_j - x_y). Both are only read with label smoothing.
template <class A>
DYNPRUNE_HD A row_loss(const LossOptions<A>& o, const RowTarget<A>& y, const RowResult<A>& r,
                       A x_second, int64_t classes, A sum_weight, A sum_distance) {
  A loss = o.weight_of(y.first) * r.nll;
  if (y.second >= 0) {
    const A second = o.weight_of(y.second) * (r.max - x_second + r.log_normaliser);
    // An impossible target of weight 0 must not count.
    loss = (y.lam != 0 ? y.lam * loss : 0) + (y.lam != 1 ? (1 - y.lam) * second : 0);
  }
  if (o.label_smoothing > 0) {
    // An impossible target makes both terms infinite, and the sum of all classes' losses with them.
    const A total = r.nll == Limits<A>::infinity() ? r.nll : sum_weight * r.nll - sum_distance;
    const A uniform = total / static_cast<A>(classes);
    loss = (1 - o.label_smoothing) * loss + o.label_smoothing * uniform;
  }
  return loss;
}

// What backward needs of a row, as forward saves it.
template <class A>
struct SavedRow {
  A max, log_normaliser, miss;
  A sum_weight;  // W; 0 without label smoothing
};
static_assert(sizeof(SavedRow<float>) == kNumSavedColumns * sizeof(float), "one per SavedColumn");
static_assert(sizeof(SavedRow<double>) == kNumSavedColumns * sizeof(double), "one per SavedColumn");

// The gradient of a row's loss times `scale` with respect to one logit.
template <class A>
struct RowGradient {
  const A* class_weight;
  SavedRow<A> saved;
  int64_t first, second;
  A first_weight, second_weight;  // scale a, scale b
  A uniform_weight;               // scale eps / C

  DYNPRUNE_HD RowGradient(const LossOptions<A>& o, const SavedRow<A>& s, const RowTarget<A>& y,
                          int64_t classes, A scale)
      : class_weight(o.class_weight), saved(s), first(y.first), second(y.second) {
    const A hard = scale * (1 - o.label_smoothing);
    first_weight = hard * o.weight_of(first) * y.lam;
    second_weight = second >= 0 ? hard * (1 - y.lam) * o.weight_of(second) : 0;
    uniform_weight = scale * o.label_smoothing / static_cast<A>(classes);
  }

  // What p_j is multiplied with at a class that is no target.
  DYNPRUNE_HD A softmax_weight() const {
    return first_weight + second_weight + uniform_weight * saved.sum_weight;
  }
  DYNPRUNE_HD A uniform_at(int64_t c) const {
    return uniform_weight == 0       ? A{0}
           : class_weight == nullptr ? uniform_weight
                                     : uniform_weight * class_weight[c];
  }
  DYNPRUNE_HD A at_other(int64_t c, A x) const {
    return softmax_weight() * exp_of(x - saved.max - saved.log_normaliser) - uniform_at(c);
  }
  DYNPRUNE_HD A at_first() const {
    const A p = 1 - saved.miss;
    A g = -first_weight * saved.miss;
    if (second >= 0) g += second_weight * p;
    if (uniform_weight != 0) g += uniform_weight * p * saved.sum_weight - uniform_at(first);
    return g;
  }
  DYNPRUNE_HD A at_second(A x) const { return at_other(second, x) - second_weight; }
  DYNPRUNE_HD A at(int64_t c, A x) const {
    if (c == first) return at_first();
    return at_other(c, x) - (c == second ? second_weight : 0);
  }
};

// ---- the fused step: loss, scores, gradient and score table in one go

// What of a row's scores enters the table: bigger means more worth training on.
template <class A>
DYNPRUNE_HD float table_value(Score score, A loss, const RowResult<A>& r) {
  switch (score) {
    case Score::kEl2n:
      return static_cast<float>(r.el2n);
    case Score::kEntropy:
      return static_cast<float>(r.entropy);
    case Score::kMargin:
      return static_cast<float>(-r.margin);
    case Score::kLoss:
      break;
  }
  return static_cast<float>(loss);
}

// Beside CrossEntropyInput, whose row losses l_i it weights. The loss is w_i l_i for kNone and
// sum_i w_i l_i for kSum. kMean divides this sum by the sum of the rows' class weights.
struct CrossEntropyStep {
  const void* sample_weight;  // [B / rows_per_id] of A, or null for ones
  const void* token_weight;   // [B] of A, or null for ones; w_i is the product of both
  const void* divisor;        // [1] of A, or null: what kMean divides by instead
  const void* grad_scale;     // [1] of A, or null for one: what grad_logits is multiplied with
  Reduction reduction;
  Score score;          // enters the table
  int64_t rows_per_id;  // row i belongs to the sample sample_ids[i / rows_per_id]
  void* loss;           // of A: [B] for kNone, else [1]
  void* row_weight;     // [B] of A: derivative of the sum of `loss` by l_i
  void* grad_logits;    // [B, C] of the input's type, as CrossEntropyInput has it: gradient of the
                        // sum of `loss`, or null
};

}  // namespace dynprune
