// SPDX-License-Identifier: Apache-2.0
// Statistics, scores and gradients of rows that are transposed, so that every lane holds a row:
// short rows, and rows whose classes are apart.
#pragma once

#include "cpu/scoring/score_rows.h"

namespace dynprune {
namespace cpu {

constexpr int kShortClasses = 32;  // at most: rows are transposed

// Whether rows that are neighbours in memory fill all lanes.
template <class Pointer>
DYNPRUNE_INLINE bool are_neighbours(const Pointer* row, int count) {
  for (int l = 1; l < count; l++) {
    if (row[l] != row[0] + l) return false;
  }
  return count == kLanes;
}

// Vectors of four numbers and vectors of kBytes that consist of these. Not by memcpy where GCC can
// do without: a vector that was written in parts is read from memory late.
template <class Four, class Vector>
DYNPRUNE_INLINE void join_fours(const Four* four, Vector* v) {
#if __GNUC__ >= 12
  if constexpr (sizeof(Vector) == 32) {
    *v = __builtin_shufflevector(four[0], four[1], 0, 1, 2, 3, 4, 5, 6, 7);
    return;
  } else if constexpr (sizeof(Vector) == 64) {
    const auto low = __builtin_shufflevector(four[0], four[1], 0, 1, 2, 3, 4, 5, 6, 7);
    const auto high = __builtin_shufflevector(four[2], four[3], 0, 1, 2, 3, 4, 5, 6, 7);
    *v = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return;
  }
#endif
  memcpy(v, four, sizeof(*v));
}
template <class Four, class Vector>
DYNPRUNE_INLINE void split_fours(const Vector& v, Four* four) {
#if __GNUC__ >= 12
  if constexpr (sizeof(Vector) > 16) {
    four[0] = __builtin_shufflevector(v, v, 0, 1, 2, 3);
    four[1] = __builtin_shufflevector(v, v, 4, 5, 6, 7);
    if constexpr (sizeof(Vector) == 64) {
      four[2] = __builtin_shufflevector(v, v, 8, 9, 10, 11);
      four[3] = __builtin_shufflevector(v, v, 12, 13, 14, 15);
    }
    return;
  }
#endif
  memcpy(four, &v, sizeof(v));
}

// Four numbers of each of kLanes rows. Vector w of v[i] has row i of each four rows from
// w kPerVector on. Transposing then moves no number to another quarter of a vector.
template <int kBytes>
struct FoursOfRows {
  using L = Lanes<float, kBytes>;
  using Vector = typename L::Vector;
  using Four = typename VectorOf<float, 16>::type;
  using Places = decltype(Vector{} < Vector{});  // integers as wide
  static constexpr int kFours = kBytes / static_cast<int>(sizeof(Four));

  L v[4];

  // row: [kLanes], each from its class `from` on.
  DYNPRUNE_INLINE void load(const float* const* row, int from) {
    for (int i = 0; i < 4; i++) {
      for (int w = 0; w < L::kVectors; w++) {
        Four four[kFours];
        for (int k = 0; k < kFours; k++) {
          memcpy(&four[k], row[w * L::kPerVector + 4 * k + i] + from, sizeof(Four));
        }
        join_fours(four, &v[i].v[w]);
      }
    }
  }
  DYNPRUNE_INLINE void store(float* const* row, int from) const {
    for (int i = 0; i < 4; i++) {
      for (int w = 0; w < L::kVectors; w++) {
        Four four[kFours];
        split_fours(v[i].v[w], four);
        for (int k = 0; k < kFours; k++) {
          memcpy(row[w * L::kPerVector + 4 * k + i] + from, &four[k], sizeof(Four));
        }
      }
    }
  }

