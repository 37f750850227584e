// SPDX-License-Identifier: Apache-2.0
// Block barriers and warp operations. Both compare where the participants come from: CUDA leaves a
// barrier or a warp operation that threads reach at different places undefined, and so does not say
// what breaks.
#include <cstring>

#include "checker.h"
#include "runtime.h"

namespace emulator {
namespace {

constexpr size_t kMaxRendezvous = 8;  // disjoint groups of one warp that wait at the same time
constexpr uint64_t kUndefinedResult = 0xDEADBEEFDEADBEEFull;

bool same_site(const Site& a, const Site& b) {
  return a.line == b.line && strcmp(a.file, b.file) == 0;
}

int lowest_lane(unsigned mask) { return __builtin_ctz(mask); }

unsigned existing_lanes(const Block& block, unsigned warp) {
  const size_t num_lanes = block.fibers.size() - warp * kWarpSize;
  return num_lanes >= kWarpSize ? 0xffffffffu : (1u << num_lanes) - 1;
}

// Calls f with the fiber of each lane in the mask, lowest first.
template <class F>
void for_each_lane(Block& block, unsigned warp, unsigned mask, F f) {
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    f(block.fibers[warp * kWarpSize + static_cast<unsigned>(lowest_lane(rest))]);
  }
}

uint64_t combine(EmulatorWarpOperation operation, uint64_t a, uint64_t b) {
  const unsigned x = static_cast<unsigned>(a), y = static_cast<unsigned>(b);
  switch (operation) {
    case kWarpAdd:
      return x + y;
    case kWarpMinUnsigned:
      return x < y ? x : y;
    case kWarpMaxUnsigned:
      return x < y ? y : x;
    case kWarpMinSigned:
      return static_cast<int>(x) < static_cast<int>(y) ? x : y;
    case kWarpMaxSigned:
      return static_cast<int>(x) < static_cast<int>(y) ? y : x;
    case kWarpAnd:
      return x & y;
    case kWarpOr:
      return x | y;
    case kWarpXor:
      return x ^ y;
    default:
      return 0;
  }
}

uint64_t shuffle_result(Block& block, const Fiber& reader, unsigned mask) {
  if ((mask >> reader.source_lane & 1) != 0) {
    return block.fibers[reader.warp * kWarpSize + static_cast<unsigned>(reader.source_lane)]
        .operand;
  }
  report("SHUFFLE at %s: lane %u reads lane %d, which is not in mask %08x",
         reader.site.text().c_str(), reader.lane, reader.source_lane, mask);
  return kUndefinedResult;
}

// Results of all lanes are computed together by the last one to arrive: a lane that has gone on may
// have started its next operation, with another operand.
void compute_results(Block& block, unsigned warp, unsigned mask, EmulatorWarpOperation operation) {
  unsigned ballot = 0;
  uint64_t reduced = 0;
  const Fiber& first = block.fibers[warp * kWarpSize + static_cast<unsigned>(lowest_lane(mask))];
  bool all_equal = true;
  for_each_lane(block, warp, mask, [&](Fiber& fiber) {
    ballot |= (fiber.operand != 0 ? 1u : 0u) << fiber.lane;
    reduced = &fiber == &first ? fiber.operand : combine(operation, reduced, fiber.operand);
    all_equal &= fiber.operand == first.operand;
  });
  for_each_lane(block, warp, mask, [&](Fiber& fiber) {
    switch (operation) {
      case kWarpSync:
        fiber.result = 0;
        break;
      case kWarpShuffle:
        fiber.result = shuffle_result(block, fiber, mask);
        break;
      case kWarpBallot:
        fiber.result = ballot;
        break;
      case kWarpMatchAll:
        fiber.result = all_equal ? mask : 0;
        break;
      case kWarpMatchAny:
        fiber.result = 0;
        for_each_lane(block, warp, mask, [&](const Fiber& other) {
          if (other.operand == fiber.operand) fiber.result |= 1u << other.lane;
        });
        break;
      default:
        fiber.result = reduced;
    }
  });
}

// Threads may poll together, by voting or with a barrier in the loop: then meeting is no progress.
// Returns whether the fiber has polled since its last collective operation.
bool take_polled(Fiber& fiber) {
  const bool polled = fiber.polled;
  fiber.polled = false;
  return polled;
}

// What the calling lane may not do: aborts with a report.
void check_caller(Block& block, const Fiber& self, unsigned mask) {
  if ((mask >> self.lane & 1) == 0) {
    report("WARP OPERATION at %s: the calling lane %u is not in mask %08x",
           self.site.text().c_str(), self.lane, mask);
    abort_launch();
  }
  for_each_lane(block, self.warp, mask, [&](const Fiber& fiber) {
    if (fiber.state != FiberState::kDone) return;
    report("WARP OPERATION at %s: mask %08x names lane %u, which has left the kernel",
           self.site.text().c_str(), mask, fiber.lane);
    abort_launch();
  });
}

// The group that the calling lane belongs to, created if it is the first; aborts if lanes disagree.
Rendezvous& join_rendezvous(std::vector<Rendezvous>& groups, const Fiber& self, unsigned mask,
                            EmulatorWarpOperation operation) {
  for (Rendezvous& group : groups) {
    if (group.mask == mask && group.operation == operation && same_site(group.site, self.site)) {
      return group;
    }
  }
  for (const Rendezvous& group : groups) {
    const bool waits_for_self = (group.mask >> self.lane & 1) != 0;
    if (!waits_for_self && (group.arrived & mask) == 0) continue;
    report("DIVERGENT WARP OPERATION: %s with mask %08x meets %s with mask %08x",
           self.site.text().c_str(), mask, group.site.text().c_str(), group.mask);
    abort_launch();
  }
  if (groups.size() == kMaxRendezvous) {
    report("%s: more than %zu groups of one warp wait", self.site.text().c_str(), kMaxRendezvous);
    abort_launch();
  }
  groups.push_back({mask, 0, operation, self.site});
  return groups.back();
}

}  // namespace

