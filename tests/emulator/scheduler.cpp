// SPDX-License-Identifier: Apache-2.0
// Decides which thread runs next. Seed 0: round robin within a block, and a block keeps the machine
// until all its runnable threads poll. Other seeds: random threads, blocks and preemptions,
// repeatable by seed. A block is admitted when the machine is empty or the resident blocks poll for
// something that they cannot give each other; so a kernel that needs a block which CUDA does not
// promise to run is caught as a livelock.
#include <algorithm>
#include <cstdio>

#include "checker.h"
#include "runtime.h"

namespace emulator {
namespace {

// Polls for each runnable thread: a loop of atomics that change nothing is no livelock if it ends.
// The first limit is what finds livelocks. The second is for loops in which some threads poll and
// the rest of the block keeps meeting in warp operations.
constexpr uint64_t kMaxPollsWithoutStep = 10000;
constexpr uint64_t kMaxPollsWithoutChange = 200000;
constexpr size_t kMaxThreads = 1024;

void start_thread(Block& block, unsigned index) {
  const dim3& size = runtime.launch.block;
  Fiber& fiber = block.fibers[index];
  fiber.block = &block;
  fiber.block_index = block.index;
  fiber.block_size = size;
  fiber.grid_size = runtime.launch.grid;
  fiber.thread_index = {index % size.x, index / size.x % size.y, index / (size.x * size.y)};
  fiber.index = index;
  fiber.lane = index % kWarpSize;
  fiber.warp = index / kWarpSize;
  fiber.last_polled = nullptr;
  fiber.num_polls = 0;
  fiber.polled = false;
  prepare_fiber(fiber);
  make_ready(fiber);
}

std::unique_ptr<Block> start_block(unsigned linear_index) {
  const dim3& grid = runtime.launch.grid;
  auto block = std::make_unique<Block>(static_cast<unsigned>(runtime.launch.num_threads()));
  block->linear_index = linear_index;
  block->index = {linear_index % grid.x, linear_index / grid.x % grid.y,
                  linear_index / (grid.x * grid.y)};
  runtime.statistics.blocks++;
  checker_begin_block(*block);
  create_shared_memory(*block);
  for (unsigned i = 0; i < block->fibers.size(); i++) start_thread(*block, i);
  return block;
}

void end_block(Block& block) {
  for (Fiber& fiber : block.fibers) release_fiber(fiber);
  destroy_shared_memory(block);
  checker_end_block(block);
}

std::string describe_wait(const Fiber& fiber) {
  std::string text = " thread " + std::to_string(fiber.index) + " at ";
  if (fiber.state == FiberState::kAtBarrier) return text + "the barrier " + fiber.site.text() + ";";
  char mask[32];
  snprintf(mask, sizeof(mask), " with mask %08x;", fiber.mask);
  return text + "the warp operation " + fiber.site.text() + mask;
}

void report_deadlock(const Block& block) {
  constexpr unsigned kMaxShown = 4;
  unsigned num_waiting = 0;
  std::string waiting;
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state == FiberState::kDone) continue;
    if (num_waiting++ < kMaxShown) waiting += describe_wait(fiber);
  }
  report("DEADLOCK in block %u: %u of %zu threads wait, %u have left:%s%s", block.linear_index,
         num_waiting, block.fibers.size(), static_cast<unsigned>(block.fibers.size()) - num_waiting,
         waiting.c_str(), num_waiting > kMaxShown ? " ..." : "");
}

// The blocks of one launch: those waiting to be admitted, in admission order, and those on the
// machine.
class Grid {
 public:
  Grid() : num_blocks_(runtime.launch.num_blocks()) {
    const int order = runtime.config.block_order;
    if (order == 0) return;
    const size_t num_clusters = num_blocks_ / runtime.launch.cluster_size;
    order_.resize(num_clusters);
    for (size_t i = 0; i < num_clusters; i++) order_[i] = static_cast<unsigned>(i);
    if (order == 1) std::reverse(order_.begin(), order_.end());
    if (order == 2) {
      for (size_t i = num_clusters; i > 1; i--) std::swap(order_[i - 1], order_[random_below(i)]);
    }
  }

