// SPDX-License-Identifier: Apache-2.0
// Statistics and scores of rows in vector code. A long row is read in chunks that stay in the first
// cache: the chunk's maximum, then its exponentials, then their sums in independent lanes. Short
// rows are turned round, so that every lane holds a row. Either way the exponentials can be kept,
// and the gradient is then one multiplication per class.
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

template <class T>
DYNPRUNE_CLONES void widen_chunk(const T* x, int count, compute_t<T>* out) {
  for (int i = 0; i < count; i++) out[i] = widen(x[i]);
}

template <class A>
DYNPRUNE_CLONES A max_of(const A* x, int count) {
  Wide<A> greatest[kWides<A>];
  for (int w = 0; w < kWides<A>; w++) greatest[w] = Wide<A>{} + Limits<A>::lowest();
  for (int i = 0; i < count; i += kLanes) {
    for (int w = 0; w < kWides<A>; w++) {
      Wide<A> v;
      load_wide(x + i, w, &v);
      greatest[w] = v > greatest[w] ? v : greatest[w];
    }
  }
  A max = Limits<A>::lowest();
  for (int l = 0; l < kLanes; l++) {
    const A v = greatest[l / kWideLanes<A>][l % kWideLanes<A>];
    max = v > max ? v : max;
  }
  return max;
}

// e = e^(x - m). x becomes x - m, or what is so far below that e is 0: the product of both must be
// 0 then, not NaN.
template <class A>
DYNPRUNE_CLONES void exponentials(A* x, int count, A m, A* e) {
  constexpr A kNothing = -1000;
  for (int i = 0; i < count; i++) {
    const A below = x[i] - m;
    const A clamped = below < kNothing ? kNothing : below;
    x[i] = clamped;
    e[i] = exp_nonpositive(clamped);
  }
}

// Sums over steps of kLanes, each lane for itself: s of e, q of e^2, t of e x.
template <class A>
DYNPRUNE_CLONES void lane_sums(const A* x, const A* e, int64_t count, A* s_out, A* q_out,
                               A* t_out) {
  for (int w = 0; w < kWides<A>; w++) {
    Wide<A> s{}, q{}, t{};
    for (int64_t i = 0; i < count; i += kLanes) {
      Wide<A> v, shifted;
      load_wide(e + i, w, &v);
      load_wide(x + i, w, &shifted);
      s += v;
      q += v * v;
      t += v * shifted;
    }
    store_wide(s_out, w, s);
    store_wide(q_out, w, q);
    store_wide(t_out, w, t);
  }
}

template <class A>
RowStats<A> sums_of(const A* x, const A* e, int count, A m) {
  A s[kLanes], q[kLanes], t[kLanes];
  lane_sums(x, e, count, s, q, t);
  RowStats<A> sums{m, 0, 0, 0};
  for (int l = 0; l < kLanes; l++) sums.s += s[l], sums.q += q[l], sums.t += t[l];
  return sums;
}

template <class A>
DYNPRUNE_CLONES void multiply(A* x, int64_t count, A factor) {
  for (int64_t i = 0; i < count; i++) x[i] *= factor;
}

// kept: [classes rounded up to kLanes] the exponentials relative to the maximum, or null.
template <class T>
RowStats<compute_t<T>> long_row_stats(const T* x, int64_t classes, int64_t target,
                                      compute_t<T>* kept) {
  using A = compute_t<T>;
  A chunk[kChunk], exponential[kChunk];
  RowStats<A> stats = RowStats<A>::none();
  for (int64_t first = 0; first < classes; first += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, classes - first));
    const int padded = (count + kLanes - 1) / kLanes * kLanes;
    widen_chunk(x + first, count, chunk);
    for (int i = count; i < padded; i++) chunk[i] = -Limits<A>::infinity();
    if (target >= first && target < first + count) chunk[target - first] = -Limits<A>::infinity();
    A* e = kept != nullptr ? kept + first : exponential;
    // A chunk that raises the maximum makes what was kept before too large; usually none does after
    // the first few.
    const A greatest = max_of(chunk, padded), m = std::max(greatest, stats.m);
    exponentials(chunk, padded, m, e);
    const RowStats<A> part = sums_of(chunk, e, padded, m);
    if (first == 0) {
      stats = part;
      continue;
    }
    if (kept != nullptr && m > stats.m) multiply(kept, first, exp_of(stats.m - m));
    stats.merge(part);
  }
  return stats;
}

// ---- short rows, a row per lane

// The greatest of each lane's [classes] logits, which are then subtracted from them.
template <class A>
DYNPRUNE_CLONES void subtract_lane_max(A* x, int64_t classes, A* m) {
  for (int w = 0; w < kWides<A>; w++) {
    Wide<A> greatest = Wide<A>{} + Limits<A>::lowest(), v;
    for (int64_t c = 0; c < classes; c++) {
      load_wide(x + c * kLanes, w, &v);
      greatest = v > greatest ? v : greatest;
    }
    for (int64_t c = 0; c < classes; c++) {
      load_wide(x + c * kLanes, w, &v);
      store_wide(x + c * kLanes, w, v - greatest);
    }
    store_wide(m, w, greatest);
  }
}

// x: [classes][kLanes], the target's logit -inf; becomes x - m. e: the exponentials.
template <class A>
void short_rows_stats(A* x, int64_t classes, RowLanes<A>* r, A* e) {
  subtract_lane_max(x, classes, r->m);
  exponentials(x, static_cast<int>(classes) * kLanes, A{0}, e);
  lane_sums(x, e, classes * kLanes, r->s, r->q, r->t);
}

}  // namespace cpu
}  // namespace dynprune
