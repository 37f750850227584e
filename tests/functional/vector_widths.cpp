// SPDX-License-Identifier: Apache-2.0
// Scores rows by vectors of every width that this machine has, and compares the bits. Prints one
// line for each number of classes or labels that differs, and then which widths there were.
#include <cstdio>
#include <vector>

#include "cpu/scoring/binary_lanes.h"
#include "cpu/scoring/long_columns.h"
#include "cpu/scoring/soft_rows.h"

using namespace dynprune;
using namespace dynprune::cpu;

namespace {

uint32_t state = 1;
float draw() {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / 16777216.0f;
}

template <class T>
T logit() {
  using A = compute_t<T>;
  const A x = static_cast<A>((draw() - 0.5f) * 30);
  const uint32_t kind = state >> 8 & 1023;
  if (kind == 0) return narrow<T>(-Limits<A>::infinity());
  if (kind == 1) return narrow<T>(Limits<A>::infinity());
  if (kind == 2) return narrow<T>(Limits<A>::nan());
  return narrow<T>(kind < 50 ? x * 10 : x);
}

// Numbers as bytes; of NaN there is one only.
class Bytes {
 public:
  template <class A>
  void append(const A* first, size_t count) {
    for (A number : std::vector<A>(first, first + count)) {
      if (number != number) number = Limits<A>::nan();
      const char* byte = reinterpret_cast<const char*>(&number);
      bytes_.insert(bytes_.end(), byte, byte + sizeof(number));
    }
  }
  bool operator==(const Bytes& other) const { return bytes_ == other.bytes_; }

 private:
  std::vector<char> bytes_;
};

std::vector<int> widths() {
  std::vector<int> bytes{16};
#if defined(DYNPRUNE_X86_CLONES)
  if (__builtin_cpu_supports("x86-64-v3")) bytes.push_back(32);
  if (__builtin_cpu_supports("x86-64-v4")) bytes.push_back(64);
#endif
  return bytes;
}

template <class Body, class... Args>
void run_at(int bytes, Args... args) {
#if defined(DYNPRUNE_X86_CLONES)
  if (bytes == 64) return run_with_avx512<Body>(args...);
  if (bytes == 32) return run_with_avx2<Body>(args...);
#endif
  Body::template run<16>(args...);
}

// 1 and a line if results(bytes) differ, else 0.
template <class Results>
int differs(const char* what, size_t size, int number, const Results& results) {
  const Bytes expected = results(16);
  bool same = true;
  for (const int bytes : widths()) same = same && results(bytes) == expected;
  if (!same) printf("%zu-byte logits, %d %s: not the same\n", size, number, what);
  return !same;
}

// ---- classes

// How a group's rows are stored, and which options its losses have.
enum class Form { kRows, kColumns, kLongColumns };
struct Options {
  Form form;
  bool smooth, weighted;
};

// The gradients that RowBatch plans, with numbers of any size.
template <class A>
GradientLanes<A> planned(const RowLanes<A>& lanes, bool smooth) {
  GradientLanes<A> g{};
  g.smooth = smooth;
  for (int l = 0; l < kLanes; l++) {
    g.factor[l] = A{0.375} * lanes.share[l];
    g.at_target[l] = A{-0.375} * lanes.miss[l];
    g.uniform[l] = smooth ? A{0.0625} : A{0};
  }
  return g;
}

// x and out: of neighbouring rows whose classes are kLanes apart, but for Form::kRows.
template <class T>
struct ScoreAndWrite {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* const* x, const int64_t* target, int classes, int padded,
                                  Options options, const A* class_weight, RowLanes<A>* lanes,
                                  A* distance, A* kept, T* const* out) {
    const A* weight = options.weighted ? class_weight : nullptr;
    const ClassDistances<A> distances{options.smooth ? distance : nullptr, weight};
    if (options.form == Form::kColumns) {
      ScoreColumns<T>::template run<kBytes>(x, kLanes, target, kLanes, classes, distances, lanes,
                                            kept);
      FinishRows<A>::template run<kBytes>(lanes, kLanes);
      const GradientLanes<A> g = planned(*lanes, options.smooth);
      WriteColumnGradients<T>::template run<kBytes>(kept, classes, kLanes, &g, weight, out, kLanes);
    } else if (options.form == Form::kLongColumns) {
      const ColumnGroups<T> groups{x, kLanes, classes, kLanes};
      ScoreLongColumns<T>::template run<kBytes>(groups, target, weight, distances.of_rows, lanes);
      FinishRows<A>::template run<kBytes>(lanes, kLanes);
      const GradientLanes<A> g = planned(*lanes, options.smooth);
      A scale[kLanes];
      for (int l = 0; l < kLanes; l++) scale[l] = static_cast<A>(l % 3);
      WriteLongColumnGradients<T>::template run<kBytes>(groups, lanes, &g, &scale[0], weight, out,
                                                        kLanes);
    } else if (classes <= kShortClasses) {
      ScoreShortRows<T>::template run<kBytes>(x, target, classes, distances, lanes, kept);
      FinishRows<A>::template run<kBytes>(lanes, kLanes);
      const GradientLanes<A> g = planned(*lanes, options.smooth);
      WriteShortGradients<T>::template run<kBytes>(kept, classes, kLanes, target, &g, weight, out);
    } else {
      // As a part of a longer row: the target lies elsewhere, and the greatest so far is larger.
      RowStats<A> part;
      ScoreChunk<T>::template run<kBytes>(x[0], classes, target[0] + classes, A{3}, kept, &part);
      ScoreMediumRows<T>::template run<kBytes>(x, target, kLanes, classes, padded, lanes, kept);
      FinishRows<A>::template run<kBytes>(lanes, kLanes);
      const GradientLanes<A> g = planned(*lanes, options.smooth);
      lanes->nll[0] = part.m, lanes->el2n[0] = part.s, lanes->entropy[0] = part.q;
      lanes->margin[0] = part.t;
      WriteGradients<T>::template run<kBytes>(kept, padded, classes, kLanes, &g, weight, out);
    }
  }
};