  ~Grid() {
    for (auto& block : resident_) end_block(*block);
  }

  void run() {
    while (!runtime.aborted && (num_admitted_ < num_blocks_ || !resident_.empty())) {
      if (resident_.empty()) admit();
      if (runtime.randomised()) choose_at_random();
      Block& block = *resident_[chosen_];
      if (block.num_alive == 0) {
        retire_chosen();
      } else if (block.ready.size() == 0) {
        report_deadlock(block);
        abort_launch();
      } else if (block.polls_without_progress < block.ready.size() || !leave_polling_block()) {
        run_one_thread(block);
      }
    }
  }

 private:
  bool can_admit() const {
    if (num_admitted_ == num_blocks_) return false;
    return runtime.launch.grid_barrier != nullptr ||
           resident_.size() < static_cast<size_t>(std::max(1, runtime.config.resident_blocks));
  }

  // A cluster at a time.
  void admit() {
    const unsigned size = runtime.launch.cluster_size;
    const auto next = static_cast<unsigned>(num_admitted_ / size);
    const unsigned cluster = order_.empty() ? next : order_[next];
    for (unsigned rank = 0; rank < size; rank++) {
      resident_.push_back(start_block(cluster * size + rank));
    }
    num_admitted_ += size;
    chosen_ = resident_.size() - 1;
  }

  void retire_chosen() {
    end_block(*resident_[chosen_]);
    resident_.erase(resident_.begin() + static_cast<ptrdiff_t>(chosen_));
    chosen_ = 0;
  }

  void choose_at_random() {
    if (can_admit() && random_chance(1, 64)) admit();
    if (random_chance(1, 8)) chosen_ = random_below(resident_.size());
  }

  bool livelocked() const {
    size_t num_ready = 0;
    for (const auto& block : resident_) num_ready += block->ready.size();
    return runtime.polls_without_step > kMaxPollsWithoutStep * num_ready ||
           runtime.polls_without_change > kMaxPollsWithoutChange * num_ready;
  }

  // All runnable threads of the chosen block poll. Returns false if it must go on nevertheless.
  bool leave_polling_block() {
    resident_[chosen_]->polls_without_progress = 0;
    if (can_admit()) {
      admit();
      return true;
    }
    if (livelocked()) {
      report("LIVELOCK: the %zu resident blocks poll without progress, %zu blocks have not started",
             resident_.size(), num_blocks_ - num_admitted_);
      abort_launch();
      return true;
    }
    chosen_ = (chosen_ + 1) % resident_.size();
    return resident_.size() > 1;
  }

  void run_one_thread(Block& block) {
    if (runtime.randomised()) block.ready.bring_to_front(random_below(block.ready.size()));
    resume_fiber(block.fibers[block.ready.pop()]);
  }

  const size_t num_blocks_;
  std::vector<unsigned> order_;  // of clusters; empty: ascending
  size_t num_admitted_ = static_cast<size_t>(runtime.config.first_block);
  std::vector<std::unique_ptr<Block>> resident_;
  size_t chosen_ = 0;
};

// DYNPRUNE_LAUNCH takes kernels in parentheses.
std::string without_parentheses(const std::string& name) {
  const bool enclosed = name.size() >= 2 && name.front() == '(' && name.back() == ')';
  return enclosed ? name.substr(1, name.size() - 2) : name;
}

