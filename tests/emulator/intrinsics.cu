// SPDX-License-Identifier: Apache-2.0
// Every intrinsic that kernels may use, one row of output each; test_emulator.py computes the same
// rows in numpy. Nothing here depends on the emulator: on a GPU the integer rows must come out the
// same.
#include <cstdint>

#include "device/launch.h"

namespace {

constexpr unsigned kFullMask = 0xffffffffu;

__device__ __forceinline__ int global_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Row after row of an output matrix [rows, n]; each thread fills its column.
template <class T>
struct Column {
  T* next;
  int64_t n;
  __device__ __forceinline__ void push(T value) {
    *next = value;
    next += n;
  }
};

// masks[t]: the lanes that thread t works with; groups of a warp are disjoint and run divergently.
// sources[t]: a lane of that group.
__global__ void warp_groups(const uint32_t* values, const uint32_t* masks, const int* sources,
                            uint32_t* out) {
  const int t = global_thread();
  const uint32_t v = values[t], mask = masks[t];
  const int s = static_cast<int>(v);
  Column<uint32_t> column{out + t, static_cast<int64_t>(gridDim.x) * blockDim.x};
  column.push(__ballot_sync(mask, v & 1));
  column.push(__any_sync(mask, v % 16 == 0));
  column.push(__all_sync(mask, v % 16 != 0));
  column.push(__match_any_sync(mask, v % 4));
  int all_equal = -1;
  column.push(__match_all_sync(mask, v >> 31, &all_equal));
  column.push(all_equal);
  column.push(__reduce_add_sync(mask, v));
  column.push(__reduce_min_sync(mask, v));
  column.push(__reduce_max_sync(mask, v));
  column.push(__reduce_add_sync(mask, s));
  column.push(__reduce_min_sync(mask, s));
  column.push(__reduce_max_sync(mask, s));
  column.push(__reduce_and_sync(mask, v | 0x0000ffffu));
  column.push(__reduce_or_sync(mask, v & 0x0000ffffu));
  column.push(__reduce_xor_sync(mask, v));
  column.push(__shfl_sync(mask, v, sources[t]));
  const unsigned long long wide = static_cast<unsigned long long>(v) << 20;
  column.push(static_cast<uint32_t>(__shfl_sync(mask, wide, sources[t]) >> 20));
  column.push(static_cast<uint32_t>(__shfl_sync(mask, static_cast<double>(v), sources[t])));
  __syncwarp(mask);
  column.push(__activemask() >> (threadIdx.x % 32) & 1);
}

__global__ void shuffles(const uint32_t* values, int distance, int width, uint32_t* out) {
  const int t = global_thread();
  const uint32_t v = values[t];
  Column<uint32_t> column{out + t, static_cast<int64_t>(gridDim.x) * blockDim.x};
  column.push(__shfl_sync(kFullMask, v, distance, width));
  column.push(__shfl_up_sync(kFullMask, v, distance, width));
  column.push(__shfl_down_sync(kFullMask, v, distance, width));
  column.push(__shfl_xor_sync(kFullMask, v, distance, width));
  column.push(__float_as_uint(__shfl_xor_sync(kFullMask, __uint_as_float(v), distance, width)));
}

__global__ void bit_functions(const uint32_t* a, const uint32_t* b, uint32_t* out) {
  const int t = global_thread();
  const uint32_t x = a[t], y = b[t];
  const unsigned long long wide = static_cast<unsigned long long>(x) << 32 | y;
  Column<uint32_t> column{out + t, static_cast<int64_t>(gridDim.x) * blockDim.x};
  column.push(__popc(x));
  column.push(__popcll(wide));
  column.push(__clz(static_cast<int>(x)));
  column.push(__clzll(static_cast<long long>(wide)));
  column.push(__ffs(static_cast<int>(x)));
  column.push(__ffsll(static_cast<long long>(wide)));
  column.push(__brev(x));
  column.push(static_cast<uint32_t>(__brevll(wide)));
  column.push(__umulhi(x, y));
  column.push(__mulhi(static_cast<int>(x), static_cast<int>(y)));
  column.push(static_cast<uint32_t>(__umul64hi(wide, wide) >> 32));
  column.push(__funnelshift_l(x, y, y));
  column.push(__funnelshift_r(x, y, y));
  column.push(__float_as_uint(__uint_as_float(x)));
  column.push(__float_as_int(__int_as_float(static_cast<int>(x))));
  column.push(static_cast<uint32_t>(
      __double_as_longlong(__longlong_as_double(static_cast<long long>(wide))) >> 32));
  column.push(min(x, y));
  column.push(max(static_cast<int>(x), static_cast<int>(y)));
}

__global__ void float_functions(const float* a, const float* b, float* out) {
  const int t = global_thread();
  const float x = a[t], y = b[t];
  const float product = __fmul_rn(x, y);
  Column<float> column{out + t, static_cast<int64_t>(gridDim.x) * blockDim.x};
  column.push(__fadd_rn(x, y));
  column.push(__fsub_rn(x, y));
  column.push(product);
  column.push(__fdiv_rn(x, y));
  column.push(__fsqrt_rn(x));
  column.push(__fmaf_rn(x, y, -product));
  column.push(__fadd_rn(__fmul_rn(x, y), -product));
  column.push(__ldg(a + t));
  column.push(__ldcs(a + t));
  column.push(__ldcg(a + t));
  column.push(min(x, y));
  column.push(max(x, y));
  column.push(__expf(-x));
  column.push(__logf(x));
  column.push(exp2f(-x));
  column.push(log1pf(x));
  column.push(rsqrtf(x));
  column.push(fabsf(-x));
}

__global__ void double_functions(const double* a, const double* b, double* out) {
  const int t = global_thread();
  const double x = a[t], y = b[t];
  const double product = __dmul_rn(x, y);
  Column<double> column{out + t, static_cast<int64_t>(gridDim.x) * blockDim.x};
  column.push(__dadd_rn(x, y));
  column.push(__dsub_rn(x, y));
  column.push(product);
  column.push(__ddiv_rn(x, y));
  column.push(__dsqrt_rn(x));
  column.push(__fma_rn(x, y, -product));
}

// One block of any shape.
__global__ void block_votes(const uint32_t* values, uint32_t* out) {
  const int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const uint32_t v = values[t];
  Column<uint32_t> column{out + t, static_cast<int64_t>(blockDim.x * blockDim.y * blockDim.z)};
  column.push(__syncthreads_count(v & 1));
  column.push(__syncthreads_and(v & 2) != 0);
  column.push(__syncthreads_or(v & 4) != 0);
  column.push(threadIdx.x | threadIdx.y << 8 | threadIdx.z << 16);
}

// results: one of each kind, with what they start from.
struct Atomics {
  int sum_int, min_int, max_int;
  unsigned sum_unsigned, and_unsigned, or_unsigned, xor_unsigned, inc_unsigned;
  unsigned long long sum_wide, max_wide, cas_wide;
  float sum_float;
  double sum_double;
};

__global__ void atomics(const uint32_t* values, Atomics* results, uint32_t* tickets) {
  const int t = global_thread();
  const uint32_t v = values[t];
  const int s = static_cast<int>(v);
  atomicAdd(&results->sum_int, s);
  atomicMin(&results->min_int, s);
  atomicMax(&results->max_int, s);
  atomicSub(&results->sum_unsigned, v);
  atomicAnd(&results->and_unsigned, v | 0xffu);
  atomicOr(&results->or_unsigned, v & 0xff00u);
  atomicXor(&results->xor_unsigned, v);
  atomicInc(&results->inc_unsigned, 99u);
  tickets[t] = static_cast<uint32_t>(atomicAdd(&results->sum_wide, 1ull));
  atomicMax(&results->max_wide, static_cast<unsigned long long>(v) << 20);
  unsigned long long old = dynprune::load_relaxed(&results->cas_wide), seen;
  while ((seen = atomicCAS(&results->cas_wide, old, old + v)) != old) old = seen;
  atomicAdd(&results->sum_float, static_cast<float>(v % 16));
  atomicAdd(&results->sum_double, static_cast<double>(v));
}

}  // namespace

