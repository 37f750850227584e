// SPDX-License-Identifier: Apache-2.0
// Errors, configuration, statistics. As in CUDA, a kernel that was stopped poisons what follows:
// launches are refused until somebody reads the reports, because they would run on garbage.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "checker.h"
#include "runtime.h"

EmulatorThread* emulator_current_thread = nullptr;

namespace emulator {

Runtime runtime;

namespace {

constexpr size_t kMaxReportBytes = 32 << 10;

std::string describe(const Fiber& fiber) {
  char text[160];
  const uint3 &b = fiber.block_index, &t = fiber.thread_index;
  snprintf(text, sizeof(text), " [block (%u,%u,%u) thread (%u,%u,%u)]", b.x, b.y, b.z, t.x, t.y,
           t.z);
  return text;
}

}  // namespace

void report(const char* format, ...) {
  if (runtime.reports.size() > kMaxReportBytes) return;
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  runtime.reports += runtime.launch.name + ": " + text;
  if (current_fiber() != nullptr) runtime.reports += describe(*current_fiber());
  runtime.reports += "\n";
}

void abort_launch() {
  runtime.aborted = true;
  runtime.last_error = cudaErrorLaunchFailure;
  if (current_fiber() == nullptr) return;
  suspend_current_fiber();
  abort();  // no fiber of an aborted launch is resumed
}

// xorshift: the same seed must give the same schedule on every machine.
uint64_t random_bits() {
  uint64_t& s = runtime.random_state;
  s ^= s << 13;
  s ^= s >> 7;
  s ^= s << 17;
  return s;
}

}  // namespace emulator

using namespace emulator;

extern "C" {

void emulator_configure(const EmulatorConfig* config) { runtime.config = *config; }

const char* emulator_take_error() {
  static std::string taken;
  taken.swap(runtime.reports);
  runtime.reports.clear();
  runtime.aborted = false;
  runtime.last_error = cudaSuccess;
  return taken.c_str();
}

int emulator_last_error(int clear) {
  const int error = runtime.last_error;
  if (clear && !runtime.aborted) runtime.last_error = cudaSuccess;
  return error;
}

void emulator_statistics(EmulatorStatistics* out) {
  *out = runtime.statistics;
  runtime.statistics = {};
}

#if !defined(EMULATOR_CHECK)
void emulator_traffic(EmulatorTraffic* out) { *out = {}; }
#endif

void emulator_trap(const char* file, int line) {
  report("%s: __trap()", (Site{file, line}.text().c_str()));
  abort_launch();
}

}  // extern "C"
