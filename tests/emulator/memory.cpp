// SPDX-License-Identifier: Apache-2.0
// Shared memory and device allocations. Every variable is an allocation of its own with exact
// bounds, a red zone around it and poison inside: helpful zeros would hide uninitialised reads.
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>

#include "checker.h"
#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

constexpr size_t kDeviceAlignment = 256;  // cudaMalloc's
constexpr size_t kDeviceRedZone = 4096;
constexpr size_t kSharedRedZone = 256;

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// [red zone | bytes | padding and red zone]; returns the address of the bytes.
char* allocate_guarded(size_t bytes, size_t red_zone) {
  const size_t total = red_zone + round_up(bytes, red_zone) + red_zone;
  char* base = static_cast<char*>(aligned_alloc(kDeviceAlignment, total));
  if (base == nullptr) throw std::bad_alloc();
  memset(base, kPoison, total);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(base, red_zone);
  __asan_poison_memory_region(base + red_zone + bytes, total - red_zone - bytes);
#endif
  return base + red_zone;
}

void free_guarded(void* address, size_t bytes, size_t red_zone) {
  char* base = static_cast<char*>(address) - red_zone;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(base, red_zone + round_up(bytes, red_zone) + red_zone);
#endif
  (void)bytes;
  free(base);
}

std::map<const char*, size_t> device_allocations;  // first byte -> number of bytes

bool inside_device_allocation(const void* address, size_t bytes) {
  const char* first = static_cast<const char*>(address);
  auto next = device_allocations.upper_bound(first);
  if (next == device_allocations.begin()) return false;
  const auto& [begin, size] = *--next;
  return first + bytes <= begin + size;
}

size_t shared_bytes(const Block& block) {
  size_t total = runtime.launch.dynamic_shared_bytes;
  for (const SharedVariable& variable : block.shared_variables) total += variable.bytes;
  return total;
}

}  // namespace

void create_shared_memory(Block& block) {
  const size_t bytes = runtime.launch.dynamic_shared_bytes;
  block.dynamic_shared = allocate_guarded(bytes, kSharedRedZone);
  checker_add_range(block.dynamic_shared, bytes, "dynamic shared memory", MemoryKind::kShared);
}

void destroy_shared_memory(Block& block) {
  for (const SharedVariable& variable : block.shared_variables) {
    checker_remove_range(variable.memory);
    free_guarded(variable.memory, variable.bytes, kSharedRedZone);
  }
  checker_remove_range(block.dynamic_shared);
  free_guarded(block.dynamic_shared, runtime.launch.dynamic_shared_bytes, kSharedRedZone);
}

}  // namespace emulator

using namespace emulator;

extern "C" {

void* emulator_shared_variable(const void* tag, size_t bytes, const char* name) {
  Block& block = *current_fiber()->block;
  for (const SharedVariable& variable : block.shared_variables) {
    if (variable.tag == tag) return variable.memory;
  }
  void* memory = allocate_guarded(bytes, kSharedRedZone);
  checker_add_range(memory, bytes, name, MemoryKind::kShared);
  block.shared_variables.push_back({tag, memory, bytes});
  if (shared_bytes(block) > emulator_shared_limit()) {
    report("%zu bytes of shared memory in one block", shared_bytes(block));
    abort_launch();
  }
  return memory;
}

void* emulator_dynamic_shared() { return current_fiber()->block->dynamic_shared; }

void* emulator_allocate(size_t bytes, const char* name, int initialised) {
  void* address = allocate_guarded(bytes, kDeviceRedZone);
  device_allocations[static_cast<char*>(address)] = bytes;
  checker_add_range(address, bytes, name, MemoryKind::kGlobal);
  if (initialised) emulator_mark_initialised(address, 1);
  return address;
}

void emulator_free(void* address) {
  const auto found = device_allocations.find(static_cast<char*>(address));
  if (found == device_allocations.end()) return;
  checker_remove_range(address);
  free_guarded(address, found->second, kDeviceRedZone);
  device_allocations.erase(found);
}

void emulator_mark_initialised(const void* address, int initialised) {
  const auto found = device_allocations.find(static_cast<const char*>(address));
  if (found == device_allocations.end()) return;
  checker_mark_initialised(address, found->second, initialised != 0);
}

int emulator_memset(void* address, int value, size_t bytes) {
  if (runtime.aborted) return cudaErrorLaunchFailure;
  if (!inside_device_allocation(address, bytes)) {
    report("cudaMemsetAsync of %zu bytes leaves the allocation that it starts in", bytes);
    return cudaErrorInvalidValue;
  }
  runtime.statistics.launches++;
  memset(address, value, bytes);
  checker_memset(address, bytes);
  return cudaSuccess;
}

}  // extern "C"
