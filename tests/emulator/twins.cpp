// SPDX-License-Identifier: Apache-2.0
// Kernels translated from PTX. A launch runs the twin of its kernel where there is one; the counts
// tell whether any thread ran what the host compiler made of the kernel instead.
#include <map>

#include "runtime.h"

struct EmulatorTwin {
  EmulatorTwinFunction function;
  std::vector<size_t> sizes;  // of the parameters, in bytes
  uint64_t num_threads = 0;
};

namespace {

std::map<const void*, EmulatorTwin> twins;
uint64_t num_host_threads = 0;

}  // namespace

extern "C" {

void emulator_set_twin(const void* kernel, EmulatorTwinFunction function, const size_t* sizes,
                       size_t num_parameters) {
  EmulatorTwin& twin = twins[kernel];
  twin.function = function;
  twin.sizes.assign(sizes, sizes + num_parameters);
  if (function == nullptr) twins.erase(kernel);
}

EmulatorTwin* emulator_find_twin(const void* kernel, const size_t* sizes, size_t num_parameters) {
  const auto found = twins.find(kernel);
  if (found == twins.end()) return nullptr;
  if (found->second.sizes != std::vector<size_t>(sizes, sizes + num_parameters)) {
    emulator::report("the PTX of a kernel has parameters of other sizes than the kernel");
    return nullptr;
  }
  return &found->second;
}

void emulator_run_twin(EmulatorTwin* twin, const void* const* arguments) {
  twin->num_threads++;
  twin->function(arguments);
}

void emulator_count_host_thread() { num_host_threads++; }

uint64_t emulator_twin_threads(const void* kernel) {
  const auto found = twins.find(kernel);
  return found == twins.end() ? 0 : found->second.num_threads;
}

uint64_t emulator_host_threads() {
  const uint64_t taken = num_host_threads;
  num_host_threads = 0;
  return taken;
}

}  // extern "C"