  // v[i] becomes number i of all rows in order, or the other way round.
  DYNPRUNE_INLINE void transpose() {
    Places low, high, first, last;
    for (int l = 0; l < L::kPerVector; l++) {
      const int four = l / 4 * 4, i = l % 4, other = L::kPerVector;
      low[l] = four + i / 2 + i % 2 * other, high[l] = low[l] + 2;
      first[l] = four + i % 2 + i / 2 * other, last[l] = first[l] + 2;
    }
    for (int w = 0; w < L::kVectors; w++) {
      const Vector a = __builtin_shuffle(v[0].v[w], v[1].v[w], low);
      const Vector b = __builtin_shuffle(v[2].v[w], v[3].v[w], low);
      const Vector c = __builtin_shuffle(v[0].v[w], v[1].v[w], high);
      const Vector d = __builtin_shuffle(v[2].v[w], v[3].v[w], high);
      v[0].v[w] = __builtin_shuffle(a, b, first), v[1].v[w] = __builtin_shuffle(a, b, last);
      v[2].v[w] = __builtin_shuffle(c, d, first), v[3].v[w] = __builtin_shuffle(c, d, last);
    }
  }
};

// columns: [classes][kLanes], from kLanes rows.
template <class T, int kBytes>
DYNPRUNE_INLINE void rows_to_columns(const T* const* x, int classes, compute_t<T>* columns) {
  if constexpr (std::is_same<T, float>::value) {
    for (int c = 0; c < classes && classes >= 4; c += 4) {
      const int from = std::min(c, classes - 4);  // the last ones overlap
      FoursOfRows<kBytes> fours;
      fours.load(x, from);
      fours.transpose();
      for (int i = 0; i < 4; i++) fours.v[i].store(columns + (from + i) * kLanes);
    }
    if (classes >= 4) return;
  }
  for (int l = 0; l < kLanes; l++) {
    for (int c = 0; c < classes; c++) columns[c * kLanes + l] = widen(x[l][c]);
  }
}

// A row per lane; target: [kLanes]; kept: [classes][kLanes] the logits, become the exponentials.
template <class A, int kBytes>
DYNPRUNE_INLINE void score_lanes(const int64_t* target, int64_t classes,
                                 const ClassDistances<A>& distances, RowLanes<A>* r, A* kept) {
  using L = Lanes<A, kBytes>;
  L y, number, greatest, x_y, distance;
  y.load_numbers(target);
  number.fill(0);
  greatest.fill(Limits<A>::lowest());
  x_y.fill(0);
  for (int64_t c = 0; c < classes; c++) {
    L v;
    v.load(kept + c * kLanes);
    x_y.replace(number, y, v);
    v.replace(number, y, -Limits<A>::infinity());
    v.store(kept + c * kLanes);
    greatest.raise_to(v);
    number.add(1);
  }
  greatest.store(r->m), x_y.store(r->x_y);
  LaneSums<A, kBytes> sums;
  sums.clear();
  number.fill(0), distance.fill(0);
  for (int64_t c = 0; c < classes; c++) {
    L v, below;
    v.load(kept + c * kLanes);
    if (distances.of_rows != nullptr) {
      L d = v;
      d.replace(number, y, x_y);
      d.subtract(x_y);
      if (distances.class_weight != nullptr) d.multiply(distances.class_weight[c]);
      distance.add(d);
      number.add(1);
    }
    v.to_exponentials(greatest, &below);
    v.store(kept + c * kLanes);
    sums.add(v, below);
  }
  sums.s.store(r->s), sums.q.store(r->q), sums.t.store(r->t);
  if (distances.of_rows != nullptr) distance.store(distances.of_rows);
}

// x: [kLanes] rows, which can all be read. target: [kLanes]. kept: [classes][kLanes] the
// exponentials.
template <class T>
struct ScoreShortRows {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* const* x, const int64_t* target, int classes,
                                  ClassDistances<A> distances, RowLanes<A>* r, A* kept) {
    rows_to_columns<T, kBytes>(x, classes, kept);
    score_lanes<A, kBytes>(target, classes, distances, r, kept);
  }
};

// The same of rows whose classes are `stride` apart. Rows that are neighbours are read together.
template <class T>
struct ScoreColumns {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* const* x, int64_t stride, const int64_t* target,
                                  int count, int64_t classes, ClassDistances<A> distances,
                                  RowLanes<A>* r, A* kept) {
    if (are_neighbours(x, count)) {
      for (int64_t c = 0; c < classes; c++) {
        Lanes<A, kBytes> v;
        v.load(x[0] + c * stride);
        v.store(kept + c * kLanes);
      }
    } else {
      for (int64_t c = 0; c < classes; c++) {
        for (int l = 0; l < kLanes; l++) kept[c * kLanes + l] = widen(x[l][c * stride]);
      }
    }
    score_lanes<A, kBytes>(target, classes, distances, r, kept);
  }
};

