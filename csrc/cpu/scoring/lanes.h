// SPDX-License-Identifier: Apache-2.0
// Sixteen numbers side by side, in vectors as wide as the machine has. The arithmetic of a lane is
// the same whatever the width, and so is the order of every sum: results do not depend on it.
#pragma once

#include <type_traits>

#include "cpu/clones.h"
#include "cpu/scoring/vector_math.h"
#include "shared/scalar_types.h"

namespace dynprune {
namespace cpu {

constexpr int kLanes = 16;

inline int64_t round_up_to_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Constants, which the compiler would put together lane by lane.
template <class N>
struct LaneNumbers {
  N number[kLanes];                 // 0, 1, ...
  N other[kLanes / 2 + 1][kLanes];  // [half][l]: l with the bit `half` changed

  constexpr LaneNumbers() : number{}, other{} {
    for (int l = 0; l < kLanes; l++) {
      number[l] = static_cast<N>(l);
      for (int half = 0; half <= kLanes / 2; half++) other[half][l] = static_cast<N>(l ^ half);
    }
  }
};
template <class N>
inline constexpr LaneNumbers<N> kLaneNumbers{};
template <class A>
using IndexOf = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

// A vector of kBytes, and its bits.
template <class A, int kBytes>
struct VectorOf {
  typedef A type __attribute__((vector_size(kBytes)));
};
template <int kBytes>
struct VectorOf<float, kBytes> {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef uint32_t bits __attribute__((vector_size(kBytes)));
};

// Functions of vectors take them by reference: by value they would have another calling convention
// in every clone.
template <class A, int kBytes>
struct Lanes {
  using Vector = typename VectorOf<A, kBytes>::type;
  static constexpr int kPerVector = kBytes / sizeof(A);
  static constexpr int kVectors = kLanes / kPerVector;

  Vector v[kVectors];

  DYNPRUNE_INLINE void fill(A x) {
    for (int w = 0; w < kVectors; w++) v[w] = Vector{} + x;
  }
  // first, first + 1, ...
  DYNPRUNE_INLINE void count_from(A first) {
    load(kLaneNumbers<A>.number);
    add(first);
  }
  DYNPRUNE_INLINE void add(A x) {
    for (int w = 0; w < kVectors; w++) v[w] += x;
  }
  DYNPRUNE_INLINE void advance() { add(A{kLanes}); }
  DYNPRUNE_INLINE void load(const A* x) { memcpy(v, x, sizeof(v)); }
  // Of a narrower type.
  template <class T>
  DYNPRUNE_INLINE void load(const T* x) {
    A wide[kLanes];
    for (int l = 0; l < kLanes; l++) wide[l] = widen(x[l]);
    load(wide);
  }
  DYNPRUNE_INLINE void load_numbers(const int64_t* x) {
    A numbers[kLanes];
    for (int l = 0; l < kLanes; l++) numbers[l] = static_cast<A>(x[l]);
    load(numbers);
  }
  // The first `count` numbers of x, as many as there are lanes at most, and `other` behind them.
  template <class T>
  DYNPRUNE_INLINE void load_some(const T* x, int count, A other) {
    if (count >= kLanes) return load(x);
    A some[kLanes];
    for (int l = 0; l < kLanes; l++) some[l] = l < count ? static_cast<A>(widen(x[l])) : other;
    load(some);
  }
  DYNPRUNE_INLINE void store(A* x) const { memcpy(x, v, sizeof(v)); }
  template <class T>
  DYNPRUNE_INLINE void store(T* x) const {
    A wide[kLanes];
    store(wide);
    for (int l = 0; l < kLanes; l++) x[l] = narrow<T>(wide[l]);
  }
  // Puts x where `index` is `at`.
  DYNPRUNE_INLINE void replace(const Lanes& index, const Lanes& at, A x) {
    for (int w = 0; w < kVectors; w++) v[w] = index.v[w] == at.v[w] ? Vector{} + x : v[w];
  }
  // Puts the number of x there.
  DYNPRUNE_INLINE void replace(const Lanes& index, const Lanes& at, const Lanes& x) {
    for (int w = 0; w < kVectors; w++) v[w] = index.v[w] == at.v[w] ? x.v[w] : v[w];
  }
  DYNPRUNE_INLINE void clear_below(const Lanes& index, A first) {
    for (int w = 0; w < kVectors; w++) v[w] = index.v[w] < Vector{} + first ? Vector{} : v[w];
  }
  DYNPRUNE_INLINE bool equals(const Lanes& x) const {
    IndexOf<A> others = 0;
    for (int w = 0; w < kVectors; w++) {
      const auto differs = v[w] != x.v[w];
      for (int l = 0; l < kPerVector; l++) others |= differs[l];
    }
    return others == 0;
  }
  DYNPRUNE_INLINE void raise_to(const Lanes& x) {
    for (int w = 0; w < kVectors; w++) v[w] = x.v[w] > v[w] ? x.v[w] : v[w];
  }
  DYNPRUNE_INLINE void multiply(const Lanes& x) {
    for (int w = 0; w < kVectors; w++) v[w] *= x.v[w];
  }
  DYNPRUNE_INLINE void multiply(A x) {
    for (int w = 0; w < kVectors; w++) v[w] *= x;
  }
  DYNPRUNE_INLINE void add(const Lanes& x) {
    for (int w = 0; w < kVectors; w++) v[w] += x.v[w];
  }
  DYNPRUNE_INLINE void subtract(const Lanes& x) {
    for (int w = 0; w < kVectors; w++) v[w] -= x.v[w];
  }

