// SPDX-License-Identifier: Apache-2.0
// Statistics and scores of rows in vector code. A long row is read in chunks that stay in the first
// cache: the chunk's maximum, then its exponentials and their sums in independent lanes. Rows that
// are one chunk go some at a time. Short rows are turned round, so that every lane holds a row. In
// every case the exponentials can be kept, and the gradient is then one multiplication per class.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/clones.h"
#include "cpu/vector_math.h"
#include "primitives/cross_entropy_row.h"

namespace dynprune {
namespace cpu {

constexpr int kLanes = 16;         // sums side by side, and rows that are finished together
constexpr int kChunk = 1024;       // classes
constexpr int kShortClasses = 32;  // at most: rows are turned round

// A vector of 32 bytes. Accumulators of a loop are declared so: in an array of numbers g++ would
// write them back at every step.
template <class A>
struct WideOf {
  typedef A type __attribute__((vector_size(32)));
};
template <class A>
using Wide = typename WideOf<A>::type;
template <class A>
constexpr int kWideLanes = 32 / sizeof(A);
template <class A>
constexpr int kWides = kLanes / kWideLanes<A>;  // to hold a number per lane

template <class A>
inline __attribute__((always_inline)) void load_wide(const A* x, int w, Wide<A>* v) {
  memcpy(v, x + w * kWideLanes<A>, sizeof(*v));
}
template <class A>
inline __attribute__((always_inline)) void store_wide(A* x, int w, const Wide<A>& v) {
  memcpy(x + w * kWideLanes<A>, &v, sizeof(v));
}

// One number per row of a group.
template <class A>
struct RowLanes {
  A m[kLanes], s[kLanes], q[kLanes], t[kLanes], x_y[kLanes];  // RowStats, logit of the target
  A nll[kLanes], el2n[kLanes], entropy[kLanes], margin[kLanes];
  A max[kLanes], log_normaliser[kLanes], miss[kLanes];

  RowStats<A> stats(int l) const { return {m[l], s[l], q[l], t[l]}; }
  RowResult<A> result(int l) const {
    return {nll[l], el2n[l], entropy[l], margin[l], max[l], log_normaliser[l], miss[l]};
  }
  void set_stats(int l, const RowStats<A>& r) { m[l] = r.m, s[l] = r.s, q[l] = r.q, t[l] = r.t; }
  void set_result(int l, const RowResult<A>& r) {
    nll[l] = r.nll, el2n[l] = r.el2n, entropy[l] = r.entropy, margin[l] = r.margin;
    max[l] = r.max, log_normaliser[l] = r.log_normaliser, miss[l] = r.miss;
  }
};

// finish_row in every lane. A lane with an infinity or NaN comes out as nonsense.
inline DYNPRUNE_CLONES void finish_ordinary_lanes(RowLanes<float>* r) {
  for (int l = 0; l < kLanes; l++) {
    const float log_s = log_positive(r->s[l]);
    const float ratio = 1.0f + r->q[l] / (r->s[l] * r->s[l]);
    const float others_entropy = log_s - r->t[l] / r->s[l];
    const float margin = r->x_y[l] - r->m[l];
    const float d = log_s - margin;
    const float e = exp_nonpositive(d > 0 ? -d : d);
    const float softplus = log1p_unit(e);  // of -|d|
    const float larger = 1.0f / (1.0f + e), smaller = e / (1.0f + e);
    const float hit = d > 0 ? smaller : larger, miss = d > 0 ? larger : smaller;
    const float nll = d > 0 ? d + softplus : softplus;
    const float other_nll = d > 0 ? softplus : softplus - d;
    r->nll[l] = nll;
    r->el2n[l] = miss * sqrtf(ratio);
    r->entropy[l] = hit * nll + miss * (other_nll + others_entropy);
    r->margin[l] = margin;
    r->max[l] = margin >= 0 ? r->x_y[l] : r->m[l];
    r->log_normaliser[l] = margin >= 0 ? nll : log_s + softplus;
    r->miss[l] = miss;
  }
}

// The results of the first `count` lanes from their statistics.
inline void finish_lanes(RowLanes<float>* r, int count) {
  finish_ordinary_lanes(r);
  constexpr float kGreatest = 1e37f;
  for (int l = 0; l < count; l++) {
    const bool ordinary = r->s[l] > 0 && r->s[l] < kGreatest && r->margin[l] < kGreatest &&
                          r->margin[l] > -kGreatest && r->x_y[l] < kGreatest &&
                          r->x_y[l] > -kGreatest;
    if (!ordinary) r->set_result(l, finish_row(r->stats(l), r->x_y[l]));
  }
}
inline void finish_lanes(RowLanes<double>* r, int count) {
  for (int l = 0; l < count; l++) r->set_result(l, finish_row(r->stats(l), r->x_y[l]));
}

// ---- a row in chunks; lengths are multiples of kLanes

// Sum and greatest of a number per lane, by halves: short chains, and the same in every clone.
template <class A>
inline __attribute__((always_inline)) A sum_of(const Wide<A>* v) {
  Wide<A> sum = v[0];
  for (int w = 1; w < kWides<A>; w++) sum += v[w];
  A x[kWideLanes<A>];
  memcpy(x, &sum, sizeof(x));
  for (int half = kWideLanes<A> / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; l++) x[l] += x[l + half];
  }
  return x[0];
}
template <class A>
inline __attribute__((always_inline)) A greatest_of(const Wide<A>* v) {
  Wide<A> greatest = v[0];
  for (int w = 1; w < kWides<A>; w++) greatest = v[w] > greatest ? v[w] : greatest;
  A x[kWideLanes<A>];
  memcpy(x, &greatest, sizeof(x));
  for (int half = kWideLanes<A> / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; l++) x[l] = x[l + half] > x[l] ? x[l + half] : x[l];
  }
  return x[0];
}

