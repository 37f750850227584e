// SPDX-License-Identifier: Apache-2.0
// Small kernels that show how the emulator schedules, counts traffic and fails.
#include "device/launch.h"

namespace {

__device__ __forceinline__ int global_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

__global__ void copy_coalesced(const float* in, float* out) {
  out[global_thread()] = in[global_thread()];
}

__global__ void copy_blocked(const float* in, float* out) {
  for (int i = 0; i < 8; i++) out[8 * global_thread() + i] = in[8 * global_thread() + i];
}

__global__ void copy_vectors(const float4* in, float4* out) {
  __stcs(out + global_thread(), __ldg(in + global_thread()));
}

__global__ void add_previous(const float* in, float* out) {
  const int i = global_thread();
  out[i] = i > 0 ? in[i] + in[i - 1] : in[i];
}

__global__ void arrival_order(int* out, int* ticket) {
  out[global_thread()] = atomicAdd(ticket, 1);
}

// A barrier of the whole grid: every block must be resident at once.
__global__ void grid_barrier(int* out, int* arrived) {
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(arrived, 1);
    while (dynprune::load_acquire(arrived) < static_cast<int>(gridDim.x)) {
    }
    out[blockIdx.x] = 1;
  }
}

__global__ void trap_in_thread(int thread) {
  if (global_thread() == thread) __trap();
}

__global__ void write_dynamic_shared(int* out, int count) {
  DYNPRUNE_DYNAMIC_SHARED(int, memory);
  for (int i = threadIdx.x; i < count; i += blockDim.x) memory[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) out[0] = memory[count - 1];
}

// 8-bit and 16-bit accesses that share a 4-byte word with other threads' are no race.
__global__ void write_bytes(unsigned char* bytes, unsigned short* halves) {
  bytes[global_thread()] = static_cast<unsigned char>(global_thread());
  halves[global_thread()] = static_cast<unsigned short>(bytes[global_thread()]);
}

__global__ void no_parameters() {}

}  // namespace

extern "C" {

int launch_copy_coalesced(const float* in, float* out, int n) {
  DYNPRUNE_LAUNCH((copy_coalesced), n / 256, 256, 0, 0, in, out);
  return cudaGetLastError();
}
int launch_copy_blocked(const float* in, float* out, int n) {
  DYNPRUNE_LAUNCH((copy_blocked), n / 8 / 256, 256, 0, 0, in, out);
  return cudaGetLastError();
}
int launch_copy_vectors(const float* in, float* out, int n) {
  DYNPRUNE_LAUNCH((copy_vectors), n / 4 / 256, 256, 0, 0, reinterpret_cast<const float4*>(in),
                  reinterpret_cast<float4*>(out));
  return cudaGetLastError();
}
int launch_add_previous(const float* in, float* out, int n) {
  DYNPRUNE_LAUNCH((add_previous), n / 256, 256, 0, 0, in, out);
  return cudaGetLastError();
}
int launch_arrival_order(int* out, int* ticket, int blocks, int threads) {
  DYNPRUNE_LAUNCH((arrival_order), blocks, threads, 0, 0, out, ticket);
  return cudaGetLastError();
}
int launch_grid_barrier(int* out, int* arrived) {
  DYNPRUNE_LAUNCH((grid_barrier), dynprune::multiprocessor_count(), 64, 0, 0, out, arrived);
  return cudaGetLastError();
}
int launch_trap(int thread) {
  DYNPRUNE_LAUNCH((trap_in_thread), 2, 64, 0, 0, thread);
  return cudaGetLastError();
}
int launch_shape(int grid, int x, int y, int z, int dynamic_bytes) {
  const cudaError_t error = DYNPRUNE_ALLOW_SHARED((no_parameters));
  if (error != cudaSuccess) return error;
  DYNPRUNE_LAUNCH((no_parameters), grid, dim3(x, y, z), dynamic_bytes, 0);
  return cudaGetLastError();
}
int launch_dynamic_shared(int* out, int count) {
  DYNPRUNE_LAUNCH((write_dynamic_shared), 1, 128, count * sizeof(int), 0, out, count);
  return cudaGetLastError();
}
int allow_dynamic_shared() { return DYNPRUNE_ALLOW_SHARED((write_dynamic_shared)); }
int launch_write_bytes(unsigned char* bytes, unsigned short* halves, int n) {
  DYNPRUNE_LAUNCH((write_bytes), n / 128, 128, 0, 0, bytes, halves);
  return cudaGetLastError();
}
int set_bytes(void* p, int value, long long bytes) {
  return cudaMemsetAsync(p, value, static_cast<size_t>(bytes), nullptr);
}

}  // extern "C"
