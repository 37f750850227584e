// SPDX-License-Identifier: Apache-2.0
// Scores rows by vectors of every width that this machine has, and compares the bits. Prints one
// line for each number of classes that differs, and then which widths there were.
#include <cstdio>
#include <vector>

#include "cpu/scoring/score_rows.h"

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

// Everything that scoring and scaling kLanes rows writes, as bytes.
template <class T, class Run>
std::vector<char> results(const std::vector<T>& logits, const int64_t* target, int classes,
                          const Run& run) {
  using A = compute_t<T>;
  const int padded = static_cast<int>(round_up_to_lanes(classes));
  std::vector<A> kept(kLanes * padded);
  std::vector<T> gradient(kLanes * classes);
  RowLanes<A> lanes{};
  const T* x[kLanes];
  T* out[kLanes];
  for (int l = 0; l < kLanes; l++) {
    x[l] = logits.data() + l * classes;
    out[l] = gradient.data() + l * classes;
    lanes.x_y[l] = widen(x[l][target[l]]);
  }
  run(x, target, classes, padded, &lanes, kept.data(), out);
  // All of it but padding; of NaN there is one only.
  std::vector<char> bytes;
  const auto append = [&](auto number) {
    if (number != number) number = Limits<A>::nan();
    const char* first = reinterpret_cast<const char*>(&number);
    bytes.insert(bytes.end(), first, first + sizeof(number));
  };
  for (const A* lane = lanes.m; lane < lanes.m + sizeof(lanes) / sizeof(A); lane++) append(*lane);
  for (const T& g : gradient) append(static_cast<A>(widen(g)));
  return bytes;
}

template <class T>
struct ScoreAndScale {
  using A = compute_t<T>;
  template <int kBytes>
  static DYNPRUNE_INLINE void run(const T* const* x, const int64_t* target, int classes, int padded,
                                  RowLanes<A>* lanes, A* kept, T* const* out) {
    if (classes <= kShortClasses) {
      ScoreShortRows<T>::template run<kBytes>(x, target, kLanes, classes, lanes, kept);
      ScaleShortRows<T>::template run<kBytes>(kept, classes, kLanes, lanes->share, out);
    } else {
      // As a part of a longer row: the target lies elsewhere, and the greatest so far is larger.
      RowStats<A> part;
      ScoreChunk<T>::template run<kBytes>(x[0], classes, target[0] + classes, A{3}, kept, &part);
      ScoreMediumRows<T>::template run<kBytes>(x, target, kLanes, classes, padded, lanes, kept);
      lanes->nll[0] = part.m, lanes->el2n[0] = part.s, lanes->entropy[0] = part.q;
      lanes->margin[0] = part.t;
      ScaleRows<T>::template run<kBytes>(kept, padded, classes, kLanes, lanes->share, out);
    }
  }
};

template <class T>
int differing() {
  int bad = 0;
  for (int classes : {1, 2, 3, 4, 5, 10, 16, 17, 31, 32, 33, 47, 48, 49, 100, 1000, 1023, 1024}) {
    std::vector<T> logits(kLanes * classes);
    for (T& x : logits) x = logit<T>();
    int64_t target[kLanes];
    for (int64_t& y : target) y = static_cast<int64_t>(draw() * static_cast<float>(classes));
    const auto narrowest = [](auto... a) { ScoreAndScale<T>::template run<16>(a...); };
    const std::vector<char> expected = results<T>(logits, target, classes, narrowest);
    bool same = true;
#if defined(DYNPRUNE_X86_CLONES)
    if (__builtin_cpu_supports("x86-64-v3")) {
      const auto run = [](auto... a) { run_with_avx2<ScoreAndScale<T>>(a...); };
      same = same && results<T>(logits, target, classes, run) == expected;
    }
    if (__builtin_cpu_supports("x86-64-v4")) {
      const auto run = [](auto... a) { run_with_avx512<ScoreAndScale<T>>(a...); };
      same = same && results<T>(logits, target, classes, run) == expected;
    }
#endif
    if (!same) printf("%zu-byte logits, %d classes: not the same\n", sizeof(T), classes);
    bad += !same;
  }
  return bad;
}

}  // namespace

int main() {
  const int bad =
      differing<float>() + differing<double>() + differing<BFloat16>() + differing<Half>();
#if defined(DYNPRUNE_X86_CLONES)
  printf("16%s%s\n", __builtin_cpu_supports("x86-64-v3") ? " 32" : "",
         __builtin_cpu_supports("x86-64-v4") ? " 64" : "");
#else
  printf("16\n");
#endif
  return bad;
}
