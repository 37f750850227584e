// SPDX-License-Identifier: Apache-2.0
// Rows with probabilities as targets (shared/soft_row.h), one after the other, in vector code. A
// row is read for its two greatest logits, for the exponentials, which are kept, and with its
// probabilities. Behind the first reading it stays in the first caches.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scoring/score_rows.h"
#include "shared/soft_row.h"

namespace dynprune {
namespace cpu {

// The greatest number of every lane and its first class; -inf and -1 without one.
template <class A, int kBytes>
struct GreatestLanes {
  using Vector = typename Lanes<A, kBytes>::Vector;
  using Classes = decltype(Vector{} < Vector{});  // integers as wide as A
  static constexpr int kVectors = Lanes<A, kBytes>::kVectors;

  Lanes<A, kBytes> greatest;
  Classes where[kVectors], now[kVectors];  // `now`: the classes that come next

  DYNPRUNE_INLINE GreatestLanes() {
    greatest.fill(-Limits<A>::infinity());
    for (int w = 0; w < kVectors; w++) where[w] = Classes{} - 1;
    memcpy(now, kLaneNumbers<IndexOf<A>>.number, sizeof(now));
  }
  DYNPRUNE_INLINE void add(const Lanes<A, kBytes>& x) {
    for (int w = 0; w < kVectors; w++) {
      const auto greater = x.v[w] > greatest.v[w];
      greatest.v[w] = greater ? x.v[w] : greatest.v[w];
      where[w] = greater ? now[w] : where[w];
    }
  }
  DYNPRUNE_INLINE void advance() {
    for (int w = 0; w < kVectors; w++) now[w] += kLanes;
  }
  // Of all lanes.
  DYNPRUNE_INLINE void finish(A* value, int32_t* place) const {
    *value = greatest.greatest();
    IndexOf<A> places[kLanes], first = std::numeric_limits<int32_t>::max();
    for (int w = 0; w < kVectors; w++) {
      const Classes candidates = greatest.v[w] == Vector{} + *value ? where[w] : Classes{} + first;
      memcpy(places + w * Lanes<A, kBytes>::kPerVector, &candidates, sizeof(candidates));
    }
    for (int l = 0; l < kLanes; l++) first = places[l] < first ? places[l] : first;
    *place = static_cast<int32_t>(first);
  }
};

// The greatest number of a row and its first class, and the greatest of the other classes, -inf
// without one.
template <class T>
struct FindGreatest {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* x, int classes, A* value, int32_t* place, A* second) {
    using L = Lanes<A, kBytes>;
    GreatestLanes<A, kBytes> lanes;
    L runner_up;  // of every lane
    runner_up.fill(-Limits<A>::infinity());
    for (int c = 0; c < classes; c += kLanes) {
      L v, smaller;
      v.load_some(x + c, classes - c, -Limits<A>::infinity());
      for (int w = 0; w < L::kVectors; w++) {
        smaller.v[w] = v.v[w] < lanes.greatest.v[w] ? v.v[w] : lanes.greatest.v[w];
      }
      runner_up.raise_to(smaller);
      lanes.add(v);
      lanes.advance();
    }
    lanes.finish(value, place);
    for (int w = 0; w < L::kVectors; w++) {
      const auto has_greatest = lanes.where[w] == IndexOf<A>{*place};
      runner_up.v[w] = has_greatest ? runner_up.v[w] : lanes.greatest.v[w];
    }
    *second = runner_up.greatest();
  }
};

// Exponentials relative to m of at most kChunk classes, 0 at the class a and behind the last one,
// and their sums. e: [count rounded up to kLanes]. next_x, next_t: those of the next row, fetched
// ahead, since the processor itself stops fetching at the end of a page.
template <class T, class U>
struct SumExponentials {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* x, int count, int64_t a, A m, A* e, A* s, A* t,
                                  const T* next_x, const U* next_t) {
    using L = Lanes<A, kBytes>;
    L greatest, index, at, sum, weighted;
    greatest.fill(m), at.fill(static_cast<A>(a)), index.count_from(0);
    sum.fill(0), weighted.fill(0);
    for (int c = 0; c < count; c += kLanes) {
      L v, below;
      __builtin_prefetch(next_x + c), __builtin_prefetch(next_t + c);
      v.load_some(x + c, count - c, -Limits<A>::infinity());
      v.replace(index, at, -Limits<A>::infinity());
      index.advance();
      v.to_exponentials(greatest, &below);
      v.store(e + c);
      for (int w = 0; w < L::kVectors; w++) {
        sum.v[w] += v.v[w];
        weighted.v[w] += v.v[w] * below.v[w];
      }
    }
    *s = sum.sum(), *t = weighted.sum();
  }
};

