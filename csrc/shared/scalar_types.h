// SPDX-License-Identifier: Apache-2.0
// Element types of the launchers: a run-time tag, and 16-bit storage types that need neither torch
// nor the CUDA headers. Also the conversions to and from the type of the arithmetic.
#pragma once

#include "shared/portable.h"

namespace dynprune {

enum class ScalarType { kFloat32, kFloat16, kBFloat16, kFloat64 };
enum class IndexType { kInt64, kInt32, kUInt8 };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that arithmetic on T happens in.
template <class T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class T>
using compute_t = typename ComputeType<T>::type;

DYNPRUNE_HD float widen(float x) { return x; }
DYNPRUNE_HD double widen(double x) { return x; }
DYNPRUNE_HD float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
#if defined(__CUDA_ARCH__)
DYNPRUNE_HD float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
#else
DYNPRUNE_HD float widen(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Without branches. A subnormal half is a multiple of 2^-24.
  const float subnormal =
      mul_rn(static_cast<float>(static_cast<int32_t>(magnitude)), 5.9604644775390625e-8f);
  const uint32_t rebias = magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u;
  const uint32_t normal = (magnitude << 13) + rebias;
  return bit_cast<float>(sign | (magnitude < 0x400u ? bit_cast<uint32_t>(subnormal) : normal));
}
#endif

template <class T>
DYNPRUNE_HD T narrow(compute_t<T> x) {
  return x;
}
template <>
DYNPRUNE_HD BFloat16 narrow<BFloat16>(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  if (x != x) return {0x7fc0u};
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16)};  // to nearest, ties to even
}
template <>
DYNPRUNE_HD Half narrow<Half>(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000u);
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u)
    return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds past 65504
  if (magnitude < 0x38800000u) {
    // Below 2^-14 a half is a multiple of 2^-24: adding 0.5, whose last place is that, rounds once,
    // to even.
    const float sum = add_rn(bit_cast<float>(magnitude), 0.5f);
    return {static_cast<uint16_t>(sign | (bit_cast<uint32_t>(sum) - 0x3f000000u))};
  }
  return {static_cast<uint16_t>(
      sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13))};
}

// One element of an index tensor. A switch per element saves two thirds of the kernels.
struct IndexArray {
  const void* data;
  IndexType type;

  DYNPRUNE_HD int64_t operator[](int64_t i) const {
    switch (type) {
      case IndexType::kInt32:
        return static_cast<const int32_t*>(data)[i];
      case IndexType::kUInt8:
        return static_cast<const uint8_t*>(data)[i];
      default:
        return static_cast<const int64_t*>(data)[i];
    }
  }
};

// Calls f with a value of the C++ type that the tag names: f(float{}), f(Half{}), ...
template <class F>
auto dispatch(ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::kFloat16:
      return f(Half{});
    case ScalarType::kBFloat16:
      return f(BFloat16{});
    case ScalarType::kFloat64:
      return f(double{});
    default:
      return f(float{});
  }
}

}  // namespace dynprune
