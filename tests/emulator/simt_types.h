// SPDX-License-Identifier: Apache-2.0
// The CUDA words that kernels use, for a machine without the CUDA toolkit: keywords, vector types,
// errors. Values and alignments are CUDA's, so that a kernel that compiles here has the same layout
// under nvcc.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__                                                                     \
  static_assert(false,                                                                 \
                "declare shared memory with DYNPRUNE_SHARED: static storage would be " \
                "common to all emulated blocks");                                      \
  static

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {
// True for the vector types below: what __ldg and its relatives accept besides numbers.
template <class T>
constexpr bool kIsVectorType = false;
}  // namespace emulator

#define EMULATOR_VECTOR2(Vector, Scalar)                             \
  struct alignas(2 * sizeof(Scalar)) Vector {                        \
    Scalar x, y;                                                     \
  };                                                                 \
  inline Vector make_##Vector(Scalar x, Scalar y) { return {x, y}; } \
  template <>                                                        \
  constexpr bool emulator::kIsVectorType<Vector> = true;

#define EMULATOR_VECTOR4(Vector, Scalar)                                                       \
  struct alignas(4 * sizeof(Scalar)) Vector {                                                  \
    Scalar x, y, z, w;                                                                         \
  };                                                                                           \
  inline Vector make_##Vector(Scalar x, Scalar y, Scalar z, Scalar w) { return {x, y, z, w}; } \
  template <>                                                                                  \
  constexpr bool emulator::kIsVectorType<Vector> = true;

EMULATOR_VECTOR2(uchar2, unsigned char)
EMULATOR_VECTOR4(uchar4, unsigned char)
EMULATOR_VECTOR2(short2, short)
EMULATOR_VECTOR4(short4, short)
EMULATOR_VECTOR2(ushort2, unsigned short)
EMULATOR_VECTOR4(ushort4, unsigned short)
EMULATOR_VECTOR2(int2, int)
EMULATOR_VECTOR4(int4, int)
EMULATOR_VECTOR2(uint2, unsigned)
EMULATOR_VECTOR4(uint4, unsigned)
EMULATOR_VECTOR2(float2, float)
EMULATOR_VECTOR4(float4, float)
EMULATOR_VECTOR2(double2, double)
EMULATOR_VECTOR2(longlong2, long long)
EMULATOR_VECTOR2(ulonglong2, unsigned long long)

#undef EMULATOR_VECTOR2
#undef EMULATOR_VECTOR4

typedef struct CUstream_st* cudaStream_t;  // accepted everywhere, ignored: launches are synchronous

enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
typedef enum cudaError cudaError_t;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;  // static
};
