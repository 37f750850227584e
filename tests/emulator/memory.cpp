// SPDX-License-Identifier: Apache-2.0
// Shared memory and device allocations. Every variable is an allocation of its own with exact
// bounds, a red zone around it and poison inside: helpful zeros would hide uninitialised reads.
#include <algorithm>
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
std::map<unsigned, Block*> blocks;                 // on the machine, by linear index

// The variable of `block` that has this tag; null if it has not got there yet.
const SharedVariable* find_variable(const Block& block, const void* tag) {
  for (const SharedVariable& variable : block.shared_variables) {
    if (variable.tag == tag) return &variable;
  }
  return nullptr;
}

// How far behind `begin` an address lies; `bytes` or more if outside.
size_t offset_in(const void* begin, const void* address) {
  return static_cast<size_t>(static_cast<const char*>(address) - static_cast<const char*>(begin));
}

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
  blocks[block.linear_index] = &block;
  block.dynamic_shared = allocate_guarded(bytes, kSharedRedZone);
  checker_add_range(block.dynamic_shared, bytes, "dynamic shared memory", MemoryKind::kShared);
}

void destroy_shared_memory(Block& block) {
  blocks.erase(block.linear_index);
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
  if (const SharedVariable* known = find_variable(block, tag)) return known->memory;
  void* memory = allocate_guarded(bytes, kSharedRedZone);
  checker_add_range(memory, bytes, name, MemoryKind::kShared);
  block.shared_variables.push_back({tag, memory, bytes});
  if (shared_bytes(block) > most_shared_bytes(runtime.launch.function)) {
    report("%zu bytes of shared memory in one block", shared_bytes(block));
    abort_launch();
  }
  return memory;
}

void* emulator_dynamic_shared() { return current_fiber()->block->dynamic_shared; }

void* emulator_cluster_shared(const void* address, unsigned rank, const char* file, int line) {
  const Block& own = *current_fiber()->block;
  const unsigned size = runtime.launch.cluster_size;
  const auto found = blocks.find(own.linear_index / size * size + rank);
  const std::string site = Site{file, line}.text();
  if (rank >= size || found == blocks.end()) {
    report("CLUSTER: %s maps shared memory of rank %u, which %s", site.c_str(), rank,
           rank >= size ? "the cluster does not have" : "has left the kernel");
    abort_launch();
  }
  const Block& other = *found->second;
  const size_t in_dynamic = offset_in(own.dynamic_shared, address);
  if (in_dynamic < runtime.launch.dynamic_shared_bytes) {
    return static_cast<char*>(other.dynamic_shared) + in_dynamic;
  }
  for (const SharedVariable& mine : own.shared_variables) {
    const size_t offset = offset_in(mine.memory, address);
    if (offset >= mine.bytes) continue;
    const SharedVariable* theirs = find_variable(other, mine.tag);
    if (theirs != nullptr) return static_cast<char*>(theirs->memory) + offset;
  }
  report("CLUSTER: %s maps what is no shared memory that rank %u has", site.c_str(), rank);
  abort_launch();
  return nullptr;
}

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
