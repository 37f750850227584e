// SPDX-License-Identifier: Apache-2.0
// Binary labels in vector code: kLanes labels of a row at a time, whose sums are kept in
// independent lanes. The lanes of kLanes rows are then joined together, since joining those of one
// row takes longer than adding up its labels.
#pragma once

#include <algorithm>

#include "cpu/scoring/lanes.h"
#include "shared/binary_row.h"

namespace dynprune {
namespace cpu {

// Labels of rows that lie `stride` apart.
template <class Label>
struct LabelRows {
  Label* labels;
  int64_t stride;

  DYNPRUNE_INLINE Label* row(int r) const { return labels + r * stride; }
};

// [rows][labels], labels a multiple of kLanes. slope: out, or null.
template <class A>
struct LabelBlock {
  LabelRows<const A> x, t, weight, pos_weight;
  LabelRows<A> slope;
  const A* scale;  // [rows], of the slopes; with 0 all of them are 0, also of a broken row
  int rows, labels;
};

// e^-|x| and what follows of it, in every lane. What would be subnormal is 0.
template <class A, int kBytes>
DYNPRUNE_INLINE void set_decay_terms(const typename Lanes<A, kBytes>::Vector& x,
                                     DecayTerms<typename Lanes<A, kBytes>::Vector>* terms) {
  using Vector = typename Lanes<A, kBytes>::Vector;
  Vector below{}, e{}, log1p{}, reciprocal{};
  if constexpr (sizeof(A) == sizeof(float)) {
    using Bits = typename VectorOf<float, kBytes>::bits;
    Bits bits;
    memcpy(&bits, &x, sizeof(bits));
    bits |= 0x80000000u;
    memcpy(&below, &bits, sizeof(below));
    exp_for_sums<Bits>(below, &e);
    e = below <= Vector{} + kLeastExponent<float> ? Vector{} : e;
    set_log1p_terms(e, &log1p, &reciprocal);
  } else {
    for (int l = 0; l < Lanes<A, kBytes>::kPerVector; l++) {
      DecayTerms<A> lane{};
      below[l] = x[l] > 0 ? -x[l] : x[l];
      set_terms_of_decay(exp(below[l]), &lane);
      e[l] = lane.e, log1p[l] = lane.log1p, reciprocal[l] = lane.reciprocal;
    }
  }
  *terms = {below, e, log1p, reciprocal};
}

// What some labels of kLanes rows add to the rows' sums, a lane per label.
template <class A>
struct LabelLanes {
  A loss[kLanes][kLanes], square[kLanes][kLanes], entropy[kLanes][kLanes], margin[kLanes][kLanes];
  A counted[kLanes][kLanes];  // how many labels have a weight; kWeighted only
  A least[kLanes];            // below 0: a target of a row is no probability
};

// The sums of kLanes rows.
struct BinaryTotals {
  double loss[kLanes], squares[kLanes], entropy[kLanes], margin[kLanes], counted[kLanes];
};

// And what they give.
template <class A>
struct BinaryResults {
  A loss[kLanes], el2n[kLanes], entropy[kLanes], margin[kLanes];
  bool counts[kLanes];  // whether a label has a weight other than 0

  RowResult<A> row(int l) const { return {loss[l], el2n[l], entropy[l], margin[l], 0, 0, 0}; }
};

// A block whose first row is row `first` of `lanes`. kWeighted: both weights are given; else all
// labels count.
template <class A, bool kWeighted>
struct AddLabels {
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const LabelBlock<A>* block, int first, LabelLanes<A>* lanes) {
    Lanes<A, kBytes> least;
    least.load(lanes->least);
    for (int r = 0; r < block->rows; r++) add_row(*block, r, first + r, &least, lanes);
    least.store(lanes->least);
  }

