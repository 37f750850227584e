// SPDX-License-Identifier: Apache-2.0
// The functions that g++ and clang++ call for -fsanitize=thread. Kernels are compiled with that
// option but not linked to its library: these take its place and hand every access to the checker.
// Each notes its return address, which is in the kernel.
#include <cstring>

#include "checker_state.h"

using namespace emulator;

#define HERE __builtin_return_address(0)

extern "C" {

void emulator_record_plain(const volatile void* p, size_t bytes, int access) {
  check_access(p, bytes, static_cast<EmulatorAccess>(access), /*atomic=*/false, HERE);
}
void emulator_record_atomic(const volatile void* p, size_t bytes, int access, int memory_order) {
  check_atomic(p, bytes, static_cast<EmulatorAccess>(access), memory_order, HERE);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// A volatile read may be a busy wait, like an ordered load.
#define PLAIN_ACCESSES(bytes)                                                                      \
  void __tsan_read##bytes(void* p) { check_access(p, bytes, kAccessRead, false, HERE); }           \
  void __tsan_write##bytes(void* p) { check_access(p, bytes, kAccessWrite, false, HERE); }         \
  void __tsan_unaligned_read##bytes(void* p) { check_access(p, bytes, kAccessRead, false, HERE); } \
  void __tsan_unaligned_write##bytes(void* p) {                                                    \
    check_access(p, bytes, kAccessWrite, false, HERE);                                             \
  }                                                                                                \
  void __tsan_read_write##bytes(void* p) {                                                         \
    check_access(p, bytes, kAccessReadWrite, false, HERE);                                         \
  }                                                                                                \
  void __tsan_volatile_read##bytes(void* p) {                                                      \
    emulator_poll(p);                                                                              \
    check_atomic(p, bytes, kAccessRead, __ATOMIC_RELAXED, HERE);                                   \
  }                                                                                                \
  void __tsan_volatile_write##bytes(void* p) {                                                     \
    check_atomic(p, bytes, kAccessWrite, __ATOMIC_RELAXED, HERE);                                  \
  }                                                                                                \
  void __tsan_unaligned_volatile_read##bytes(void* p) {                                            \
    check_atomic(p, bytes, kAccessRead, __ATOMIC_RELAXED, HERE);                                   \
  }                                                                                                \
  void __tsan_unaligned_volatile_write##bytes(void* p) {                                           \
    check_atomic(p, bytes, kAccessWrite, __ATOMIC_RELAXED, HERE);                                  \
  }
PLAIN_ACCESSES(1)
PLAIN_ACCESSES(2)
PLAIN_ACCESSES(4)
PLAIN_ACCESSES(8)
PLAIN_ACCESSES(16)

void __tsan_read_range(void* p, size_t bytes) { check_access(p, bytes, kAccessRead, false, HERE); }
void __tsan_write_range(void* p, size_t bytes) {
  check_access(p, bytes, kAccessWrite, false, HERE);
}

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  check_access(from, bytes, kAccessRead, false, HERE);
  check_access(to, bytes, kAccessWrite, false, HERE);
  return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  check_access(from, bytes, kAccessRead, false, HERE);
  check_access(to, bytes, kAccessWrite, false, HERE);
  return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  check_access(to, bytes, kAccessWrite, false, HERE);
  return memset(to, value, bytes);
}

// Kernels use CUDA's atomics; these serve host code, such as the guards of static variables, and
// __atomic builtins.
#define FETCH(bits, T, name, update)                                           \
  T __tsan_atomic##bits##_fetch_##name(volatile T* p, T v, int memory_order) { \
    check_atomic(p, sizeof(T), kAccessReadWrite, memory_order, HERE);          \
    const T old = *p;                                                          \
    *p = static_cast<T>(update);                                               \
    return old;                                                                \
  }
#define ATOMICS(bits, T)                                                                         \
  T __tsan_atomic##bits##_load(const volatile T* p, int memory_order) {                          \
    check_atomic(p, sizeof(T), kAccessRead, memory_order, HERE);                                 \
    return *p;                                                                                   \
  }                                                                                              \
  void __tsan_atomic##bits##_store(volatile T* p, T v, int memory_order) {                       \
    check_atomic(p, sizeof(T), kAccessWrite, memory_order, HERE);                                \
    *p = v;                                                                                      \
  }                                                                                              \
  T __tsan_atomic##bits##_exchange(volatile T* p, T v, int memory_order) {                       \
    check_atomic(p, sizeof(T), kAccessReadWrite, memory_order, HERE);                            \
    const T old = *p;                                                                            \
    *p = v;                                                                                      \
    return old;                                                                                  \
  }                                                                                              \
  T __tsan_atomic##bits##_compare_exchange_val(volatile T* p, T expected, T v, int memory_order, \
                                               int) {                                            \
    check_atomic(p, sizeof(T), kAccessReadWrite, memory_order, HERE);                            \
    const T old = *p;                                                                            \
    if (old == expected) *p = v;                                                                 \
    return old;                                                                                  \
  }                                                                                              \
  int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* expected, T v,             \
                                                    int memory_order, int) {                     \
    check_atomic(p, sizeof(T), kAccessReadWrite, memory_order, HERE);                            \
    const T old = *p;                                                                            \
    const bool equal = old == *expected;                                                         \
    if (equal) *p = v;                                                                           \
    *expected = old;                                                                             \
    return equal;                                                                                \
  }                                                                                              \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* expected, T v,               \
                                                  int memory_order, int) {                       \
    check_atomic(p, sizeof(T), kAccessReadWrite, memory_order, HERE);                            \
    const T old = *p;                                                                            \
    const bool equal = old == *expected;                                                         \
    if (equal) *p = v;                                                                           \
    *expected = old;                                                                             \
    return equal;                                                                                \
  }                                                                                              \
  FETCH(bits, T, add, old + v)                                                                   \
  FETCH(bits, T, sub, old - v)                                                                   \
  FETCH(bits, T, and, old& v)                                                                    \
  FETCH(bits, T, or, old | v)                                                                    \
  FETCH(bits, T, xor, old ^ v)
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

void __tsan_atomic_thread_fence(int) { emulator_fence(/*device_scope=*/1); }
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"
