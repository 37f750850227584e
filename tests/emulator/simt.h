// SPDX-License-Identifier: Apache-2.0
// CUDA's device side for g++: a kernel file that includes launch.h with DYNPRUNE_EMULATOR gets this
// header instead of the toolkit, and every CUDA thread becomes a fiber of one OS thread
// (scheduler.cpp). Parts: simt_types.h (keywords, types), this file (launch, memory, barriers, warp
// operations, atomics), simt_grid.h (blocks that meet), simt_math.h (scalar intrinsics). Where CUDA
// has no overload, there is none here either.
#pragma once

#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime_api.h"
#include "simt_math.h"

// Recording functions report their return address, so all layers above them must be inlined into
// the kernel.
#define EMULATOR_INLINE inline __attribute__((always_inline))
#define EMULATOR_UNRECORDED __attribute__((no_sanitize_thread))
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace emulator {

EMULATOR_UNRECORDED inline uint3 thread_index() { return emulator_current_thread->thread_index; }
EMULATOR_UNRECORDED inline uint3 block_index() { return emulator_current_thread->block_index; }
EMULATOR_UNRECORDED inline dim3 block_size() { return emulator_current_thread->block_size; }
EMULATOR_UNRECORDED inline dim3 grid_size() { return emulator_current_thread->grid_size; }
EMULATOR_UNRECORDED inline int lane() { return static_cast<int>(emulator_current_thread->lane); }

// Memory behind an access that has been recorded already.
template <class T>
EMULATOR_UNRECORDED T peek(const T* p) {
  return *p;
}
template <class T>
EMULATOR_UNRECORDED void poke(T* p, T v) {
  *p = v;
}

#if defined(__SANITIZE_THREAD__) || defined(EMULATOR_RECORDING)
EMULATOR_INLINE void record_plain(const volatile void* p, size_t bytes, EmulatorAccess access) {
  emulator_record_plain(p, bytes, access);
}
EMULATOR_INLINE void record_atomic(const volatile void* p, size_t bytes, EmulatorAccess access,
                                   int memory_order) {
  emulator_record_atomic(p, bytes, access, memory_order);
}
#else
EMULATOR_INLINE void record_plain(const volatile void*, size_t, EmulatorAccess) {}
EMULATOR_INLINE void record_atomic(const volatile void*, size_t, EmulatorAccess, int) {}
#endif

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_arithmetic<T>::value, "no such overload in CUDA");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  memcpy(&value, &bits, sizeof(T));
  return value;
}

// A type that is not deduced from its argument, so that atomicAdd(&u, 1) works as in CUDA.
template <class T>
struct Identity {
  using Type = T;
};
template <class T>
using Same = typename Identity<T>::Type;

template <class T, class... Candidates>
constexpr bool kIsOneOf = (std::is_same<T, Candidates>::value || ...);

// ---- launch

template <class... Parameters>
struct KernelCall {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;
  EmulatorTwin* twin;

  KernelCall(void (*kernel)(Parameters...), Parameters... arguments)
      : kernel(kernel), arguments(arguments...) {
    const size_t sizes[] = {sizeof(Parameters)..., 0};
    twin = emulator_find_twin(reinterpret_cast<const void*>(kernel), sizes, sizeof...(Parameters));
  }

  // Unrecorded: arguments live on the host's stack, which kernels otherwise must not touch.
  template <size_t... I>
  EMULATOR_UNRECORDED void call(std::index_sequence<I...>) {
    if (twin != nullptr) {
      const void* const pointers[] = {&std::get<I>(arguments)..., nullptr};
      emulator_run_twin(twin, pointers);
    } else {
      emulator_count_host_thread();
      kernel(std::get<I>(arguments)...);
    }
  }
  EMULATOR_UNRECORDED static void run(void* self) {
    static_cast<KernelCall*>(self)->call(std::index_sequence_for<Parameters...>());
  }
};

