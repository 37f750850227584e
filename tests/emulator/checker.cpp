// SPDX-License-Identifier: Apache-2.0
// The race checker: CUDA's ordering rules over every recorded access. An earlier access happened
// before the current one if it is by the same thread; by the same block before its last barrier; by
// a lane that has met the current one in __syncwarp since; or known through release and acquire.
// The rules for those are C++'s: a fence publishes what precedes it through later atomic writes of
// the same thread, and a thread that read them learns it at its next fence. Execution is
// sequentially consistent, so a missing fence never shows as a wrong result here; these rules are
// what finds it.
#include "checker_state.h"

#include <set>
#include <tuple>
#include <unordered_map>

namespace emulator {
namespace {

constexpr size_t kMaxReports = 10;  // of one launch

// What has been published through one address.
struct SyncPoint {
  KnowledgePtr device;      // to everybody who reads it
  KnowledgePtr block_only;  // to threads of `block`
  uint32_t block = 0;
};

struct LaunchChecks {
  uint32_t number = 0;  // launches so far: tells accesses of this one from older ones
  uint32_t threads_per_block = 0;
  std::unordered_map<uintptr_t, SyncPoint> sync_points;
  std::set<std::tuple<const char*, uint16_t, uint16_t>> reported;
};
LaunchChecks launch;

uint32_t thread_number(const Fiber& fiber) {
  return fiber.block->linear_index * launch.threads_per_block + fiber.index;
}

bool happened_before(const Access& earlier, const Fiber& fiber) {
  if (earlier.thread == thread_number(fiber)) return true;
  const ThreadHistory& history = history_of(fiber);
  const uint32_t block = earlier.thread / launch.threads_per_block;
  const uint32_t index = earlier.thread % launch.threads_per_block;
  if (block == fiber.block->linear_index) {
    if (earlier.epoch < fiber.block->history->epoch) return true;
    const bool same_warp = index / kWarpSize == fiber.warp;
    if (same_warp && earlier.clock < history.lane_clocks[index % kWarpSize]) return true;
  }
  return history.known != nullptr && (earlier.epoch < history.known->blocks.get(block) ||
                                      earlier.clock < history.known->threads.get(earlier.thread));
}

// Everything that happened before this point of the thread.
KnowledgePtr snapshot(const Fiber& fiber) {
  ThreadHistory& history = history_of(fiber);
  auto result = history.known != nullptr ? std::make_shared<Knowledge>(*history.known)
                                         : std::make_shared<Knowledge>();
  const uint32_t self = thread_number(fiber);
  result->blocks.raise(fiber.block->linear_index, fiber.block->history->epoch);
  for (uint32_t lane = 0; lane < kWarpSize; lane++) {
    if (history.lane_clocks[lane] == 0) continue;
    result->threads.raise(self - fiber.lane + lane, history.lane_clocks[lane]);
  }
  result->threads.raise(self, ++history.clock);
  return result;
}

bool first_report(const char* what, uint16_t site, uint16_t other_site = 0) {
  if (launch.reported.size() >= kMaxReports) return false;
  return launch.reported.insert({what, std::min(site, other_site), std::max(site, other_site)})
      .second;
}

void report_race(const char* what, const Access& earlier, const CallSite& site,
                 const MemoryRange& range, uintptr_t address) {
  if (!first_report("race", site.index, earlier.site)) return;
  report("RACE, %s, on %s at byte %zu: %s after %s by block %u thread %u", what, range.name.c_str(),
         static_cast<size_t>(std::max(address, range.begin) - range.begin),
         source_line(site.index).c_str(), source_line(earlier.site).c_str(),
         earlier.thread / launch.threads_per_block, earlier.thread % launch.threads_per_block);
}

[[gnu::noinline]] void report_out_of_bounds(uintptr_t address, size_t bytes, bool write,
                                            const CallSite& site) {
  const char* verb = write ? "write" : "read";
  const std::string where = source_line(site.index);
  const MemoryRange* near = nearest_range(address);
  if (near == nullptr) {
    report("OUT OF BOUNDS: %zu-byte %s at %s of memory that was never allocated", bytes, verb,
           where.c_str());
  } else if (address < near->begin) {
    report("OUT OF BOUNDS: %zu-byte %s at %s, %zu bytes before %s", bytes, verb, where.c_str(),
           static_cast<size_t>(near->begin - address), near->name.c_str());
  } else {
    report("OUT OF BOUNDS: %zu-byte %s at %s, byte %zu of %s, which has %zu", bytes, verb,
           where.c_str(), static_cast<size_t>(address - near->begin), near->name.c_str(),
           static_cast<size_t>(near->end - near->begin));
  }
  abort_launch();
}

void check_alignment(uintptr_t address, size_t bytes, const CallSite& site,
                     const MemoryRange& range) {
  const bool power_of_two = (bytes & (bytes - 1)) == 0;
  if (bytes > 16 || !power_of_two || address % bytes == 0) return;
  report("MISALIGNED %zu-byte access at %s to byte %zu of %s", bytes,
         source_line(site.index).c_str(), static_cast<size_t>(address - range.begin),
         range.name.c_str());
  abort_launch();
}

bool conflicts(const Access& earlier, const Access& now, const Fiber& fiber) {
  return (earlier.bytes & now.bytes) != 0 && !(earlier.atomic && now.atomic) &&
         !happened_before(earlier, fiber);
}

void remember_read(Cell& cell, const Access& now, const Fiber& fiber) {
  auto replaceable = [&](const Access& read) {
    return read.bytes == 0 || happened_before(read, fiber);
  };
  size_t slot = replaceable(cell.reads[0]) ? 0 : 1;
  if (slot == 1 && !replaceable(cell.reads[1])) slot = random_below(2);
  cell.reads[slot] = now;
}

void check_cell(Cell& cell, const Access& now, EmulatorAccess access, const CallSite& site,
                MemoryRange& range, uintptr_t address, const Fiber& fiber) {
  if (cell.launch != launch.number) {
    cell.launch = launch.number;
    cell.write.bytes = cell.reads[0].bytes = cell.reads[1].bytes = 0;
  }
  const bool reads = access != kAccessWrite, writes = access != kAccessRead;
  if (reads && (now.bytes & ~cell.initialised) != 0 && first_report("uninitialised", site.index)) {
    report("UNINITIALISED read of %s at byte %zu: %s", range.name.c_str(),
           static_cast<size_t>(std::max(address, range.begin) - range.begin),
           source_line(site.index).c_str());
  }
  if (conflicts(cell.write, now, fiber)) {
    report_race(writes ? "write after write" : "read after write", cell.write, site, range,
                address);
  }
  if (!writes) {
    remember_read(cell, now, fiber);
    return;
  }
  for (const Access& read : cell.reads) {
    if (conflicts(read, now, fiber)) report_race("write after read", read, site, range, address);
  }
  cell.write = now;
  cell.initialised |= now.bytes;
}

// The clock to note for an access. The atomic that publishes a fence counts as part of what it
// publishes, so that the last block may reset the ticket that all blocks have drawn.
uint32_t access_clock(const ThreadHistory& history, bool publishes) {
  return publishes && history.released != nullptr ? history.release_clock - 1 : history.clock;
}

void publish_and_learn(Fiber& fiber, uintptr_t address, EmulatorAccess access, int memory_order) {
  ThreadHistory& history = history_of(fiber);
  const uint32_t block = fiber.block->linear_index;
  const bool reads = access != kAccessWrite, writes = access != kAccessRead;
  const bool acquires = memory_order == __ATOMIC_ACQUIRE || memory_order >= __ATOMIC_ACQ_REL;
  const bool releases = memory_order >= __ATOMIC_RELEASE;
  const auto found = launch.sync_points.find(address);
  SyncPoint old = found != launch.sync_points.end() ? found->second : SyncPoint{};
  if (old.block != block) old.block_only = nullptr;

  if (reads) {
    const KnowledgePtr offered = join(old.device, old.block_only);
    if (acquires) {
      history.known = join(history.known, offered);
    } else {
      history.pending = join(history.pending, offered);
      if (old.block == block) history.pending_block = join(history.pending_block, offered);
    }
  }
  if (!writes) return;
  SyncPoint now;
  now.block = block;
  now.device = releases ? snapshot(fiber) : history.released;
  now.block_only = history.released_block;
  if (reads) {  // a read-modify-write passes on what it found
    now.device = join(now.device, old.device);
    now.block_only = join(now.block_only, old.block_only);
  }
  if (now.device != nullptr || now.block_only != nullptr) {
    launch.sync_points[address] = std::move(now);
  } else if (found != launch.sync_points.end()) {
    launch.sync_points.erase(found);
  }
}

}  // namespace

void check_access(const volatile void* pointer, size_t bytes, EmulatorAccess access, bool atomic,
                  const void* return_address) {
  Fiber* fiber = current_fiber();
  if (fiber == nullptr || bytes == 0) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer), end = address + bytes;
  if (address - reinterpret_cast<uintptr_t>(fiber->stack) < kStackBytes) return;

