// SPDX-License-Identifier: Apache-2.0
// What the parts of the emulator's runtime share. A Fiber is one CUDA thread; a Block owns its
// fibers, its shared memory and the state of its barrier; one OS thread runs everything, so nothing
// here is locked.
//   fiber.cpp        stacks and the context switch
//   scheduler.cpp    which fiber runs next: blocks, polling, preemption, launches
//   collectives.cpp  block barriers and warp operations
//   memory.cpp       shared memory, device allocations
//   devices.cpp      attributes of devices and kernels
//   report.cpp       errors, configuration, statistics
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "runtime_api.h"

namespace emulator {

constexpr unsigned kWarpSize = 32;
constexpr int kPoison = 0xCB;  // fills memory that nobody has written
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // of a fiber: red zones make frames large
#else
constexpr size_t kStackBytes = 64 << 10;
#endif

struct Block;
struct BlockHistory;  // the checker's notes about a block (checker.h)

enum class FiberState : uint8_t { kReady, kAtBarrier, kAtWarpOperation, kDone };

struct Site {
  const char* file = nullptr;
  int line = 0;

  std::string text() const {
    const char* slash = strrchr(file, '/');
    return std::string(slash != nullptr ? slash + 1 : file) + ":" + std::to_string(line);
  }
};

struct Fiber : EmulatorThread {
  Block* block;
  unsigned index;  // within the block
  unsigned warp;
  FiberState state;

  // The collective operation that the fiber waits in, or was last in.
  Site site;
  unsigned mask;
  uint64_t operand, result;
  int source_lane;

  const void* last_polled;
  unsigned num_polls;
  bool polled;  // since its last collective operation

  char* stack;
  void* stack_pointer;  // while suspended
  void* asan_fake_stack;
};

// Ready fibers of a block, by index, first in first out.
class ReadyQueue {
 public:
  explicit ReadyQueue(size_t capacity) : slots_(capacity) {}
  size_t size() const { return size_; }
  void push(unsigned index) { slots_[(head_ + size_++) % slots_.size()] = index; }
  unsigned pop() {
    const unsigned index = slots_[head_];
    head_ = (head_ + 1) % slots_.size();
    size_--;
    return index;
  }
  void bring_to_front(size_t position) {
    std::swap(slots_[head_], slots_[(head_ + position) % slots_.size()]);
  }

 private:
  std::vector<unsigned> slots_;
  size_t head_ = 0, size_ = 0;
};

struct Barrier {
  Site site;  // of the phase's first arrival
  unsigned num_arrived = 0;
  unsigned num_true = 0;  // arrivals whose predicate holds
  unsigned phase = 0;
  // Of the last complete phase: nobody can complete another before all have read these.
  unsigned num_participants = 0;
  int result = 0;
};

// Lanes of a warp that are to meet in one operation.
struct Rendezvous {
  unsigned mask, arrived;
  EmulatorWarpOperation operation;
  Site site;
};

struct SharedVariable {
  const void* tag;
  void* memory;
  size_t bytes;
};

struct Block {
  Block(unsigned num_threads) : num_alive(num_threads), fibers(num_threads), ready(num_threads) {
    rendezvous.resize((num_threads + kWarpSize - 1) / kWarpSize);
  }

  uint3 index;
  unsigned linear_index;
  unsigned num_alive;
  std::vector<Fiber> fibers;
  ReadyQueue ready;
  size_t polls_without_progress = 0;
  Barrier barrier;
  unsigned num_meetings = 0;  // with other blocks
  int exit_phase = -1;        // how many barriers the threads that have left took part in
  std::vector<std::vector<Rendezvous>> rendezvous;  // of each warp
  std::vector<SharedVariable> shared_variables;
  void* dynamic_shared = nullptr;
  BlockHistory* history = nullptr;
};

struct Launch {
  std::string name = "host code";  // the kernel's, while it runs
  const void* function = nullptr;  // the kernel itself
  dim3 grid, block;
  size_t dynamic_shared_bytes = 0;
  void (*kernel)(void*) = nullptr;
  void* arguments = nullptr;
  unsigned* grid_barrier = nullptr;      // two, of a cooperative launch
  unsigned cluster_size = 1;             // in blocks
  unsigned* cluster_barriers = nullptr;  // two for each cluster

  size_t num_blocks() const { return static_cast<size_t>(grid.x) * grid.y * grid.z; }
  size_t num_threads() const { return static_cast<size_t>(block.x) * block.y * block.z; }
};

struct Runtime {
  EmulatorConfig config = {0, 64, 0, 0, 1, 4, 227 * 1024, 0, 8, 0};
  EmulatorStatistics statistics = {};
  Launch launch;
  uint64_t random_state = 1;
  // Polls of the whole grid since a thread changed something that others can see, and since any
  // thread got further: for that, a collective operation counts in which nobody takes part who
  // polls.
  uint64_t polls_without_change = 0;
  uint64_t polls_without_step = 0;
  bool aborted = false;  // the launch in progress, or the last one
  int last_error = cudaSuccess;
  std::string reports;

  bool randomised() const { return config.seed != 0; }
};
extern Runtime runtime;

inline Fiber* current_fiber() { return static_cast<Fiber*>(emulator_current_thread); }

uint64_t random_bits();
inline size_t random_below(size_t bound) { return random_bits() % bound; }
inline bool random_chance(int chances, size_t of) {
  return static_cast<int>(random_below(of)) < chances;
}

// fiber.cpp
void prepare_fiber(Fiber& fiber);  // gives it a stack; it starts at the first resume
void resume_fiber(Fiber& fiber);   // from the scheduler; returns when the fiber suspends itself
void suspend_current_fiber();      // back to the scheduler
void release_fiber(Fiber& fiber);

// scheduler.cpp
void run_grid();
void make_ready(Fiber& fiber);
void give_way();  // the current fiber goes to the end of the queue
void finish_current_thread();

// collectives.cpp
void complete_barrier(Block& block);

// memory.cpp: shared memory lives as long as its block
void create_shared_memory(Block& block);
void destroy_shared_memory(Block& block);

// devices.cpp: that a block of the kernel may have, static and dynamic
size_t most_shared_bytes(const void* kernel);

// report.cpp
[[gnu::format(printf, 1, 2)]] void report(const char* format, ...);
// Stops the launch; does not return when a kernel's thread calls it.
void abort_launch();

}  // namespace emulator