template <class... Parameters, class... Arguments>
void launch(const char* name, dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t,
            void (*kernel)(Parameters...), Arguments... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
  KernelCall<Parameters...> call(kernel, arguments...);
  emulator_launch(name, reinterpret_cast<const void*>(kernel), grid, block, dynamic_shared_bytes,
                  &KernelCall<Parameters...>::run, &call);
}

template <class T>
T& shared_variable(const void* tag, const char* name) {
  using Element = typename std::remove_all_extents<T>::type;
  static_assert(std::is_trivially_default_constructible<Element>::value,
                "shared memory runs no constructors");
  static_assert(alignof(T) <= 256, "the emulator aligns shared memory to 256 bytes");
  return *static_cast<T*>(emulator_shared_variable(tag, sizeof(T), name));
}

}  // namespace emulator

#define threadIdx (::emulator::thread_index())
#define blockIdx (::emulator::block_index())
#define blockDim (::emulator::block_size())
#define gridDim (::emulator::grid_size())
#define warpSize 32

// `kernel` comes in parentheses: as an expression it is the function itself.
#define DYNPRUNE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::emulator::launch(#kernel, (grid), (block), (shared_bytes), (stream), kernel, ##__VA_ARGS__)

// The tag's address names the variable: one per declaration and per instance of a kernel template.
#define DYNPRUNE_SHARED(T, name, dims) \
  typedef T name##_shared_type dims;   \
  static char name##_shared_tag;       \
  name##_shared_type& name =           \
      ::emulator::shared_variable<name##_shared_type>(&name##_shared_tag, #name)

#define DYNPRUNE_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(emulator_dynamic_shared())

namespace dynprune {

template <class T>
EMULATOR_INLINE T load_acquire(const T* p) {
  emulator_poll(p);
  emulator::record_atomic(p, sizeof(T), kAccessRead, __ATOMIC_ACQUIRE);
  return emulator::peek(p);
}
template <class T>
EMULATOR_INLINE T load_relaxed(const T* p) {
  emulator_poll(p);
  emulator::record_atomic(p, sizeof(T), kAccessRead, __ATOMIC_RELAXED);
  return emulator::peek(p);
}
template <class T>
EMULATOR_INLINE void store_release(T* p, T v) {
  emulator::record_atomic(p, sizeof(T), kAccessWrite, __ATOMIC_RELEASE);
  emulator::poke(p, v);
  emulator_progress();
}
template <class T>
EMULATOR_INLINE void store_relaxed(T* p, T v) {
  emulator::record_atomic(p, sizeof(T), kAccessWrite, __ATOMIC_RELAXED);
  emulator::poke(p, v);
  emulator_progress();
}

// The twin of the function in device/fast_math.h.
inline float exp2_approx(float x) { return emulator_exp2(x); }

}  // namespace dynprune

// ---- host functions of the runtime API

inline cudaError_t cudaGetLastError() { return static_cast<cudaError_t>(emulator_last_error(1)); }
inline cudaError_t cudaPeekAtLastError() {
  return static_cast<cudaError_t>(emulator_last_error(0));
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t = nullptr) {
  return static_cast<cudaError_t>(emulator_memset(p, value, bytes));
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = emulator_current_device();
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return static_cast<cudaError_t>(emulator_device_attribute(value, attribute, device));
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  return static_cast<cudaError_t>(emulator_kernel_attributes(attributes, kernel));
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute,
                                        int value) {
  return static_cast<cudaError_t>(emulator_set_kernel_attribute(kernel, attribute, value));
}
inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
  }
  return "unrecognized error code";
}

// ---- block barriers and fences

inline void __syncthreads(EMULATOR_SITE) { emulator_barrier(kBarrierPlain, 0, file, line); }
inline int __syncthreads_count(int predicate, EMULATOR_SITE) {
  return emulator_barrier(kBarrierCount, predicate, file, line);
}
inline int __syncthreads_and(int predicate, EMULATOR_SITE) {
  return emulator_barrier(kBarrierAnd, predicate, file, line);
}
inline int __syncthreads_or(int predicate, EMULATOR_SITE) {
  return emulator_barrier(kBarrierOr, predicate, file, line);
}
inline void __threadfence() { emulator_fence(/*device_scope=*/1); }
inline void __threadfence_system() { emulator_fence(/*device_scope=*/1); }
inline void __threadfence_block() { emulator_fence(/*device_scope=*/0); }
inline void __nanosleep(unsigned) { emulator_poll(nullptr); }
inline void __trap(EMULATOR_SITE) { emulator_trap(file, line); }

