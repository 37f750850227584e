// SPDX-License-Identifier: Apache-2.0
// The qualifier and the arithmetic of functions that run on the GPU, the emulator and the CPU. A
// selection must be the same set everywhere, so that no compiler may change the rounding of a value
// that decides an order. All these values go through the functions below: nvcc would otherwise fuse
// a*b+c. g++ compiles with -ffp-contract=off.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DYNPRUNE_HD __host__ __device__ __forceinline__
#else
#define DYNPRUNE_HD inline
#endif

namespace dynprune {

template <class To, class From>
DYNPRUNE_HD To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

#if defined(__CUDA_ARCH__)
DYNPRUNE_HD float mul_rn(float a, float b) { return __fmul_rn(a, b); }
DYNPRUNE_HD float add_rn(float a, float b) { return __fadd_rn(a, b); }
DYNPRUNE_HD float sub_rn(float a, float b) { return __fsub_rn(a, b); }
DYNPRUNE_HD float div_rn(float a, float b) { return __fdiv_rn(a, b); }
DYNPRUNE_HD float sqrt_rn(float a) { return __fsqrt_rn(a); }
DYNPRUNE_HD float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DYNPRUNE_HD int count_leading_zeros(uint64_t x) { return __clzll(static_cast<long long>(x)); }
#else
DYNPRUNE_HD float mul_rn(float a, float b) { return a * b; }
DYNPRUNE_HD float add_rn(float a, float b) { return a + b; }
DYNPRUNE_HD float sub_rn(float a, float b) { return a - b; }
DYNPRUNE_HD float div_rn(float a, float b) { return a / b; }
DYNPRUNE_HD float sqrt_rn(float a) { return sqrtf(a); }
DYNPRUNE_HD float fma_rn(float a, float b, float c) { return fmaf(a, b, c); }
DYNPRUNE_HD int count_leading_zeros(uint64_t x) { return x != 0 ? __builtin_clzll(x) : 64; }
#endif

}  // namespace dynprune