bool valid_launch(const Launch& launch) {
  const dim3 &g = launch.grid, &b = launch.block;
  const bool block_fits = b.x >= 1 && b.y >= 1 && b.z >= 1 && b.x <= kMaxThreads &&
                          b.y <= kMaxThreads && b.z <= 64 && launch.num_threads() <= kMaxThreads;
  const bool grid_fits = g.x >= 1 && g.y >= 1 && g.z >= 1 && g.x <= 0x7fffffffu && g.y <= 65535 &&
                         g.z <= 65535 && launch.num_blocks() <= 0xffffffffu;
  const unsigned cluster = launch.cluster_size;
  const bool cluster_fits =
      cluster == 1 || (cluster >= 1 && g.x % cluster == 0 &&
                       cluster <= static_cast<unsigned>(runtime.config.max_cluster));
  return block_fits && grid_fits && cluster_fits &&
         launch.dynamic_shared_bytes <= static_cast<size_t>(runtime.config.shared_bytes) &&
         launch.dynamic_shared_bytes <= most_shared_bytes(launch.function);
}

unsigned* allocate_barriers(size_t number, const char* name) {
  void* counters = emulator_allocate(number * sizeof(unsigned), name, 1);
  memset(counters, 0, number * sizeof(unsigned));
  return static_cast<unsigned*>(counters);
}

}  // namespace

void make_ready(Fiber& fiber) {
  fiber.state = FiberState::kReady;
  fiber.block->ready.push(fiber.index);
}

void give_way() {
  make_ready(*current_fiber());
  suspend_current_fiber();
}

void finish_current_thread() {
  Fiber& self = *current_fiber();
  Block& block = *self.block;
  emulator_progress();
  self.state = FiberState::kDone;
  block.num_alive--;
  const int phase = static_cast<int>(block.barrier.phase);
  if (runtime.config.strict && block.exit_phase >= 0 && block.exit_phase != phase) {
    report("threads of one block leave after different numbers of barriers (%d and %d)",
           block.exit_phase, phase);
  }
  block.exit_phase = phase;
  // Threads that have left do not take part in barriers.
  if (block.num_alive > 0 && block.barrier.num_arrived == block.num_alive) complete_barrier(block);
}

void run_grid() {
  Grid grid;
  grid.run();
}

