// SPDX-License-Identifier: Apache-2.0
// Seeded randomness without state: what a sample draws depends on (seed, stream, sample id) alone,
// so that any thread, device or rank computes the same number.
#pragma once

#include "portable.h"

namespace dynprune {

// A seed is a value known at launch, or lies on the device, so that a captured graph can be
// replayed with another one.
struct Seed {
  uint64_t value;
  const int64_t* device;  // null: use value

  DYNPRUNE_HD uint64_t get() const {
    return device != nullptr ? static_cast<uint64_t>(*device) : value;
  }
};

// What a random number is for. Streams of one seed are independent of each other.
enum class Stream : uint64_t {
  kTie = 1,
  kExplore = 2,
  kWeight = 3,
  kOrder = 4,
  kPermutation = 5,
  kSample = 6,  // where to look for a bracket; never changes a result
};

// Steele, Lea, Flood 2014 (SplitMix64): a bijection of 64-bit words, so that every bit of a seed
// counts.
DYNPRUNE_HD uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

DYNPRUNE_HD uint64_t stream_key(uint64_t seed, Stream stream) {
  return mix64(mix64(seed) ^ mix64(static_cast<uint64_t>(stream)));
}

// A bijection of 32-bit words (constants: Wellons, "lowbias32").
DYNPRUNE_HD uint32_t mix32(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

// Keyed hash of a sample id: for one key, distinct ids below 2^32 have distinct hashes. A second
// round with a second key makes two keys unrelated: with one round, two seeds could differ by a
// shift of the ids only.
struct IdHash {
  uint32_t key0, key1;

  DYNPRUNE_HD IdHash(uint64_t seed, Stream stream) {
    const uint64_t key = stream_key(seed, stream);
    key0 = static_cast<uint32_t>(key);
    key1 = static_cast<uint32_t>(key >> 32);
  }
  DYNPRUNE_HD uint32_t operator()(int64_t id) const {
    return mix32(mix32(static_cast<uint32_t>(id) + key0) + key1);
  }
};

// E = -log(u) for the hash h, u = (h + 1/2) / 2^32: an Exp(1) draw, always positive and finite.
// Built from exactly rounded operations, since the CPU's and the GPU's logf differ; relative error
// below 3e-7.
DYNPRUNE_HD float exponential(uint32_t h) {
  const uint64_t odd = 2 * static_cast<uint64_t>(h) + 1;   // u = odd / 2^33
  const int shift = count_leading_zeros(odd) - (64 - 33);  // u = m / 2^shift, m in [1/2, 1)
  // v = 1 - m, exact as an integer; log(m) = -2 atanh(s) with s = v / (2 - v).
  const float v =
      mul_rn(static_cast<float>((1ull << 33) - (odd << shift)), 1.1641532182693481e-10f);
  const float s = div_rn(v, sub_rn(2.0f, v));
  const float s2 = mul_rn(s, s);
  float series = 1.0f / 15;
  series = fma_rn(series, s2, 1.0f / 13);
  series = fma_rn(series, s2, 1.0f / 11);
  series = fma_rn(series, s2, 1.0f / 9);
  series = fma_rn(series, s2, 1.0f / 7);
  series = fma_rn(series, s2, 1.0f / 5);
  series = fma_rn(series, s2, 1.0f / 3);
  series = fma_rn(series, s2, 1.0f);
  return fma_rn(static_cast<float>(shift), 0.6931471805599453f, mul_rn(mul_rn(2.0f, s), series));
}

}  // namespace dynprune
