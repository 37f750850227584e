// SPDX-License-Identifier: Apache-2.0
// What a selection ranks samples by. A ranking loads a Raw of a sample, the elements of its
// tensors, and computes an unsigned key of it; the greatest key ranks first. Both steps are apart,
// so that a kernel can load many samples before it computes their keys. A Hash is made of the seed
// once for many keys. The keys are not stored. The same code runs on CPU and GPU, with explicit
// rounding throughout.
#pragma once

#include <type_traits>

#include "shared/ordered_key.h"
#include "shared/scalar_types.h"

namespace dynprune {

template <class T>
using ranking_key_t = std::conditional_t<std::is_same<T, double>::value, uint64_t, uint32_t>;

// Of a ranking without randomness.
struct NoHash {
  DYNPRUNE_HD explicit NoHash(uint64_t /*seed*/) {}
};

// Of a ranking that draws a number for each id.
template <Stream kStream>
struct StreamHash : IdHash {
  DYNPRUNE_HD explicit StreamHash(uint64_t seed) : IdHash(seed, kStream) {}
};

// The score itself.
template <class T>
struct ScoreRanking {
  using Key = ranking_key_t<T>;
  using Raw = T;
  using Hash = NoHash;
  static constexpr int kLoads = 1;  // of a Raw
  static constexpr bool kChecked = false;
  const T* scores;  // [N]

  DYNPRUNE_HD Raw load(int64_t id) const { return scores[id]; }
  DYNPRUNE_HD Key key_of(Raw score, int64_t /*id*/, const NoHash&) const {
    return ordered_key(widen(score));
  }
};

enum class UcbBonus { kVariance, kStd };

// Upper confidence bound: mean + c * variance, or mean + c * sqrt(variance).
template <class T, UcbBonus kBonus>
struct UcbRanking {
  using Key = uint32_t;
  struct Raw {
    T mean, variance;
  };
  using Hash = NoHash;
  static constexpr int kLoads = 2;
  static constexpr bool kChecked = false;
  const T* mean;      // [N]
  const T* variance;  // [N]
  float c;

  DYNPRUNE_HD Raw load(int64_t id) const { return {mean[id], variance[id]}; }
  DYNPRUNE_HD Key key_of(Raw raw, int64_t /*id*/, const NoHash&) const {
    const float spread = widen(raw.variance);
    const float bonus = kBonus == UcbBonus::kStd ? sqrt_rn(spread) : spread;
    return ordered_key(fma_rn(c, bonus, widen(raw.mean)));
  }
};

// UCB1 (Auer, Cesa-Bianchi, Fischer 2002): mean + c * sqrt(log(step) / count); never visited ranks
// first.
template <class Count>
struct Ucb1Ranking {
  using Key = uint32_t;
  struct Raw {
    float mean;
    Count count;
  };
  using Hash = NoHash;
  static constexpr int kLoads = 2;
  static constexpr bool kChecked = false;
  const float* mean;   // [N]
  const Count* count;  // [N]
  float c;
  float log_step;

  DYNPRUNE_HD Raw load(int64_t id) const { return {mean[id], count[id]}; }
  DYNPRUNE_HD Key key_of(Raw raw, int64_t /*id*/, const NoHash&) const {
    const auto visits = static_cast<float>(raw.count > 1 ? raw.count : Count{1});
    const Key key = ordered_key(fma_rn(c, sqrt_rn(div_rn(log_step, visits)), raw.mean));
    return raw.count > 0 ? key : ~Key{0};
  }
};

// The random part of epsilon-greedy: a hash of its own stream, without ties.
struct ExploreRanking {
  using Key = uint32_t;
  struct Raw {};
  using Hash = StreamHash<Stream::kExplore>;
  static constexpr int kLoads = 0;
  static constexpr bool kChecked = false;

