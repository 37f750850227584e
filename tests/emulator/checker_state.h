// SPDX-License-Identifier: Apache-2.0
// What the checker remembers, about places in the program, memory, threads and blocks.
//   checker.cpp         are two accesses ordered? bounds, alignment, initialisation, races
//   memory_ranges.cpp   which variable an address belongs to; which source line a return address
//   traffic.cpp         bytes and sectors moved
//   tsan_symbols.cpp    the functions that -fsanitize=thread makes the compiler call
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "checker.h"
#include "knowledge.h"

namespace emulator {

constexpr size_t kCellBytes = 4;     // what one Cell describes
constexpr size_t kSectorBytes = 32;  // what one memory transaction moves

struct MemoryRange;

// An instruction of a kernel that accesses memory.
struct CallSite {
  const void* return_address;
  uint16_t index;
  MemoryRange* last_range = nullptr;  // valid if last_generation is the current one
  uint64_t last_generation = 0;
  uint32_t launch = 0, number = 0;  // its number among the sites of that launch, for traffic.cpp
  std::string source_line;          // once a report has needed it
};

struct Access {
  uint32_t thread;  // of the whole grid
  uint32_t clock;   // the thread's
  uint32_t epoch;   // barriers that its block had completed
  uint16_t site;
  uint8_t bytes;  // which bytes of the cell, one bit each; 0: no access
  bool atomic;
};

// Two readers are enough: a write races with any unordered one, and one of the two is kept at
// random.
struct Cell {
  Access write;
  std::array<Access, 2> reads;
  uint32_t launch;  // the accesses are of this launch: an older one is ordered before everything
  uint8_t initialised;  // which bytes
};

// The part of [begin, end) that lies in a cell, one bit for each byte.
inline uint8_t bytes_of_cell(size_t number, uintptr_t begin, uintptr_t end) {
  const uintptr_t cell = number * kCellBytes;
  const unsigned first = begin > cell ? static_cast<unsigned>(begin - cell) : 0;
  const unsigned last = end - cell < kCellBytes ? static_cast<unsigned>(end - cell) : kCellBytes;
  return static_cast<uint8_t>((1u << last) - (1u << first));
}

struct MemoryRange {
  uintptr_t begin, end;
  std::string name;
  MemoryKind kind;
  std::vector<Cell> cells;
  std::vector<bool> sectors_read, sectors_written;  // in this launch; empty for shared memory

  size_t first_cell() const { return begin / kCellBytes; }
  size_t first_sector() const { return begin / kSectorBytes; }
  Cell& cell(size_t number) { return cells[number - first_cell()]; }
};

// 32-byte sectors touched when the lanes of a warp execute one access for the k-th time.
struct Request {
  uint32_t num_sectors = 0;
  std::array<uint32_t, kWarpSize> sectors;
};

struct ThreadHistory {
  uint32_t clock = 1;
  std::array<uint32_t, kWarpSize> lane_clocks = {};  // what older __syncwarp calls ordered, by lane
  KnowledgePtr known;                                // happened before this thread's next access
  KnowledgePtr pending;        // becomes known at the next fence of device scope
  KnowledgePtr pending_block;  // ... of any scope
  KnowledgePtr released;  // what later atomic writes publish, by the last fence of device scope
  KnowledgePtr released_block;  // ... to threads of the same block, by the last fence of any scope
  uint32_t release_clock = 0;   // when `released` was taken
  std::vector<uint32_t> executions;  // of each call site of this launch
};

struct BlockHistory {
  uint32_t epoch = 0;  // barriers completed
  std::vector<ThreadHistory> threads;
  std::vector<std::vector<std::vector<Request>>> requests;  // [warp][call site][k]
};

inline ThreadHistory& history_of(const Fiber& fiber) {
  return fiber.block->history->threads[fiber.index];
}

// memory_ranges.cpp
CallSite& call_site(const void* return_address);
std::string source_line(uint16_t site);
MemoryRange* find_range(CallSite& site, uintptr_t address);
MemoryRange* nearest_range(uintptr_t address);
bool in_program_image(uintptr_t address);  // code and constants, not memory that CUDA would know
std::vector<MemoryRange*>& all_ranges();

// traffic.cpp
void count_traffic(MemoryRange& range, uintptr_t address, size_t bytes, bool write, bool atomic,
                   CallSite& site, const Fiber& fiber);
void begin_traffic_of_launch();

// checker.cpp
void check_access(const volatile void* address, size_t bytes, EmulatorAccess access, bool atomic,
                  const void* return_address);
void check_atomic(const volatile void* address, size_t bytes, EmulatorAccess access,
                  int memory_order, const void* return_address);

}  // namespace emulator