  // Logits become their exponentials relative to m; `below`, how far they are from it. What is so
  // far that its exponential is 0 is raised: its product with the distance must be 0 too, not NaN.
  DYNPRUNE_INLINE void to_exponentials(const Lanes& m, Lanes* below) {
    const Vector least = Vector{} + kLeastExponent<A>;
    for (int w = 0; w < kVectors; w++) {
      Vector d = v[w] - m.v[w], e{};
      d = least > d ? least : d;  // NaN stays
      if constexpr (sizeof(A) == sizeof(float)) {
        exp_for_sums<typename VectorOf<A, kBytes>::bits>(d, &e);
      } else {
        for (int l = 0; l < kPerVector; l++) e[l] = exp_in_range(d[l]);
      }
      v[w] = d <= least ? Vector{} : e;
      below->v[w] = d;
    }
  }

  // Sum and greatest of all lanes, by halves: short chains.
  DYNPRUNE_INLINE A sum() const {
    return by_halves([](Vector* a, const Vector& b) __attribute__((always_inline)) { *a += b; });
  }
  DYNPRUNE_INLINE A greatest() const {
    return by_halves([](Vector* a, const Vector& b)
                         __attribute__((always_inline)) { *a = b > *a ? b : *a; });
  }

  // Lanes without the bit `half`: this and those with it joined. Lanes with it: the same of
  // `other`.
  template <class Join>
  DYNPRUNE_INLINE void join_halves(const Lanes& other, int half, const Join& join) {
    const Lanes a = *this;
    for (int w = 0; w < kVectors; w++) {
      if (half >= kPerVector) {
        const int apart = half / kPerVector;
        const bool of_other = (w & apart) != 0;
        v[w] = of_other ? other.v[w] : a.v[w];
        join(&v[w], of_other ? other.v[w ^ apart] : a.v[w ^ apart]);
      } else {
        Places number, partner;
        memcpy(&number, kLaneNumbers<IndexOf<A>>.number, sizeof(number));
        memcpy(&partner, kLaneNumbers<IndexOf<A>>.other[half], sizeof(partner));
        const auto of_other = (number & half) != 0;
        v[w] = of_other ? other.v[w] : a.v[w];
        join(&v[w], __builtin_shuffle(of_other ? a.v[w] : other.v[w], partner));
      }
    }
  }

 private:
  using Places = decltype(Vector{} < Vector{});  // integers as wide as A

  template <class Join>
  DYNPRUNE_INLINE A by_halves(const Join& join) const {
    Lanes x = *this;
    for (int half = kVectors / 2; half > 0; half /= 2) {
      for (int w = 0; w < half; w++) join(&x.v[w], x.v[w + half]);
    }
    Vector one = x.v[0];
    for (int half = kPerVector / 2; half > 0; half /= 2) {
      Places other;
      memcpy(&other, kLaneNumbers<IndexOf<A>>.other[half], sizeof(other));
      join(&one, __builtin_shuffle(one, other));
    }
    return one[0];
  }
};

// Joins the numbers of each of kLanes rows, [kLanes][kLanes]: lane l gets those of row l. join(a,
// b) sets *a to both. In the order of Lanes::sum, but for which of two numbers comes first.
template <class A, int kBytes, class Join>
DYNPRUNE_INLINE void join_rows(const A (*rows)[kLanes], const Join& join, A* out) {
  using L = Lanes<A, kBytes>;
  L x[kLanes];
  for (int l = 0; l < kLanes; l++) x[l].load(rows[l]);
  // Of two rows, one keeps the lanes without the bit `half`, and the other one those with it.
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; l++) x[l].join_halves(x[l + half], half, join);
  }
  x[0].store(out);
}

// Sums of a softmax's exponentials in every lane: see RowStats.
template <class A, int kBytes>
struct LaneSums {
  Lanes<A, kBytes> s, q, t;

  DYNPRUNE_INLINE void clear() { s.fill(0), q.fill(0), t.fill(0); }
  DYNPRUNE_INLINE void add(const Lanes<A, kBytes>& e, const Lanes<A, kBytes>& below) {
    for (int w = 0; w < Lanes<A, kBytes>::kVectors; w++) {
      s.v[w] += e.v[w];
      q.v[w] += e.v[w] * e.v[w];
      t.v[w] += e.v[w] * below.v[w];
    }
  }
};

}  // namespace cpu
}  // namespace dynprune