  DYNPRUNE_HD Raw load(int64_t /*id*/) const { return {}; }
  DYNPRUNE_HD Key key_of(Raw, int64_t id, const Hash& hash) const { return hash(id); }
};

// A positive finite weight as m * 2^exponent with m in [1, 2).
struct Scientific {
  float m;
  int exponent;
};
DYNPRUNE_HD Scientific scientific(float w) {
  int shift = 0;
  if (w < 1.17549435e-38f) {  // subnormal: make it normal, exactly
    w = mul_rn(w, 16777216.0f);
    shift = 24;
  }
  const uint32_t u = bit_cast<uint32_t>(w);
  return {bit_cast<float>((u & 0x7fffffu) | 0x3f800000u), static_cast<int>(u >> 23) - 127 - shift};
}
DYNPRUNE_HD Scientific scientific(double w) {
  int shift = 0;
  if (w < 2.2250738585072014e-308) {
    w *= 18014398509481984.0;  // 2^54, exact
    shift = 54;
  }
  const uint64_t u = bit_cast<uint64_t>(w);
  // m in float: 24 bits of a weight are more than a draw can distinguish.
  const double m = bit_cast<double>((u & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  return {static_cast<float>(m), static_cast<int>(u >> 52) - 1023 - shift};
}

// Weighted sampling without replacement (Efraimidis & Spirakis 2006): the k greatest w / E, with E
// ~ Exp(1). w / E may overflow a float, so that w = m * 2^e is split. The key is the bits of m / E,
// which is between 2^-5 and 2^34, plus e above its smallest value, added to the exponent. start is
// added to the random word of which E is made, modulo 2^32.
template <class A>
DYNPRUNE_HD ranking_key_t<A> weight_key(A w, int64_t id, const IdHash& hash, uint32_t start) {
  using Key = ranking_key_t<A>;
  constexpr int kMinExponent = std::is_same<A, double>::value ? -1074 : -149;
  if (!(w > 0)) return 0;
  if (w - w != 0) return ~Key{0};  // infinity
  const Scientific s = scientific(w);
  const float quotient = div_rn(s.m, exponential(hash(id) + start));
  return bit_cast<uint32_t>(quotient) + (static_cast<Key>(s.exponent - kMinExponent) << 23);
}

template <class T>
struct WeightRanking {
  using Key = ranking_key_t<T>;
  using Raw = T;
  using Hash = StreamHash<Stream::kWeight>;
  static constexpr int kLoads = 1;
  static constexpr bool kChecked = true;  // some values are errors: see valid()
  const T* weights;                       // [N]
  uint32_t start;                         // of the draws

  DYNPRUNE_HD Raw load(int64_t id) const { return weights[id]; }
  DYNPRUNE_HD static bool valid(Raw weight) { return widen(weight) >= 0; }  // false for NaN
  DYNPRUNE_HD Key key_of(Raw weight, int64_t id, const Hash& hash) const {
    return weight_key(widen(weight), id, hash, start);
  }
};

enum class WeightPower { kOne, kHalf };

// Weighted sampling in proportion to a power of the score. A score that is not positive weighs
// nothing; NaN comes first, like an infinite weight. No score is an error.
template <class T, WeightPower kPower>
struct ScoreWeightRanking {
  using Key = uint32_t;
  using Raw = T;
  using Hash = StreamHash<Stream::kWeight>;
  static constexpr int kLoads = 1;
  static constexpr bool kChecked = false;
  const T* scores;  // [N], no float64: sqrt_rn is of float
  uint32_t start;   // of the draws

  DYNPRUNE_HD Raw load(int64_t id) const { return scores[id]; }
  DYNPRUNE_HD Key key_of(Raw raw, int64_t id, const Hash& hash) const {
    const float score = widen(raw);
    if (score != score) return ~Key{0};
    if (!(score > 0)) return 0;
    const float weight = kPower == WeightPower::kHalf ? sqrt_rn(score) : score;
    return weight_key(weight, id, hash, start);
  }
};

// The key of one sample.
template <class Ranking>
DYNPRUNE_HD typename Ranking::Key key_at(const Ranking& ranking, int64_t id,
                                         const typename Ranking::Hash& hash) {
  return ranking.key_of(ranking.load(id), id, hash);
}

// The hash that breaks ties. It takes the same numbers as key_of().
template <class Ranking>
DYNPRUNE_HD IdHash tie_hash_of(const Ranking&, uint64_t seed) {
  return {seed, Stream::kTie};
}

}  // namespace dynprune
