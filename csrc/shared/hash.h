// SPDX-License-Identifier: Apache-2.0
// Seeded randomness without state. A draw depends on (seed, stream, sample id) alone, so that every
// thread, device and rank computes the same number.
#pragma once

#include "shared/portable.h"

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

// E = -log(u) for the hash h, u = (h + 1/2) / 2^32: an Exp(1) draw, always positive and finite. All
// operations are exactly rounded, because the CPU's and the GPU's logf differ. There are no
// branches and no 64-bit words, for vector units. The relative error is below 3e-7. Near u = 1
// small draws compete for the first places. There E is computed from 1 - u, and no two hashes have
// equal draws while 1 - u is below 2^-9.
DYNPRUNE_HD float exponential(uint32_t h) {
  const bool near_one = h >= 0x80000000u;
  const int32_t steps = static_cast<int32_t>(near_one ? ~h : h);  // from 0 or from 1
  const float distance = fma_rn(static_cast<float>(steps), 0x1p-32f, 0x1p-33f);
  const float u = near_one ? sub_rn(1.0f, distance) : distance;
  // u = m * 2^exponent with m between the roots of 1/2 and of 2; log(m) = z + z^2 * series(z).
  constexpr uint32_t kRootOfHalf = 0x3f3504f3u;
  const uint32_t above = bit_cast<uint32_t>(u) - kRootOfHalf;
  const int32_t exponent = static_cast<int32_t>(above) >> 23;
  const float m = bit_cast<float>((above & 0x7fffffu) + kRootOfHalf);
  const float z = exponent == 0 ? -distance : sub_rn(m, 1.0f);
  // Of least greatest relative error of log(m), 3e-8.
  float series = 0.0873484612f;
  series = fma_rn(series, z, -0.143075243f);
  series = fma_rn(series, z, 0.149179742f);
  series = fma_rn(series, z, -0.165705085f);
  series = fma_rn(series, z, 0.199620724f);
  series = fma_rn(series, z, -0.250017554f);
  series = fma_rn(series, z, 0.333339512f);
  series = fma_rn(series, z, -0.499999911f);
  const float log_m = fma_rn(mul_rn(z, z), series, z);
  return fma_rn(static_cast<float>(exponent), -0.6931471805599453f, -log_m);
}

}  // namespace dynprune
