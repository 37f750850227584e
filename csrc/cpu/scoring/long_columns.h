// SPDX-License-Identifier: Apache-2.0
// Statistics and gradients of rows of many classes that lie apart, so that neighbouring rows are
// neighbours in memory. Some classes of all rows are read before the next ones, for long runs in
// memory. Exponentials are not kept: they would take as much memory as the logits.
#pragma once

#include "cpu/scoring/short_rows.h"

namespace dynprune {
namespace cpu {

constexpr int64_t kColumnBlock = 32;  // classes

// Groups of kLanes rows; the last one may have fewer.
template <class T>
struct ColumnGroups {
  const T* const* x;  // [rows] the first class of each, in whole groups: all can be read
  int64_t stride;     // between classes
  int64_t classes;
  int rows;

  int number() const { return (rows + kLanes - 1) / kLanes; }
  DYNPRUNE_INLINE bool neighbours(int group) const {
    return are_neighbours(x + group * kLanes, std::min(kLanes, rows - group * kLanes));
  }
};

template <class T, int kBytes>
DYNPRUNE_INLINE void load_class(const T* const* x, int64_t offset, int64_t ahead, bool neighbours,
                                Lanes<compute_t<T>, kBytes>* v) {
  if (neighbours) {
    __builtin_prefetch(x[0] + offset + ahead);
    return v->load(x[0] + offset);
  }
  compute_t<T> column[kLanes];
  for (int l = 0; l < kLanes; l++) column[l] = widen(x[l][offset]);
  v->load(column);
}

// Adds the classes from `first` on, kColumnBlock at most, to the statistics of kLanes rows.
template <class T, int kBytes>
DYNPRUNE_INLINE void add_classes(const T* const* x, bool neighbours, int64_t stride, int64_t first,
                                 int64_t count, const int64_t* target,
                                 const ClassDistances<compute_t<T>>& distances,
                                 RowLanes<compute_t<T>>* r) {
  using A = compute_t<T>;
  using L = Lanes<A, kBytes>;
  A kept[kColumnBlock * kLanes];
  int64_t place[kLanes];
  for (int l = 0; l < kLanes; l++) place[l] = target[l] - first;
  L y, number, m, greatest;
  y.load_numbers(place);
  number.fill(0);
  m.load(r->m);
  greatest = m;
  for (int64_t c = 0; c < count; c++) {
    L v;
    load_class<T, kBytes>(x, (first + c) * stride, kColumnBlock * stride, neighbours, &v);
    v.replace(number, y, -Limits<A>::infinity());
    v.store(kept + c * kLanes);
    greatest.raise_to(v);
    number.add(1);
  }
  if (distances.of_rows != nullptr) {
    L x_y, distance;
    x_y.load(r->x_y), distance.load(distances.of_rows);
    number.fill(0);
    for (int64_t c = 0; c < count; c++) {
      L v;
      v.load(kept + c * kLanes);
      v.replace(number, y, x_y);
      v.subtract(x_y);
      if (distances.class_weight != nullptr) v.multiply(distances.class_weight[first + c]);
      distance.add(v);
      number.add(1);
    }
    distance.store(distances.of_rows);
  }
  LaneSums<A, kBytes> sums;
  sums.clear();
  for (int64_t c = 0; c < count; c++) {
    L v, below;
    v.load(kept + c * kLanes);
    v.to_exponentials(greatest, &below);
    sums.add(v, below);
  }
  L s, q, t;
  s.load(r->s), q.load(r->q), t.load(r->t);
  if (!greatest.equals(m)) {  // rare, after the first few
    A higher[kLanes];
    greatest.store(higher);
    for (int l = 0; l < kLanes; l++) {
      RowStats<A> stats = r->stats(l);
      stats.rescale(higher[l]);
      r->set_stats(l, stats);
    }
    s.load(r->s), q.load(r->q), t.load(r->t);
  }
  s.add(sums.s), q.add(sums.q), t.add(sums.t);
  s.store(r->s), q.store(r->q), t.store(r->t);
}

// target, distance: of each row, in whole groups; distance may be null. lanes: [groups].
template <class T>
struct ScoreLongColumns {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(ColumnGroups<T> groups, const int64_t* target,
                                  const A* class_weight, A* distance, RowLanes<A>* lanes) {
    const int number = groups.number();
    for (int i = 0; i < number * kLanes; i++) {
      RowLanes<A>& r = lanes[i / kLanes];
      const bool is_row = i < groups.rows;
      r.set_stats(i % kLanes, RowStats<A>::none());
      r.x_y[i % kLanes] = is_row ? widen(groups.x[i][target[i] * groups.stride]) : A{0};
      if (distance != nullptr) distance[i] = 0;
    }
    for (int64_t first = 0; first < groups.classes; first += kColumnBlock) {
      const int64_t count = std::min(kColumnBlock, groups.classes - first);
      for (int g = 0; g < number; g++) {
        const int row = g * kLanes;
        const ClassDistances<A> distances{distance != nullptr ? distance + row : nullptr,
                                          class_weight};
        add_classes<T, kBytes>(groups.x + row, groups.neighbours(g), groups.stride, first, count,
                               target + row, distances, lanes + g);
      }
    }
  }
};

// The gradients, without the classes at the targets; zeros where the scale is 0. They may replace
// the logits. lanes, gradients: [groups]. scale: of each row, in whole groups. out: [rows], whose
// classes are out_stride apart.
template <class T>
struct WriteLongColumnGradients {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(ColumnGroups<T> groups, const RowLanes<A>* lanes,
                                  const GradientLanes<A>* gradients, const A* scale,
                                  const A* class_weight, T* const* out, int64_t out_stride) {
    for (int64_t first = 0; first < groups.classes; first += kColumnBlock) {
      const int64_t end = std::min(first + kColumnBlock, groups.classes);
      for (int g = 0; g < groups.number(); g++) {
        const T* const* x = groups.x + g * kLanes;
        T* const* to = out + g * kLanes;
        const int count = std::min(kLanes, groups.rows - g * kLanes);
        const bool neighbours = groups.neighbours(g), together = are_neighbours(to, count);
        const RowSlopes<A, kBytes> slopes(gradients + g, class_weight);
        Lanes<A, kBytes> m, factor, zero;
        m.load(lanes[g].m), factor.load(scale + g * kLanes), zero.fill(0);
        for (int64_t c = first; c < end; c++) {
          Lanes<A, kBytes> v, below;
          load_class<T, kBytes>(x, c * groups.stride, kColumnBlock * groups.stride, neighbours, &v);
          v.to_exponentials(m, &below);
          slopes.apply(c, &v);
          v.replace(factor, zero, A{0});
          if (together) {
            v.store(to[0] + c * out_stride);
          } else {
            A column[kLanes];
            v.store(column);
            for (int l = 0; l < count; l++) to[l][c * out_stride] = narrow<T>(column[l]);
          }
        }
      }
    }
  }
};

}  // namespace cpu
}  // namespace dynprune
