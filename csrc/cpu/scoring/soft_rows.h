// SPDX-License-Identifier: Apache-2.0
// Rows with probabilities as targets (shared/soft_row.h), one after the other, in vector code. The
// statistics of the logits are those of score_rows.h with the greatest logit's class as the target;
// its exponentials are kept, and a row and its probabilities stay in the first caches.
#pragma once

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
  // Of all lanes, and of the classes from `first` on, x.
  template <class T>
  DYNPRUNE_INLINE void finish(const T* x, int first, int classes, A* value, int32_t* place) const {
    A values[kLanes];
    IndexOf<A> places[kLanes];
    greatest.store(values);
    memcpy(places, where, sizeof(places));
    *value = -Limits<A>::infinity(), *place = -1;
    for (int l = 0; l < kLanes; l++) {
      const bool first_of_equals = values[l] == *value && places[l] >= 0 && places[l] < *place;
      if (values[l] > *value || first_of_equals) {
        *value = values[l], *place = static_cast<int32_t>(places[l]);
      }
    }
    for (int c = first; c < classes; c++) {
      const A v = widen(x[c]);
      if (v > *value) *value = v, *place = c;
    }
  }
};

// The greatest number of a row, and its first class.
template <class T>
struct FindGreatest {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* x, int classes, A* value, int32_t* place) {
    GreatestLanes<A, kBytes> lanes;
    const int whole = classes / kLanes * kLanes;
    for (int c = 0; c < whole; c += kLanes) {
      Lanes<A, kBytes> v;
      v.load(x + c);
      lanes.add(v);
      lanes.advance();
    }
    lanes.finish(x, whole, classes, value, place);
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
    const int whole = classes / kLanes * kLanes;
    for (int c = 0; c < whole; c += kLanes) {
      L logit, target, exponential, u;
      logit.load(x + c), target.load(t + c), exponential.load(e + c);
      if (kWeighted) u.load(weights->class_weight + c);
      for (int w = 0; w < L::kVectors; w++) {
        const Vector smoothed = target.v[w] * hard + uniform;
        u.v[w] = kWeighted ? u.v[w] * smoothed : smoothed;
        weight.v[w] += u.v[w];
        const Vector term = u.v[w] * (max - logit.v[w]);
        distance.v[w] += u.v[w] == Vector{} ? Vector{} : term;
        const Vector error = exponential.v[w] * factor - target.v[w];
        const Vector square = error * error;
        errors.v[w] += tops.now[w] == IndexOf<A>{a} ? Vector{} : square;
      }
      tops.add(target);
      tops.advance();
    }
    sums->weight = weight.sum(), sums->distance = distance.sum(), *squares = errors.sum();
    for (int c = whole; c < classes; c++) {
      const A target = widen(t[c]);
      const A u = weights->template at<kWeighted>(c, target);
      sums->weight += u;
      if (u != 0) sums->distance += u * (max - static_cast<A>(widen(x[c])));
      const A error = e[c] * factor - target;
      if (c != a) *squares += error * error;
    }
    tops.finish(t, whole, classes, &sums->top, &sums->y);
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
    x_ = static_cast<const T*>(in_.logits) + in_.row_offset(row);
    t_ = static_cast<const U*>(target_.data) + row * target_.row_stride;
    const int64_t classes = in_.num_classes;
    SoftSums<A> sums{};
    run_widest<FindGreatest<T>>(x_, static_cast<int>(classes), &sums.max, &a_);
    if (a_ < 0) a_ = 0;  // no number above -inf: the row's scores will be NaN
    RowStats<A> others = long_row_stats(x_, classes, a_, kept_.data());
    sums.second = others.s == 0 ? -Limits<A>::infinity() : others.m;
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
  const T* x_ = nullptr;
  const U* t_ = nullptr;
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