  CallSite& site = call_site(return_address);
  const bool writes = access != kAccessRead;
  MemoryRange* range = find_range(site, address);
  if (range == nullptr && in_program_image(address)) return;
  if (range == nullptr || end > range->end) {
    report_out_of_bounds(address, bytes, writes, site);
  }
  check_alignment(address, bytes, site, *range);
  if (runtime.randomised() && random_chance(runtime.config.preempt, 4096)) give_way();

  if (range->kind == MemoryKind::kGlobal) {
    count_traffic(*range, address, bytes, writes, atomic, site, *fiber);
  }
  Access now;
  now.thread = thread_number(*fiber);
  now.clock = access_clock(history_of(*fiber), atomic && writes);
  now.epoch = fiber->block->history->epoch;
  now.site = site.index;
  now.atomic = atomic;
  for (uintptr_t number = address / kCellBytes; number * kCellBytes < end; number++) {
    now.bytes = bytes_of_cell(number, address, end);
    check_cell(range->cell(number), now, access, site, *range, number * kCellBytes, *fiber);
  }
}

void check_atomic(const volatile void* pointer, size_t bytes, EmulatorAccess access,
                  int memory_order, const void* return_address) {
  Fiber* fiber = current_fiber();
  if (fiber == nullptr) return;
  check_access(pointer, bytes, access, /*atomic=*/true, return_address);
  publish_and_learn(*fiber, reinterpret_cast<uintptr_t>(pointer), access, memory_order);
}