// A chunk in the compute type, filled up with what counts for nothing, as does the class at
// `target` if it lies in the chunk.
template <class T>
DYNPRUNE_CLONES void widen_chunk(const T* x, int count, int64_t target, compute_t<T>* out) {
  for (int i = 0; i < count; i++) out[i] = widen(x[i]);
  constexpr compute_t<T> kNothing = -__builtin_inf();
  for (int i = count; i % kLanes != 0; i++) out[i] = kNothing;
  if (target >= 0 && target < count) out[target] = kNothing;
}

// The statistics' sums side by side.
template <class A>
struct LaneSums {
  Wide<A> s[kWides<A>] = {}, q[kWides<A>] = {}, t[kWides<A>] = {};

  // Enters kLanes logits, relative to m; they become the exponentials. What is so far below that
  // its exponential is 0 is raised: its product with the distance must be 0 too, not NaN.
  inline __attribute__((always_inline)) void add(A* x, const A* m) {
    constexpr A kLeast = kLeastExponent<A>;
    A below[kLanes], e[kLanes];
    for (int l = 0; l < kLanes; l++) {
      const A distance = x[l] - m[l];
      below[l] = distance < kLeast ? kLeast : distance;
      e[l] = exp_in_range(below[l]);
    }
    for (int w = 0; w < kWides<A>; w++) {
      Wide<A> v, distance;
      load_wide(e, w, &v);
      load_wide(below, w, &distance);
      v = distance <= kLeast ? Wide<A>{} : v;
      store_wide(x, w, v);
      s[w] += v;
      q[w] += v * v;
      t[w] += v * distance;
    }
  }
};

// The greatest element of x and `least`.
template <class A>
DYNPRUNE_CLONES A chunk_max(const A* x, int count, A least) {
  Wide<A> greatest[kWides<A>];
  for (int w = 0; w < kWides<A>; w++) greatest[w] = Wide<A>{} + least;
  for (int i = 0; i < count; i += kLanes) {
    for (int w = 0; w < kWides<A>; w++) {
      Wide<A> v;
      load_wide(x + i, w, &v);
      greatest[w] = v > greatest[w] ? v : greatest[w];
    }
  }
  return greatest_of<A>(greatest);
}