constexpr Options kOptions[] = {
    {Form::kRows, false, false},        {Form::kRows, true, false},
    {Form::kRows, true, true},          {Form::kColumns, false, false},
    {Form::kColumns, true, false},      {Form::kColumns, true, true},
    {Form::kLongColumns, false, false}, {Form::kLongColumns, true, false},
    {Form::kLongColumns, true, true}};

constexpr int kClasses[] = {1,  2,  3,  4,  5,  10,  16,   17,   31,
                            32, 33, 47, 48, 49, 100, 1000, 1023, 1024};

template <class T>
int differing() {
  using A = compute_t<T>;
  int bad = 0;
  for (const int classes : kClasses) {
    std::vector<T> logits(kLanes * classes);
    for (T& x : logits) x = logit<T>();
    std::vector<A> weight(classes);
    for (A& w : weight) w = draw();
    int64_t target[kLanes];
    for (int64_t& y : target) y = static_cast<int64_t>(draw() * static_cast<float>(classes));
    for (const Options options : kOptions) {
      bad += differs("classes", sizeof(T), classes, [&](int bytes) {
        const int padded = static_cast<int>(round_up_to_lanes(classes));
        std::vector<A> kept(kLanes * padded);
        std::vector<T> gradient(kLanes * classes);
        RowLanes<A> lanes{};
        A distance[kLanes] = {};
        const T* x[kLanes];
        T* out[kLanes];
        for (int l = 0; l < kLanes; l++) {
          const int first = options.form == Form::kRows ? l * classes : l;
          x[l] = logits.data() + first;
          out[l] = gradient.data() + first;
          const int64_t stride = options.form == Form::kRows ? 1 : kLanes;
          lanes.x_y[l] = widen(x[l][target[l] * stride]);
        }
        run_at<ScoreAndWrite<T>>(bytes, &x[0], &target[0], classes, padded, options, weight.data(),
                                 &lanes, &distance[0], kept.data(), &out[0]);
        Bytes all;
        all.append(lanes.m, sizeof(lanes) / sizeof(A));
        all.append(distance, kLanes);
        for (const T& g : gradient) {
          const A wide = widen(g);
          all.append(&wide, 1);
        }
        return all;
      });
    }
  }
  return bad;
}

// ---- probabilities

template <class A>
struct SoftResults {
  A greatest, second, s, t, squares;
  SoftSums<A> sums;
};

template <class T, class U, bool kWeighted>
struct ScoreSoft {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* x, const U* t, int classes,
                                  const SoftWeights<A>* weights, A* e, SoftResults<A>* r) {
    int32_t a;
    FindGreatest<T>::template run<kBytes>(x, classes, &r->greatest, &a, &r->second);
    SumExponentials<T, U>::template run<kBytes>(x, classes, a, r->second, e, &r->s, &r->t, x, t);
    r->sums.max = r->greatest;
    SumProbabilities<T, U, kWeighted>::template run<kBytes>(x, t, e, classes, a, A{0.25}, weights,
                                                            &r->sums, &r->squares);
  }
};