// Adds what of a row depends on its probabilities t to `sums`, and sum_{j != a} (p_j - t_j)^2.
// e: the exponentials, which `factor` makes probabilities of.
template <class T, class U, bool kWeighted>
struct SumProbabilities {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* x, const U* t, const A* e, int classes, int32_t a,
                                  A factor, const SoftWeights<A>* weights, SoftSums<A>* sums,
                                  A* squares) {
    using L = Lanes<A, kBytes>;
    using Vector = typename L::Vector;
    const A max = sums->max, hard = weights->hard, uniform = weights->uniform;
    L weight, distance, errors;
    weight.fill(0), distance.fill(0), errors.fill(0);
    GreatestLanes<A, kBytes> tops;
    for (int c = 0; c < classes; c += kLanes) {
      const int count = classes - c;
      L logit, target, exponential, u;
      logit.load_some(x + c, count, 0), target.load_some(t + c, count, 0);
      exponential.load(e + c);
      if (kWeighted) u.load_some(weights->class_weight + c, count, 0);
      for (int w = 0; w < L::kVectors; w++) {
        const Vector smoothed = target.v[w] * hard + uniform;
        u.v[w] = kWeighted ? u.v[w] * smoothed : smoothed;
      }
      if (count < kLanes) {  // behind the last class
        L number;
        number.count_from(0);
        for (int w = 0; w < L::kVectors; w++) {
          const auto missing = number.v[w] >= Vector{} + static_cast<A>(count);
          u.v[w] = missing ? Vector{} : u.v[w];
        }
      }
      for (int w = 0; w < L::kVectors; w++) {
        weight.v[w] += u.v[w];
        const Vector term = u.v[w] * (max - logit.v[w]);
        distance.v[w] += u.v[w] == Vector{} ? Vector{} : term;
        const Vector error = exponential.v[w] * factor - target.v[w];
        const Vector square = error * error;
        errors.v[w] += tops.now[w] == IndexOf<A>{a} ? Vector{} : square;
      }
      if (count < kLanes) target.load_some(t + c, count, -Limits<A>::infinity());
      tops.add(target);
      tops.advance();
    }
    sums->weight = weight.sum(), sums->distance = distance.sum(), *squares = errors.sum();
    tops.finish(&sums->top, &sums->y);
  }
};

// The gradient but for the class a: e[c] factor - scale u_c.
template <bool kWeighted, class T, class U>
DYNPRUNE_CLONES void soft_gradient(const compute_t<T>* e, const U* t, int64_t classes,
                                   compute_t<T> factor, compute_t<T> scale,
                                   const SoftWeights<compute_t<T>>& weights, T* out) {
  const SoftWeights<compute_t<T>> u = weights;
  for (int64_t c = 0; c < classes; c++) {
    const compute_t<T> target = widen(t[c]);
    out[c] = narrow<T>(e[c] * factor - scale * u.template at<kWeighted>(c, target));
  }
}

// Scores of the rows of a task, and their gradients.
template <class T, class U>
class SoftRows {
 public:
  using A = compute_t<T>;

  SoftRows(const CrossEntropyInput& in, const SoftTarget& target, const CrossEntropyOutput& out)
      : in_(in), target_(target), out_(out), weights_(in) {
    kept_.resize(static_cast<size_t>(round_up_to_lanes(in.num_classes)));
  }

  // Writes the row's scores; returns them with the loss as nll.
  RowResult<A> score(int64_t row) {
    x_ = static_cast<const T*>(in_.logits) + row * in_.row_stride;
    t_ = static_cast<const U*>(target_.data) + row * target_.row_stride;
    const bool last = row + 1 == in_.batch_size;
    next_x_ = last ? x_ : x_ + in_.row_stride, next_t_ = last ? t_ : t_ + target_.row_stride;
    const int64_t classes = in_.num_classes;
    SoftSums<A> sums{};
    run_widest<FindGreatest<T>>(x_, static_cast<int>(classes), &sums.max, &a_, &sums.second);
    if (a_ < 0) a_ = 0;  // no number above -inf: the row's scores will be NaN
    RowStats<A> others = stats_of_others(sums.second);
    const A down = exp_of(others.m - sums.max);  // the exponentials are relative to others.m
    others.rescale(sums.max);
    sums.s = others.s, sums.t = others.t;
    // Also NaN where a logit is infinite.
    const bool broken = sums.max == Limits<A>::infinity();
    share_ = broken ? Limits<A>::nan() : down / (1 + sums.s);
    const A squares = sum(&sums);
    const A x_y = sums.y < 0 ? A{0} : static_cast<A>(widen(x_[sums.y]));
    RowResult<A> result = finish_soft_row(&sums, x_y);
    saved_ = {result.max, result.log_normaliser, result.miss, sums.weight};
    const A at_greatest = SoftRow<A>(weights_, saved_, 1).error(true, 0, widen(t_[a_]));
    result.el2n = sqrt_of(squares + at_greatest * at_greatest);
    write(row, result);
    return result;
  }