// What makes gradients of the exponentials of kLanes rows.
template <class A, int kBytes>
struct RowSlopes {
  Lanes<A, kBytes> factor, uniform;
  bool smooth;
  const A* class_weight;

  DYNPRUNE_INLINE RowSlopes(const GradientLanes<A>* g, const A* weight)
      : smooth(g->smooth), class_weight(weight) {
    factor.load(g->factor);
    uniform.load(g->uniform);
  }
  // Of class c.
  DYNPRUNE_INLINE void apply(int64_t c, Lanes<A, kBytes>* v) const {
    v->multiply(factor);
    if (!smooth) return;
    Lanes<A, kBytes> u = uniform;
    if (class_weight != nullptr) u.multiply(class_weight[c]);
    v->subtract(u);
  }
};

// Their gradients. target: [kLanes], out: [count] rows.
template <class T>
struct WriteShortGradients {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const A* kept, int classes, int count, const int64_t* target,
                                  const GradientLanes<A>* g, const A* class_weight, T* const* out) {
    using L = Lanes<A, kBytes>;
    L at_target, y;
    at_target.load(g->at_target);
    y.load_numbers(target);
    const RowSlopes<A, kBytes> slopes(g, class_weight);
    const auto gradient = [&](int c, L* v) __attribute__((always_inline)) {
      L number;
      number.fill(static_cast<A>(c));
      v->load(kept + c * kLanes);
      slopes.apply(c, v);
      v->replace(number, y, at_target);
    };
    if constexpr (std::is_same<T, float>::value) {
      for (int c = 0; c < classes && count == kLanes && classes >= 4; c += 4) {
        const int from = std::min(c, classes - 4);  // the last ones overlap
        FoursOfRows<kBytes> fours;
        for (int i = 0; i < 4; i++) gradient(from + i, &fours.v[i]);
        fours.transpose();
        fours.store(out, from);
      }
      if (count == kLanes && classes >= 4) return;
    }
    for (int c = 0; c < classes; c++) {
      A column[kLanes];
      L v;
      gradient(c, &v);
      v.store(column);
      for (int l = 0; l < count; l++) out[l][c] = narrow<T>(column[l]);
    }
  }
};

// The same of rows whose classes are `stride` apart, without the classes at the targets.
template <class T>
struct WriteColumnGradients {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const A* kept, int64_t classes, int count,
                                  const GradientLanes<A>* g, const A* class_weight, T* const* out,
                                  int64_t stride) {
    const bool neighbours = are_neighbours(out, count);
    const RowSlopes<A, kBytes> slopes(g, class_weight);
    for (int64_t c = 0; c < classes; c++) {
      Lanes<A, kBytes> v;
      v.load(kept + c * kLanes);
      slopes.apply(c, &v);
      if (neighbours) {
        v.store(out[0] + c * stride);
      } else {
        A column[kLanes];
        v.store(column);
        for (int l = 0; l < count; l++) out[l][c * stride] = narrow<T>(column[l]);
      }
    }
  }
};

}  // namespace cpu
}  // namespace dynprune