template <class T, class U, bool kWeighted>
int differing_soft() {
  using A = compute_t<T>;
  int bad = 0;
  for (const int classes : kClasses) {
    std::vector<T> logits(classes);
    std::vector<U> target(classes);
    std::vector<A> class_weight(classes);
    for (T& x : logits) x = logit<T>();
    for (U& t : target) t = narrow<U>(draw() < 0.5f ? 0.0f : draw());
    for (A& w : class_weight) w = draw() < 0.2f ? 0.0f : draw();
    CrossEntropyInput in{};
    in.label_smoothing = 0.125, in.num_classes = classes;
    if (kWeighted) in.class_weight = class_weight.data();
    const SoftWeights<A> weights(in);
    bad += differs("probabilities", sizeof(T), classes, [&](int bytes) {
      std::vector<A> e(static_cast<size_t>(round_up_to_lanes(classes)));
      SoftResults<A> r{};
      run_at<ScoreSoft<T, U, kWeighted>>(bytes, static_cast<const T*>(logits.data()),
                                         static_cast<const U*>(target.data()), classes, &weights,
                                         e.data(), &r);
      const A numbers[] = {r.greatest,    r.second,        r.s,        r.t,        r.squares,
                           r.sums.weight, r.sums.distance, r.sums.top, A(r.sums.y)};
      Bytes all;
      all.append(numbers, sizeof(numbers) / sizeof(A));
      all.append(e.data(), e.size());
      return all;
    });
  }
  return bad;
}

// ---- labels

template <class A, bool kWeighted>
struct ScoreLabels {
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const LabelBlock<A>* block, LabelLanes<A>* lanes,
                                  BinaryTotals* total, BinaryResults<A>* results) {
    AddLabels<A, kWeighted>::template run<kBytes>(block, 0, lanes);
    SumLabels<A>::template run<kBytes>(lanes, kWeighted, total);
    FinishBinaryRows<A>::template run<kBytes>(total, block->labels, results);
  }
};

template <class A, bool kWeighted>
int differing_labels() {
  int bad = 0;
  for (const int labels : {16, 80}) {
    const auto drawn = [&](auto&& number) {
      std::vector<A> numbers(kLanes * labels);
      for (A& x : numbers) x = number();
      return numbers;
    };
    const std::vector<A> x = drawn([] { return logit<A>(); });
    const std::vector<A> t = drawn([] { return draw() < 0.5f ? A(draw() < 0.5f) : A(draw()); });
    const std::vector<A> weight = drawn([] { return draw() < 0.2f ? A{0} : A(draw()); });
    const std::vector<A> scale = drawn([] { return draw() < 0.1f ? A{0} : A(draw()); });
    bad += differs("labels", sizeof(A), labels, [&](int bytes) {
      std::vector<A> slope(kLanes * labels);
      LabelLanes<A> lanes{};
      BinaryTotals total{};
      BinaryResults<A> results{};
      LabelBlock<A> block{};
      block.x = {x.data(), labels}, block.t = {t.data(), labels};
      block.weight = {weight.data(), labels}, block.pos_weight = {scale.data(), 0};
      block.slope = {slope.data(), labels}, block.scale = scale.data();
      block.rows = kLanes, block.labels = labels;
      run_at<ScoreLabels<A, kWeighted>>(bytes, static_cast<const LabelBlock<A>*>(&block), &lanes,
                                        &total, &results);
      Bytes all;
      all.append(lanes.loss[0], sizeof(lanes) / sizeof(A));
      all.append(total.loss, sizeof(total) / sizeof(double));
      all.append(results.loss, 4 * kLanes);
      all.append(slope.data(), slope.size());
      return all;
    });
  }
  return bad;
}

}  // namespace

int main() {
  int bad = differing<float>() + differing<double>() + differing<BFloat16>() + differing<Half>();
  bad += differing_soft<float, float, false>() + differing_soft<float, float, true>();
  bad += differing_soft<double, double, true>() + differing_soft<BFloat16, float, false>();
  bad += differing_labels<float, false>() + differing_labels<float, true>();
  bad += differing_labels<double, false>() + differing_labels<double, true>();
  for (const int bytes : widths()) printf(bytes == 16 ? "%d" : " %d", bytes);
  printf("\n");
  return bad;
}