  // The gradient of the loss of the row that was scored last, times scale.
  void write_gradient(A scale, T* out) const {
    const int64_t classes = in_.num_classes;
    if (scale == 0) {
      std::fill(out, out + classes, narrow<T>(A{0}));
      return;
    }
    const A factor = scale * saved_.sum_weight * share_;
    const SoftRow<A> slopes(weights_, saved_, scale);
    const A at_greatest = widen(t_[a_]);
    if (weights_.class_weight != nullptr) {
      soft_gradient<true>(kept_.data(), t_, classes, factor, scale, weights_, out);
      out[a_] = narrow<T>(slopes.template gradient<true>(true, a_, 0, at_greatest));
    } else {
      soft_gradient<false>(kept_.data(), t_, classes, factor, scale, weights_, out);
      out[a_] = narrow<T>(slopes.template gradient<false>(true, a_, 0, at_greatest));
    }
  }

 private:
  // Without the sum of squares. greatest: of the other classes.
  RowStats<A> stats_of_others(A greatest) {
    RowStats<A> stats = RowStats<A>::none();
    if (greatest > stats.m) stats.m = greatest;
    for (int64_t first = 0; first < in_.num_classes; first += kChunk) {
      const int count = static_cast<int>(std::min<int64_t>(kChunk, in_.num_classes - first));
      A s, t;
      run_widest<SumExponentials<T, U>>(x_ + first, count, a_ - first, stats.m,
                                        kept_.data() + first, &s, &t, next_x_ + first,
                                        next_t_ + first);
      stats.s += s, stats.t += t;
    }
    return stats;
  }

  A sum(SoftSums<A>* sums) const {
    const auto classes = static_cast<int>(in_.num_classes);
    const A* e = kept_.data();
    A squares = 0;
    if (weights_.class_weight != nullptr) {
      run_widest<SumProbabilities<T, U, true>>(x_, t_, e, classes, a_, share_, &weights_, sums,
                                               &squares);
    } else {
      run_widest<SumProbabilities<T, U, false>>(x_, t_, e, classes, a_, share_, &weights_, sums,
                                                &squares);
    }
    return squares;
  }
  void write(int64_t row, const RowResult<A>& r) const {
    static_cast<A*>(out_.loss)[row] = r.nll;
    static_cast<A*>(out_.el2n)[row] = r.el2n;
    static_cast<A*>(out_.entropy)[row] = r.entropy;
    static_cast<A*>(out_.margin)[row] = r.margin;
    out_.correct[row] = r.margin > 0;
    if (out_.saved != nullptr) static_cast<SavedRow<A>*>(out_.saved)[row] = saved_;
  }

  const CrossEntropyInput& in_;
  const SoftTarget& target_;
  const CrossEntropyOutput& out_;
  const SoftWeights<A> weights_;
  std::vector<A> kept_;  // exponentials relative to the greatest logit but x_a, 0 at a
  // Of the row that was scored last.
  const T *x_ = nullptr, *next_x_ = nullptr;
  const U *t_ = nullptr, *next_t_ = nullptr;
  int32_t a_ = 0;
  A share_ = 0;  // what the exponentials are multiplied with to be probabilities
  SavedRow<A> saved_{};
};

// Calls f with a value of the type of the logits, and one of the probabilities' type.
template <class F>
auto dispatch_soft(const CrossEntropyInput& in, const SoftTarget& target, F&& f) {
  return dispatch(in.type, [&](auto logit) {
    using T = decltype(logit);
    if (target.type == in.type) return f(T{}, T{});
    return f(T{}, compute_t<T>{});
  });
}

}  // namespace cpu
}  // namespace dynprune
