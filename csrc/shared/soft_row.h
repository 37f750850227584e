// SPDX-License-Identifier: Apache-2.0
// A row of logits x whose target is a distribution t over the classes, as mixup and distillation
// make them, on CPU and GPU. Options: class weights w and label smoothing eps, as
// torch.nn.functional.cross_entropy has them. With u_j = w_j ((1 - eps) t_j + eps / C), p =
// softmax:
//   loss = sum_j u_j (lse - x_j)         d loss / d x_j = p_j sum u - u_j         EL2N = |p - t|
// Without cancellation, with a = argmax x:
//   S = sum_{j != a} e^(x_j - x_a)       lse - x_a = log1p(S)
//   loss = log1p(S) sum u + sum_j u_j (x_a - x_j)
//   p_a - t_a = (1 - t_a) - miss         miss = 1 - p_a = S / (1 + S)
// A class with u_j = 0 adds nothing to the loss, whatever its logit.
// Margin and correctness are those of the class y = argmax t, the first of several. EL2N is a sum
// of squares: below 1e-19 it is 0 in float32.
#pragma once

#include "shared/cross_entropy_row.h"

namespace dynprune {

// Beside CrossEntropyInput, whose target and second target are not read; not in columns.
struct SoftTarget {
  const void* data;    // [B, C], the classes of a row are neighbours
  ScalarType type;     // of the logits, or that of the arithmetic
  int64_t row_stride;  // in elements
};

// The number u_j of a class.
template <class A>
struct SoftWeights {
  const A* class_weight;  // [C] or null
  A hard, uniform;        // 1 - eps, eps / C

  DYNPRUNE_HD explicit SoftWeights(const CrossEntropyInput& in)
      : class_weight(static_cast<const A*>(in.class_weight)),
        hard(static_cast<A>(1 - in.label_smoothing)),
        uniform(static_cast<A>(in.label_smoothing / static_cast<double>(in.num_classes))) {}

  template <bool kWeighted>
  DYNPRUNE_HD A at(int64_t c, A t) const {
    const A smoothed = t * hard + uniform;
    return kWeighted ? class_weight[c] * smoothed : smoothed;
  }
};

// What of a row's logits and probabilities its scores are made of.
template <class A>
struct SoftSums {
  A max;       // x_a; -inf without a number above
  A second;    // the greatest of the other logits; -inf without one
  A s, t;      // sum_{j != a} e^(x_j - max), and the same times (x_j - max)
  A weight;    // sum_j u_j
  A distance;  // sum_j u_j (max - x_j)
  A top;       // t_y, the greatest probability; NaN is none
  int32_t y;   // its class; -1 without one
};

// Makes the sum of u NaN if it is not finite. x_y: logit of the class y, not read without one. The
// scores lack EL2N, and have the loss as nll; max, log_normaliser and miss are those of the class
// a, as backward needs them.
template <class A>
DYNPRUNE_HD RowResult<A> finish_soft_row(SoftSums<A>* sums, A x_y) {
  // Of a probability or a class weight that is not finite.
  if (sums->weight - sums->weight != 0) sums->weight = Limits<A>::nan();
  const SoftSums<A>& r = *sums;
  const A infinity = Limits<A>::infinity(), nan = Limits<A>::nan();
  if (r.s != r.s || r.max == infinity || r.max == -infinity) {
    return {nan, nan, nan, nan, nan, nan, nan};
  }
  const A log_normaliser = log1p_of(r.s);
  RowResult<A> result;
  result.nll = r.weight * log_normaliser + r.distance;
  result.el2n = 0;
  result.entropy = log_normaliser - r.t / (1 + r.s);
  result.margin = r.y < 0 ? nan : x_y == r.max ? r.max - r.second : x_y - r.max;
  result.max = r.max;
  result.log_normaliser = log_normaliser;
  result.miss = r.s / (1 + r.s);
  return result;
}

// The second look at a row: p_j - t_j for EL2N, and the gradient of the row's loss times `scale`.
template <class A>
struct SoftRow {
  SoftWeights<A> weights;
  A max, log_normaliser, miss, sum_weight;
  A scale;

  DYNPRUNE_HD SoftRow(const SoftWeights<A>& u, const SavedRow<A>& saved, A row_scale)
      : weights(u),
        max(saved.max),
        log_normaliser(saved.log_normaliser),
        miss(saved.miss),
        sum_weight(saved.sum_weight),
        scale(row_scale) {}

  // p: of the class, not read for the greatest logit, of which there may be several.
  DYNPRUNE_HD A error(bool greatest, A p, A t) const { return greatest ? 1 - t - miss : p - t; }
  template <bool kWeighted>
  DYNPRUNE_HD A gradient(bool greatest, int64_t c, A p, A t) const {
    const A u = weights.template at<kWeighted>(c, t);
    const A difference = greatest ? sum_weight - u - sum_weight * miss : sum_weight * p - u;
    return scale * difference;
  }
};

}  // namespace dynprune
