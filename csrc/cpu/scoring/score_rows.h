// SPDX-License-Identifier: Apache-2.0
// Statistics and scores of rows in vector code. A row is read in chunks that stay in the first
// cache: the chunk's maximum, then its exponentials and their sums in independent lanes. The
// exponentials can be kept. The gradient is then one multiplication per class.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/scoring/lanes.h"
#include "shared/cross_entropy_row.h"

namespace dynprune {
namespace cpu {

constexpr int kChunk = 1024;  // classes

// One number per row of a group.
template <class A>
struct RowLanes {
  A m[kLanes], s[kLanes], q[kLanes], t[kLanes], x_y[kLanes];  // RowStats, logit of the target
  A nll[kLanes], el2n[kLanes], entropy[kLanes], margin[kLanes];
  A max[kLanes], log_normaliser[kLanes], miss[kLanes];
  A share[kLanes];  // what the exponentials are multiplied with to be probabilities

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

// What makes the gradients of a group's rows of the exponentials e_c, RowGradient of each row:
// factor e_c - uniform w_c, but at_target at the target.
template <class A>
struct GradientLanes {
  A factor[kLanes], at_target[kLanes];
  A uniform[kLanes];
  bool smooth;  // else `uniform` is 0
};

// Where sum_c w_c (x_c - x_y) of each row is written, for label smoothing.
template <class A>
struct ClassDistances {
  A* of_rows;             // [kLanes], or null
  const A* class_weight;  // [C], or null for ones
};

// finish_row in every lane. A lane with an infinity or NaN comes out as nonsense.
DYNPRUNE_INLINE void finish_ordinary_lanes(RowLanes<float>* r) {
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

// Whether finish_ordinary_lanes is right in a lane.
DYNPRUNE_INLINE bool is_ordinary(float s, float x_y, float margin) {
  constexpr float kGreatest = 1e37f;
  return (s > 0) & (s < kGreatest) & (fabsf(x_y) < kGreatest) & (fabsf(margin) < kGreatest);
}

// The results of the first `count` lanes from their statistics.
DYNPRUNE_INLINE void finish_lanes(RowLanes<float>* r, int count) {
  finish_ordinary_lanes(r);
  int32_t special = 0;  // lanes; counted in a loop that becomes vector code
  for (int l = 0; l < kLanes; l++) special += !is_ordinary(r->s[l], r->x_y[l], r->margin[l]);
  for (int l = 0; l < count && special > 0; l++) {
    if (!is_ordinary(r->s[l], r->x_y[l], r->margin[l])) {
      r->set_result(l, finish_row(r->stats(l), r->x_y[l]));
    }
  }
}
DYNPRUNE_INLINE void finish_lanes(RowLanes<double>* r, int count) {
  for (int l = 0; l < count; l++) r->set_result(l, finish_row(r->stats(l), r->x_y[l]));
}

// What the exponentials are multiplied with to be probabilities. For j != y, it is miss / s in
// p_j = e^(x_j - m) miss / s. Without any other class that counts, miss is 0, or NaN in a broken
// row.
template <class A>
DYNPRUNE_INLINE void finish_rows(RowLanes<A>* r, int count) {
  finish_lanes(r, count);
  for (int l = 0; l < kLanes; l++) r->share[l] = r->s[l] == 0 ? r->miss[l] : r->miss[l] / r->s[l];
}

// The same by vectors of every width.
template <class A>
struct FinishRows {
  template <int kBytes>
  static DYNPRUNE_INLINE void run(RowLanes<A>* r, int count) {
    finish_rows(r, count);
  }
};

// ---- a row in chunks

// The classes behind the last whole group of kLanes are read together with some before them.
DYNPRUNE_INLINE int first_of_rest(int count) { return count > kLanes ? count - kLanes : 0; }

// Loads a chunk, with -inf in place of the class at `target`, and returns its maximum, at least
// `least`. e: [count rounded up to kLanes], gets whole groups of kLanes classes. rest: the other
// classes, from first_of_rest(count) on.
template <class T, int kBytes>
DYNPRUNE_INLINE compute_t<T> load_chunk(const T* x, int count, int64_t target, compute_t<T> least,
                                        compute_t<T>* e, Lanes<compute_t<T>, kBytes>* rest) {
  using A = compute_t<T>;
  using L = Lanes<A, kBytes>;
  constexpr A kNothing = -__builtin_inf();
  const int whole = count / kLanes * kLanes;
  L index, y, greatest;
  y.fill(static_cast<A>(target));
  greatest.fill(least);
  index.count_from(0);
  for (int i = 0; i < whole; i += kLanes) {
    L v;
    v.load(x + i);
    v.replace(index, y, kNothing);
    v.store(e + i);
    greatest.raise_to(v);
    index.advance();
  }
  rest->fill(0);
  if (whole < count) {
    if (count > kLanes) {
      rest->load(x + count - kLanes);
    } else {
      A few[kLanes];
      for (int i = 0; i < kLanes; i++) few[i] = i < count ? static_cast<A>(widen(x[i])) : kNothing;
      rest->load(few);
    }
    index.count_from(static_cast<A>(first_of_rest(count)));
    rest->replace(index, y, kNothing);
    greatest.raise_to(*rest);
  }
  return greatest.greatest();
}

// Replaces a chunk's logits by their exponentials relative to stats->m, and sums these. e and rest:
// as load_chunk leaves them.
template <class A, int kBytes>
DYNPRUNE_INLINE void sum_chunk(int count, A* e, Lanes<A, kBytes>* rest, RowStats<A>* stats) {
  using L = Lanes<A, kBytes>;
  const int whole = count / kLanes * kLanes;
  L m, below;
  m.fill(stats->m);
  LaneSums<A, kBytes> sums;
  sums.clear();
  for (int i = 0; i < whole; i += kLanes) {
    L v;
    v.load(e + i);
    v.to_exponentials(m, &below);
    v.store(e + i);
    sums.add(v, below);
  }
  if (whole < count) {
    rest->to_exponentials(m, &below);
    rest->store(e + first_of_rest(count));  // for the classes before the rest, the same again
    L index;
    index.count_from(static_cast<A>(first_of_rest(count)));
    rest->clear_below(index, static_cast<A>(whole));  // these must not count twice
    sums.add(*rest, below);
  }
  stats->s = sums.s.sum(), stats->q = sums.q.sum(), stats->t = sums.t.sum();
}

// Statistics of a chunk without the class at `target`, if that lies in it, relative to the chunk's
// maximum and at least `least`. e: as for load_chunk, becomes the exponentials.
template <class T, int kBytes>
DYNPRUNE_INLINE void chunk_stats(const T* x, int count, int64_t target, compute_t<T> least,
                                 compute_t<T>* e, RowStats<compute_t<T>>* stats) {
  Lanes<compute_t<T>, kBytes> rest;
  stats->m = load_chunk<T, kBytes>(x, count, target, least, e, &rest);
  sum_chunk(count, e, &rest, stats);
}

template <class T>
struct ScoreChunk {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* x, int count, int64_t target, A least, A* e,
                                  RowStats<A>* stats) {
    chunk_stats<T, kBytes>(x, count, target, least, e, stats);
  }
};

template <class A>
DYNPRUNE_CLONES void multiply(A* x, int64_t count, A factor) {
  for (int64_t i = 0; i < count; i++) x[i] *= factor;
}

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
    RowStats<A> part;
    run_widest<ScoreChunk<T>>(x + first, count, target - first, stats.m, e, &part);
    // A chunk that raises the maximum makes what was kept before too large; usually none does after
    // the first few.
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

// Rows of one chunk each. x: [count] rows, target: [count], kept: [count][padded] the exponentials.
template <class T>
struct ScoreMediumRows {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* const* x, const int64_t* target, int count, int classes,
                                  int padded, RowLanes<A>* lanes, A* kept) {
    for (int l = 0; l < count; l++) {
      RowStats<A> stats;
      chunk_stats<T, kBytes>(x[l], classes, target[l], Limits<A>::lowest(), kept + l * padded,
                             &stats);
      lanes->set_stats(l, stats);
    }
  }
};

// Gradients of rows with more than kShortClasses classes, without the classes at the targets.
// kept: [count][padded] the exponentials, out: [count] rows.
template <class T>
struct WriteGradients {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const A* kept, int64_t padded, int64_t classes, int count,
                                  const GradientLanes<A>* g, const A* class_weight, T* const* out) {
    using L = Lanes<A, kBytes>;
    const auto write = [&](int l, const auto& uniform_part) __attribute__((always_inline)) {
      L factor;
      factor.fill(g->factor[l]);
      const A* e = kept + l * padded;
      for (int64_t c = 0; c < classes; c += kLanes) {
        const int64_t from = std::min(c, classes - kLanes);  // the last ones overlap
        L v;
        v.load(e + from);
        v.multiply(factor);
        uniform_part(from, &v);
        v.store(out[l] + from);
      }
    };
    for (int l = 0; l < count; l++) {
      L uniform;
      uniform.fill(g->uniform[l]);
      if (!g->smooth) {
        write(l, [](int64_t, L*) __attribute__((always_inline)) {});
        continue;
      }
      write(l, [&](int64_t from, L* v) __attribute__((always_inline)) {
        L u = uniform;
        if (class_weight != nullptr) {
          u.load(class_weight + from);
          u.multiply(uniform);
        }
        v->subtract(u);
      });
    }
  }
};

}  // namespace cpu
}  // namespace dynprune