void checker_begin_launch() {
  launch.number++;
  launch.threads_per_block = static_cast<uint32_t>(runtime.launch.num_threads());
  launch.sync_points.clear();
  launch.reported.clear();
  begin_traffic_of_launch();
}

void checker_begin_block(Block& block) {
  block.history = new BlockHistory;
  block.history->threads.resize(block.fibers.size());
  block.history->requests.resize(block.rendezvous.size());
}

void checker_end_block(Block& block) { delete block.history; }

// Everybody at the barrier learns what anybody there knew. Threads that have left do not take part,
// but their accesses count as older than the barrier.
void checker_barrier(Block& block) {
  block.history->epoch++;
  KnowledgePtr common;
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state == FiberState::kAtBarrier) common = join(common, history_of(fiber).known);
  }
  for (const Fiber& fiber : block.fibers) {
    if (fiber.state == FiberState::kAtBarrier) history_of(fiber).known = common;
  }
}

void checker_syncwarp(Block& block, unsigned warp, unsigned mask) {
  std::array<uint32_t, kWarpSize> clocks = {};
  KnowledgePtr common;
  ThreadHistory* threads = &block.history->threads[warp * kWarpSize];
  for (unsigned lane = 0; lane < kWarpSize; lane++) {
    if ((mask >> lane & 1) == 0) continue;
    ThreadHistory& history = threads[lane];
    for (unsigned i = 0; i < kWarpSize; i++) {
      clocks[i] = std::max(clocks[i], history.lane_clocks[i]);
    }
    clocks[lane] = std::max(clocks[lane], ++history.clock);
    common = join(common, history.known);
  }
  for (unsigned lane = 0; lane < kWarpSize; lane++) {
    if ((mask >> lane & 1) == 0) continue;
    threads[lane].lane_clocks = clocks;
    threads[lane].known = common;
  }
}

void checker_fence(Fiber& fiber, bool device_scope) {
  ThreadHistory& history = history_of(fiber);
  history.known = join(history.known, device_scope ? history.pending : history.pending_block);
  history.pending_block = nullptr;
  history.released_block = snapshot(fiber);
  if (!device_scope) return;
  history.pending = nullptr;
  history.released = history.released_block;
  history.release_clock = history.clock;
}

}  // namespace emulator
