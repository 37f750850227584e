// SPDX-License-Identifier: Apache-2.0
// What the cross-entropy kernels do with one row, on CPU and GPU: options of
// torch.nn.functional.cross_entropy (class weights w, label smoothing eps) on top of the row's
// statistics.
//   loss = (1 - eps) w_y nll + eps/C sum_j w_j (lse - x_j)
//   d loss / d x_j = (1 - eps) w_y (p_j - [j = y]) + eps/C (p_j W - w_j),  W = sum_j w_j;  p_y - 1
//   = -miss
// Smoothing and weights change the loss, never the scores.
#pragma once

#include "row_stats.h"
#include "scalar_types.h"

namespace dynprune {

// Calls of scored_cross_entropy and its backward, as their launchers take them.
// A = float, or double for float64 logits.
struct CrossEntropyInput {
  const void* logits;  // [B, C] of type
  ScalarType type;
  int64_t batch_size;        // B
  int64_t num_classes;       // C
  int64_t row_stride;        // elements between rows; a row is contiguous
  IndexArray target;         // [B]
  const void* class_weight;  // [C] of A, or null
  double label_smoothing;    // in [0, 1]
  int64_t ignore_index;
};

struct CrossEntropyOutput {
  void* loss;     // [B] of A
  void* el2n;     // [B] of A
  void* entropy;  // [B] of A, nats
  void* margin;   // [B] of A
  bool* correct;  // [B]
  void* saved;    // [B, 4] of A, for the backward launcher: SavedRow
};

struct CrossEntropyGradient {
  const void* grad_loss;     // [B] of A
  int64_t grad_loss_stride;  // 0 for one gradient shared by all rows
  const void* saved;         // [B, 4] of A
  void* grad_logits;         // [B, C] of the input's type, contiguous, out
};

template <class A>
struct LossOptions {
  const A* class_weight;  // [C] or null
  A label_smoothing;
  int64_t ignore_index;

  DYNPRUNE_HD A weight_of(int64_t c) const {
    return class_weight != nullptr ? class_weight[c] : A{1};
  }
};

// sum_weight: W; sum_distance: X. Both are only read with label smoothing.
template <class A>
DYNPRUNE_HD A row_loss(const LossOptions<A>& o, A nll, int64_t target, int64_t classes,
                       A sum_weight, A sum_distance) {
  A loss = o.weight_of(target) * nll;
  if (o.label_smoothing > 0) {
    // An impossible target makes both terms infinite, and the sum of all classes' losses with them.
    const A total = nll == Limits<A>::infinity() ? nll : sum_weight * nll - sum_distance;
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
constexpr int kSavedPerRow = 4;

// The gradient of a row's loss times `scale` with respect to one logit.
template <class A>
struct RowGradient {
  LossOptions<A> options;
  SavedRow<A> saved;
  int64_t target;
  A hit_weight;      // scale (1 - eps) w_y
  A uniform_weight;  // scale eps / C

  DYNPRUNE_HD RowGradient(const LossOptions<A>& o, const SavedRow<A>& s, int64_t y, int64_t classes,
                          A scale)
      : options(o),
        saved(s),
        target(y),
        hit_weight(scale * (1 - o.label_smoothing) * o.weight_of(y)),
        uniform_weight(scale * o.label_smoothing / static_cast<A>(classes)) {}

  DYNPRUNE_HD A at(int64_t c, A x) const {
    const A p = c == target ? 1 - saved.miss : exp_of(x - saved.max - saved.log_normaliser);
    A g = hit_weight * (c == target ? -saved.miss : p);
    if (uniform_weight != 0) g += uniform_weight * (p * saved.sum_weight - options.weight_of(c));
    return g;
  }
};

}  // namespace dynprune