cudaError_t launch(Launch launch, bool cooperative) {
  if (runtime.aborted) return cudaErrorLaunchFailure;  // cudaGetLastError still tells
  runtime.launch = std::move(launch);
  const dim3 &grid = runtime.launch.grid, &block = runtime.launch.block;
  if (!valid_launch(runtime.launch)) {
    report(
        "INVALID LAUNCH: grid (%u,%u,%u), clusters of %u, block (%u,%u,%u), %zu bytes of dynamic "
        "shared memory",
        grid.x, grid.y, grid.z, runtime.launch.cluster_size, block.x, block.y, block.z,
        runtime.launch.dynamic_shared_bytes);
    return cudaErrorInvalidConfiguration;
  }
  if (cooperative) {
    const int granted = runtime.config.granted_blocks;
    const int most = granted > 0 ? granted : runtime.config.multiprocessors;
    if (runtime.config.refuse_cooperative != 0 ||
        runtime.launch.num_blocks() > static_cast<size_t>(most)) {
      return cudaErrorCooperativeLaunchTooLarge;
    }
    runtime.launch.grid_barrier = allocate_barriers(2, "grid barrier");
  }
  if (const unsigned size = runtime.launch.cluster_size; size > 1) {
    runtime.launch.cluster_barriers =
        allocate_barriers(2 * runtime.launch.num_blocks() / size, "cluster barriers");
  }
  runtime.random_state = (runtime.config.seed + 1) * 0x9E3779B97F4A7C15ull | 1;
  runtime.polls_without_step = runtime.polls_without_change = 0;
  runtime.statistics.launches++;
  checker_begin_launch();
  run_grid();
  runtime.launch.name = "host code";
  emulator_free(runtime.launch.grid_barrier);
  emulator_free(runtime.launch.cluster_barriers);
  return runtime.aborted ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace emulator

using namespace emulator;

extern "C" {

// The first poll of an address is free, repeating it is a busy wait; so is every 16th poll, in case
// a thread polls several addresses in turn.
void emulator_poll(const void* address) {
  Fiber* self = current_fiber();
  if (self == nullptr) return;
  const bool repeated = address == nullptr || self->last_polled == address;
  self->last_polled = address;
  if (!repeated && ++self->num_polls % 16 != 0 &&
      !(runtime.randomised() && random_chance(runtime.config.preempt, 256))) {
    return;
  }
  self->block->polls_without_progress++;
  self->polled = true;
  runtime.polls_without_step++;
  runtime.polls_without_change++;
  give_way();
}

void emulator_progress() {
  Fiber* self = current_fiber();
  if (self == nullptr) return;
  self->block->polls_without_progress = 0;
  self->last_polled = nullptr;
  runtime.polls_without_step = runtime.polls_without_change = 0;
  if (self->state == FiberState::kReady && runtime.randomised() &&
      random_chance(runtime.config.preempt, 256)) {
    give_way();
  }
}

void emulator_fence(int device_scope) {
  Fiber* self = current_fiber();
  if (self == nullptr) return;
  checker_fence(*self, device_scope != 0);
  if (runtime.randomised() && random_chance(runtime.config.preempt, 256)) give_way();
}

void emulator_launch(const char* name, const void* function, dim3 grid, dim3 block,
                     size_t dynamic_shared_bytes, void (*kernel)(void*), void* arguments) {
  const cudaError_t error = launch(
      {without_parentheses(name), function, grid, block, dynamic_shared_bytes, kernel, arguments},
      /*cooperative=*/false);
  if (error != cudaSuccess) runtime.last_error = error;
}

int emulator_launch_cooperative(const char* name, const void* function, dim3 grid, dim3 block,
                                size_t dynamic_shared_bytes, void (*kernel)(void*),
                                void* arguments) {
  const cudaError_t error = launch(
      {without_parentheses(name), function, grid, block, dynamic_shared_bytes, kernel, arguments},
      /*cooperative=*/true);
  if (error != cudaSuccess) runtime.last_error = error;
  return error;
}

int emulator_launch_clusters(const char* name, const void* function, dim3 grid, unsigned cluster,
                             dim3 block, size_t dynamic_shared_bytes, void (*kernel)(void*),
                             void* arguments) {
  Launch clusters{without_parentheses(name), function, grid,     block,
                  dynamic_shared_bytes,      kernel,   arguments};
  clusters.cluster_size = cluster;
  const cudaError_t error = runtime.config.refuse_clusters != 0
                                ? cudaErrorCooperativeLaunchTooLarge
                                : launch(std::move(clusters), /*cooperative=*/false);
  if (error != cudaSuccess) runtime.last_error = error;
  return error;
}

int emulator_resident_clusters(unsigned cluster) {
  if (static_cast<int>(cluster) > runtime.config.max_cluster) return 0;
  return std::max(1, runtime.config.multiprocessors / static_cast<int>(cluster));
}

unsigned emulator_cluster_size() { return runtime.launch.cluster_size; }

unsigned* emulator_cluster_barrier() {
  if (runtime.launch.cluster_barriers == nullptr) {
    report("cluster_sync() in a kernel that was not launched in clusters");
    abort_launch();
  }
  Block& block = *current_fiber()->block;
  return runtime.launch.cluster_barriers + 2 * (block.linear_index / runtime.launch.cluster_size) +
         block.num_meetings++ % 2;
}

void* emulator_grid_workspace() { return runtime.launch.grid_barrier; }

// Cooperative groups count arrivals in the second word.
void emulator_note_release(const void* address) {
  const bool barrier =
      runtime.launch.grid_barrier != nullptr && address == runtime.launch.grid_barrier + 1;
  if (barrier && current_fiber()->block->linear_index == 0) runtime.statistics.grid_barriers++;
}

unsigned* emulator_grid_barrier() {
  if (runtime.launch.grid_barrier == nullptr) {
    report("grid_sync() in a kernel that was not launched cooperatively");
    abort_launch();
  }
  Block& block = *current_fiber()->block;
  if (block.linear_index == 0) runtime.statistics.grid_barriers++;
  return runtime.launch.grid_barrier + block.num_meetings++ % 2;
}

}  // extern "C"
