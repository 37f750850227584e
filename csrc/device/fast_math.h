// SPDX-License-Identifier: Apache-2.0
// Arithmetic that the hardware does in one instruction, less exactly than the C library.
// exp2_approx(x) is 2^x, at most 2 units in the last place off. What would be subnormal is 0, and
// exp2_approx(-infinity) is 0. The emulator's twin (simt.h) can be as wrong as that allows.
#pragma once

#include <type_traits>

#include "device/launch.h"
#include "shared/scalar_types.h"

namespace dynprune {

#if !defined(DYNPRUNE_EMULATOR)
__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#endif

// Two numbers rounded to a 16-bit type, as its bits, the first in the lower half.
template <class T>
__device__ __forceinline__ uint32_t narrow_pair(float low, float high) {
  static_assert(sizeof(T) == 2, "a 16-bit type");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  if constexpr (std::is_same<T, Half>::value) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#else
  return uint32_t{narrow<T>(high).bits} << 16 | narrow<T>(low).bits;
#endif
}

}  // namespace dynprune