 private:
  template <int kBytes>
  static DYNPRUNE_INLINE void add_row(const LabelBlock<A>& block, int r, int l,
                                      Lanes<A, kBytes>* least_of_rows, LabelLanes<A>* lanes) {
    using L = Lanes<A, kBytes>;
    using Vector = typename L::Vector;
    const A *const xs = block.x.row(r), *const ts = block.t.row(r);
    const A *const weights = block.weight.row(r), *const pos_weights = block.pos_weight.row(r);
    A* const slopes = block.slope.labels != nullptr ? block.slope.row(r) : nullptr;
    L loss, square, entropy, margin, counted, least = *least_of_rows;
    loss.fill(0), square.fill(0), entropy.fill(0), counted.fill(0);
    margin.fill(Limits<A>::infinity());
    const Vector zero{}, one = zero + 1, nothing = zero - Limits<A>::infinity();
    const Vector scale = zero + block.scale[r];
    const int labels = block.labels;
    for (int i = 0; i < labels; i += kLanes) {
      L x, t, weight, pos_weight, slope;
      x.load(xs + i), t.load(ts + i);
      weight.fill(1), pos_weight.fill(1);
      if constexpr (kWeighted) weight.load(weights + i), pos_weight.load(pos_weights + i);
      for (int w = 0; w < L::kVectors; w++) {
        if constexpr (kWeighted) {
          const auto skipped = weight.v[w] == zero;
          x.v[w] = skipped ? nothing : x.v[w];
          t.v[w] = skipped ? zero : t.v[w];
          counted.v[w] += skipped ? zero : one;
        }
        DecayTerms<Vector> decay{};
        set_decay_terms<A, kBytes>(x.v[w], &decay);
        const auto terms = BinaryTerms<A, Vector>::template of<kWeighted>(
            x.v[w], t.v[w], decay, weight.v[w], pos_weight.v[w]);
        loss.v[w] += terms.loss;
        square.v[w] += terms.square;
        entropy.v[w] += terms.entropy;
        margin.v[w] = terms.margin < margin.v[w] ? terms.margin : margin.v[w];
        const Vector negative = 1 - t.v[w], smaller = negative < t.v[w] ? negative : t.v[w];
        least.v[w] = smaller < least.v[w] ? smaller : least.v[w];
        slope.v[w] = scale != zero ? scale * terms.slope : zero;
      }
      if (slopes != nullptr) slope.store(slopes + i);
    }
    loss.store(lanes->loss[l]), square.store(lanes->square[l]);
    entropy.store(lanes->entropy[l]), margin.store(lanes->margin[l]);
    if constexpr (kWeighted) counted.store(lanes->counted[l]);
    *least_of_rows = least;
  }
};

// Adds some labels' sums to those of the rows, in double, so that long rows are as exact as short
// ones.
template <class A>
struct SumLabels {
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const LabelLanes<A>* lanes, bool weighted, BinaryTotals* total) {
    const auto add = [](auto* a, const auto& b) __attribute__((always_inline)) { *a += b; };
    const auto lower = [](auto* a, const auto& b)
                           __attribute__((always_inline)) { *a = b < *a ? b : *a; };
    A loss[kLanes], square[kLanes], entropy[kLanes], margin[kLanes], counted[kLanes];
    join_rows<A, kBytes>(lanes->loss, add, loss);
    join_rows<A, kBytes>(lanes->square, add, square);
    join_rows<A, kBytes>(lanes->entropy, add, entropy);
    join_rows<A, kBytes>(lanes->margin, lower, margin);
    if (weighted) {
      join_rows<A, kBytes>(lanes->counted, add, counted);
    } else {
      std::fill(counted, counted + kLanes, A{1});
    }
    for (int l = 0; l < kLanes; l++) {
      total->loss[l] += static_cast<double>(loss[l]);
      total->squares[l] += static_cast<double>(square[l]);
      total->entropy[l] += static_cast<double>(entropy[l]);
      // Plus 0: which of two zeros of different signs was kept depends on the place of the row.
      total->margin[l] = std::min(total->margin[l], static_cast<double>(margin[l]) + 0);
      total->counted[l] += static_cast<double>(counted[l]);
    }
  }
};

// The results of rows from their sums; 0 of a row that counts for nothing.
template <class A>
struct FinishBinaryRows {
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const BinaryTotals* total, int64_t labels,
                                  BinaryResults<A>* out) {
    for (int l = 0; l < kLanes; l++) {
      const BinarySums<A> sums{static_cast<A>(total->loss[l]),
                               static_cast<A>(total->squares[l]),
                               static_cast<A>(total->entropy[l]),
                               static_cast<A>(total->margin[l]),
                               0,
                               true};
      const RowResult<A> result = finish_binary_row(sums, labels);
      const bool counts = total->counted[l] != 0;
      out->loss[l] = counts ? result.nll : 0;
      out->el2n[l] = counts ? result.el2n : 0;
      out->entropy[l] = counts ? result.entropy : 0;
      out->margin[l] = counts ? result.margin : 0;
      out->counts[l] = counts;
    }
  }
};

}  // namespace cpu
}  // namespace dynprune