extern "C" {

int launch_warp_groups(const uint32_t* values, const uint32_t* masks, const int* sources,
                       uint32_t* out, int blocks, int threads) {
  DYNPRUNE_LAUNCH((warp_groups), blocks, threads, 0, 0, values, masks, sources, out);
  return cudaGetLastError();
}
int launch_shuffles(const uint32_t* values, int distance, int width, uint32_t* out, int blocks,
                    int threads) {
  DYNPRUNE_LAUNCH((shuffles), blocks, threads, 0, 0, values, distance, width, out);
  return cudaGetLastError();
}
int launch_bit_functions(const uint32_t* a, const uint32_t* b, uint32_t* out, int blocks,
                         int threads) {
  DYNPRUNE_LAUNCH((bit_functions), blocks, threads, 0, 0, a, b, out);
  return cudaGetLastError();
}
int launch_float_functions(const float* a, const float* b, float* out, int blocks, int threads) {
  DYNPRUNE_LAUNCH((float_functions), blocks, threads, 0, 0, a, b, out);
  return cudaGetLastError();
}
int launch_double_functions(const double* a, const double* b, double* out, int blocks,
                            int threads) {
  DYNPRUNE_LAUNCH((double_functions), blocks, threads, 0, 0, a, b, out);
  return cudaGetLastError();
}
int launch_block_votes(const uint32_t* values, uint32_t* out, int x, int y, int z) {
  DYNPRUNE_LAUNCH((block_votes), 1, dim3(x, y, z), 0, 0, values, out);
  return cudaGetLastError();
}
int launch_atomics(const uint32_t* values, void* results, uint32_t* tickets, int blocks,
                   int threads) {
  DYNPRUNE_LAUNCH((atomics), blocks, threads, 0, 0, values, static_cast<Atomics*>(results),
                  tickets);
  return cudaGetLastError();
}

}  // extern "C"