// ---- warp operations: every lane named in the mask meets at the same line

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator_warp_operation(kWarpSync, mask, 0, 0, file, line);
}

// The most diverged answer that CUDA allows: code that relies on more is wrong.
inline unsigned __activemask() { return 1u << emulator::lane(); }

namespace emulator {

template <class T>
T shuffle(unsigned mask, T value, int source_lane, const char* file, int line) {
  return from_bits<T>(
      emulator_warp_operation(kWarpShuffle, mask, to_bits(value), source_lane, file, line));
}
inline int segment_begin(int width) { return lane() & ~(width - 1); }
inline int segment_end(int width) { return segment_begin(width) + width; }

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_SITE) {
  const int lane = emulator::segment_begin(width) + (source & (width - 1));
  return emulator::shuffle(mask, value, lane, file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  const int self = emulator::lane(), lane = self - static_cast<int>(delta);
  return emulator::shuffle(mask, value, lane < emulator::segment_begin(width) ? self : lane, file,
                           line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_SITE) {
  const int self = emulator::lane(), lane = self + static_cast<int>(delta);
  return emulator::shuffle(mask, value, lane >= emulator::segment_end(width) ? self : lane, file,
                           line);
}
// CUDA reads from lower segments but not from higher ones.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMULATOR_SITE) {
  const int self = emulator::lane(), lane = self ^ lane_mask;
  return emulator::shuffle(mask, value, lane >= emulator::segment_end(width) ? self : lane, file,
                           line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return static_cast<unsigned>(
      emulator_warp_operation(kWarpBallot, mask, predicate != 0, 0, file, line));
}
inline int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return emulator_warp_operation(kWarpBallot, mask, predicate != 0, 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return emulator_warp_operation(kWarpBallot, mask, predicate == 0, 0, file, line) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, EMULATOR_SITE) {
  return static_cast<unsigned>(
      emulator_warp_operation(kWarpMatchAny, mask, emulator::to_bits(value), 0, file, line));
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all_equal, EMULATOR_SITE) {
  const unsigned matched = static_cast<unsigned>(
      emulator_warp_operation(kWarpMatchAll, mask, emulator::to_bits(value), 0, file, line));
  *all_equal = matched != 0;
  return matched;
}

#define EMULATOR_WARP_REDUCTION(function, T, operation)                                         \
  inline T function(unsigned mask, T value, EMULATOR_SITE) {                                    \
    return static_cast<T>(                                                                      \
        emulator_warp_operation(operation, mask, static_cast<unsigned>(value), 0, file, line)); \
  }
EMULATOR_WARP_REDUCTION(__reduce_add_sync, int, kWarpAdd)
EMULATOR_WARP_REDUCTION(__reduce_add_sync, unsigned, kWarpAdd)
EMULATOR_WARP_REDUCTION(__reduce_min_sync, int, kWarpMinSigned)
EMULATOR_WARP_REDUCTION(__reduce_min_sync, unsigned, kWarpMinUnsigned)
EMULATOR_WARP_REDUCTION(__reduce_max_sync, int, kWarpMaxSigned)
EMULATOR_WARP_REDUCTION(__reduce_max_sync, unsigned, kWarpMaxUnsigned)
EMULATOR_WARP_REDUCTION(__reduce_and_sync, unsigned, kWarpAnd)
EMULATOR_WARP_REDUCTION(__reduce_or_sync, unsigned, kWarpOr)
EMULATOR_WARP_REDUCTION(__reduce_xor_sync, unsigned, kWarpXor)
#undef EMULATOR_WARP_REDUCTION

// ---- atomics: device scope, relaxed. One OS thread runs everything, so a plain update is atomic.

namespace emulator {

template <class T, class Update>
EMULATOR_INLINE T read_modify_write(T* p, Update update, int memory_order = __ATOMIC_RELAXED) {
  record_atomic(p, sizeof(T), kAccessReadWrite, memory_order);
  const T before = peek(p), after = update(before);
  poke(p, after);
  // An update that changed nothing may be a thread waiting for a lock.
  if (memcmp(&before, &after, sizeof(T)) == 0) {
    emulator_poll(p);
  } else {
    emulator_progress();
  }
  return before;
}

}  // namespace emulator

#define EMULATOR_ATOMIC(function, update, ...)                                     \
  template <class T>                                                               \
  EMULATOR_INLINE T function(T* p, emulator::Same<T> v) {                          \
    static_assert(emulator::kIsOneOf<T, __VA_ARGS__>, "no such overload in CUDA"); \
    return emulator::read_modify_write(p, [v](T old) -> T { return update; });     \
  }
EMULATOR_ATOMIC(atomicAdd, old + v, int, unsigned, unsigned long long, float, double)
EMULATOR_ATOMIC(atomicSub, old - v, int, unsigned)
EMULATOR_ATOMIC(atomicMin, v < old ? v : old, int, unsigned, long long, unsigned long long)
EMULATOR_ATOMIC(atomicMax, old < v ? v : old, int, unsigned, long long, unsigned long long)
EMULATOR_ATOMIC(atomicExch, (static_cast<void>(old), v), int, unsigned, unsigned long long, float)
EMULATOR_ATOMIC(atomicAnd, old& v, int, unsigned, unsigned long long)
EMULATOR_ATOMIC(atomicOr, old | v, int, unsigned, unsigned long long)
EMULATOR_ATOMIC(atomicXor, old ^ v, int, unsigned, unsigned long long)
EMULATOR_ATOMIC(atomicInc, old >= v ? 0 : old + 1, unsigned)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1, unsigned)
#undef EMULATOR_ATOMIC

template <class T>
EMULATOR_INLINE T atomicCAS(T* p, emulator::Same<T> expected, emulator::Same<T> desired) {
  static_assert(emulator::kIsOneOf<T, int, unsigned, unsigned long long>,
                "no such overload in CUDA");
  return emulator::read_modify_write(p,
                                     [=](T old) -> T { return old == expected ? desired : old; });
}

// ---- loads and stores with a cache hint. g++ splits *p of a vector type into scalar accesses
// before they are recorded; these record one access of the full width.

namespace emulator {

template <class T>
EMULATOR_INLINE T hinted_load(const T* p) {
  static_assert(std::is_arithmetic<T>::value || kIsVectorType<T>, "no such overload in CUDA");
  record_plain(p, sizeof(T), kAccessRead);
  return peek(p);
}
template <class T>
EMULATOR_INLINE void hinted_store(T* p, T v) {
  static_assert(std::is_arithmetic<T>::value || kIsVectorType<T>, "no such overload in CUDA");
  record_plain(p, sizeof(T), kAccessWrite);
  poke(p, v);
}

}  // namespace emulator

#define EMULATOR_HINTED_LOAD(function)     \
  template <class T>                       \
  EMULATOR_INLINE T function(const T* p) { \
    return emulator::hinted_load(p);       \
  }
EMULATOR_HINTED_LOAD(__ldg)
EMULATOR_HINTED_LOAD(__ldca)
EMULATOR_HINTED_LOAD(__ldcg)
EMULATOR_HINTED_LOAD(__ldcs)
#undef EMULATOR_HINTED_LOAD

#define EMULATOR_HINTED_STORE(function)                      \
  template <class T>                                         \
  EMULATOR_INLINE void function(T* p, emulator::Same<T> v) { \
    emulator::hinted_store(p, v);                            \
  }
EMULATOR_HINTED_STORE(__stcg)
EMULATOR_HINTED_STORE(__stcs)
EMULATOR_HINTED_STORE(__stwb)
#undef EMULATOR_HINTED_STORE

#include "simt_grid.h"