// Statistics of x relative to m. x becomes the exponentials.
template <class A>
DYNPRUNE_WIDE_CLONES RowStats<A> chunk_stats(A* x, int count, A m) {
  A lanes_m[kLanes];
  for (int l = 0; l < kLanes; l++) lanes_m[l] = m;
  LaneSums<A> sums;
  for (int i = 0; i < count; i += kLanes) sums.add(x + i, lanes_m);
  return {m, sum_of<A>(sums.s), sum_of<A>(sums.q), sum_of<A>(sums.t)};
}

template <class A>
DYNPRUNE_CLONES void multiply(A* x, int64_t count, A factor) {
  for (int64_t i = 0; i < count; i++) x[i] *= factor;
}

inline int64_t round_up_to_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// A row of more than kChunk classes. kept: [classes rounded up to kLanes] the exponentials relative
// to the maximum, or null.
template <class T>
RowStats<compute_t<T>> long_row_stats(const T* x, int64_t classes, int64_t target,
                                      compute_t<T>* kept) {
  using A = compute_t<T>;
  A chunk[kChunk];
  RowStats<A> stats = RowStats<A>::none();
  for (int64_t first = 0; first < classes; first += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, classes - first));
    A* e = kept != nullptr ? kept + first : chunk;
    widen_chunk(x + first, count, target - first, e);
    // A chunk that raises the maximum makes what was kept before too large; usually none does after
    // the first few.
    const int padded = static_cast<int>(round_up_to_lanes(count));
    const RowStats<A> part = chunk_stats(e, padded, chunk_max(e, padded, stats.m));
    if (kept != nullptr && first > 0 && part.m > stats.m) {
      multiply(kept, first, exp_of(stats.m - part.m));
    }
    if (first == 0) {
      stats = part;
    } else {
      stats.merge(part);
    }
  }
  return stats;
}

// Rows of at most kChunk classes. Each step is taken for some rows before the next, so that none
// waits for the end of the one before. kept: [count][padded] the exponentials.
template <class T>
void medium_rows_stats(const T* const* x, const int64_t* target, int count, int64_t classes,
                       int padded, RowLanes<compute_t<T>>* lanes, compute_t<T>* kept) {
  using A = compute_t<T>;
  constexpr int kAtOnce = 4;
  for (int first = 0; first < count; first += kAtOnce) {
    const int end = std::min(first + kAtOnce, count);
    A m[kAtOnce];
    for (int l = first; l < end; l++) {
      widen_chunk(x[l], static_cast<int>(classes), target[l], kept + l * padded);
    }
    for (int l = first; l < end; l++) {
      m[l - first] = chunk_max(kept + l * padded, padded, Limits<A>::lowest());
    }
    for (int l = first; l < end; l++) {
      lanes->set_stats(l, chunk_stats(kept + l * padded, padded, m[l - first]));
    }
  }
}

// ---- short rows, a row per lane

// x: [classes][kLanes], the target's logit -inf; becomes the exponentials.
template <class A>
DYNPRUNE_WIDE_CLONES void short_rows_stats(A* x, int64_t classes, RowLanes<A>* r) {
  Wide<A> greatest[kWides<A>];
  for (int w = 0; w < kWides<A>; w++) greatest[w] = Wide<A>{} + Limits<A>::lowest();
  for (int64_t c = 0; c < classes; c++) {
    for (int w = 0; w < kWides<A>; w++) {
      Wide<A> v;
      load_wide(x + c * kLanes, w, &v);
      greatest[w] = v > greatest[w] ? v : greatest[w];
    }
  }
  for (int w = 0; w < kWides<A>; w++) store_wide(r->m, w, greatest[w]);
  LaneSums<A> sums;
  for (int64_t c = 0; c < classes; c++) sums.add(x + c * kLanes, r->m);
  for (int w = 0; w < kWides<A>; w++) {
    store_wide(r->s, w, sums.s[w]);
    store_wide(r->q, w, sums.q[w]);
    store_wide(r->t, w, sums.t[w]);
  }
}

// x: [classes][kLanes]
template <class A>
DYNPRUNE_CLONES void multiply_lanes(A* x, int64_t classes, const A* factor) {
  for (int64_t c = 0; c < classes; c++) {
    for (int l = 0; l < kLanes; l++) x[c * kLanes + l] *= factor[l];
  }
}

}  // namespace cpu
}  // namespace dynprune