void complete_barrier(Block& block) {
  Barrier& barrier = block.barrier;
  runtime.statistics.barriers++;
  barrier.result = static_cast<int>(barrier.num_true);
  barrier.num_participants = barrier.num_arrived;
  barrier.phase++;
  barrier.num_arrived = barrier.num_true = 0;
  barrier.site = {};
  checker_barrier(block);
  bool anybody_polled = false;
  for (Fiber& fiber : block.fibers) {
    if (fiber.state != FiberState::kAtBarrier) continue;
    anybody_polled |= take_polled(fiber);
    make_ready(fiber);
  }
  if (!anybody_polled) runtime.polls_without_step = 0;
}

}  // namespace emulator

using namespace emulator;

extern "C" {

int emulator_barrier(int kind, int predicate, const char* file, int line) {
  Fiber& self = *current_fiber();
  Block& block = *self.block;
  Barrier& barrier = block.barrier;
  self.site = {file, line};
  if (barrier.num_arrived == 0) barrier.site = self.site;
  if (!same_site(barrier.site, self.site)) {
    report("DIVERGENT BARRIER: %s meets %s", self.site.text().c_str(), barrier.site.text().c_str());
    abort_launch();
  }
  barrier.num_arrived++;
  barrier.num_true += predicate != 0;
  self.state = FiberState::kAtBarrier;
  if (barrier.num_arrived == block.num_alive) complete_barrier(block);
  suspend_current_fiber();
  switch (kind) {
    case kBarrierCount:
      return barrier.result;
    case kBarrierAnd:
      return barrier.result == static_cast<int>(barrier.num_participants);
    case kBarrierOr:
      return barrier.result > 0;
    default:
      return 0;
  }
}

uint64_t emulator_warp_operation(int operation_code, unsigned mask, uint64_t operand,
                                 int source_lane, const char* file, int line) {
  const auto operation = static_cast<EmulatorWarpOperation>(operation_code);
  Fiber& self = *current_fiber();
  Block& block = *self.block;
  mask &= existing_lanes(block, self.warp);
  self.site = {file, line};
  self.mask = mask;
  self.operand = operand;
  self.source_lane = source_lane;
  check_caller(block, self, mask);

  std::vector<Rendezvous>& groups = block.rendezvous[self.warp];
  Rendezvous& group = join_rendezvous(groups, self, mask, operation);
  group.arrived |= 1u << self.lane;
  if (group.arrived != mask) {
    self.state = FiberState::kAtWarpOperation;
    suspend_current_fiber();
    return self.result;
  }

  runtime.statistics.warp_operations++;
  group = groups.back();
  groups.pop_back();
  compute_results(block, self.warp, mask, operation);
  if (operation == kWarpSync) checker_syncwarp(block, self.warp, mask);
  bool anybody_polled = false;
  for_each_lane(block, self.warp, mask, [&](Fiber& fiber) {
    anybody_polled |= take_polled(fiber);
    if (&fiber != &self) make_ready(fiber);
  });
  if (!anybody_polled) runtime.polls_without_step = 0;
  if (runtime.randomised() && random_chance(1, 4)) give_way();
  return self.result;
}

}  // extern "C"
