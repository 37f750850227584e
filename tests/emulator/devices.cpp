// SPDX-License-Identifier: Apache-2.0
// Devices as programs see them through the runtime API. Programs remember what a device answers and
// what they told it, so each combination of answers that a test configures is a device of its own.
#include <algorithm>
#include <map>

#include "runtime.h"

namespace emulator {
namespace {

constexpr size_t kSharedWithoutOptIn = 48 << 10;

struct Device {
  int multiprocessors, shared_bytes;
  std::map<const void*, int> allowed;  // bytes of dynamic shared memory, by kernel
};
std::vector<Device> devices;

}  // namespace

size_t most_shared_bytes(const void* kernel) {
  const Device& device = devices[static_cast<size_t>(emulator_current_device())];
  if (device.allowed.count(kernel) == 0) return kSharedWithoutOptIn;
  return std::max(static_cast<size_t>(device.shared_bytes), kSharedWithoutOptIn);
}

}  // namespace emulator

using namespace emulator;

extern "C" {

int emulator_current_device() {
  const EmulatorConfig& config = runtime.config;
  const auto found = std::find_if(devices.begin(), devices.end(), [&](const Device& device) {
    return device.multiprocessors == config.multiprocessors &&
           device.shared_bytes == config.shared_bytes;
  });
  const auto index = static_cast<int>(found - devices.begin());
  if (found == devices.end()) devices.push_back({config.multiprocessors, config.shared_bytes, {}});
  return index;
}

int emulator_device_attribute(int* value, int attribute, int device) {
  runtime.statistics.driver_calls++;
  if (device < 0 || static_cast<size_t>(device) >= devices.size()) return cudaErrorInvalidValue;
  const Device& asked = devices[static_cast<size_t>(device)];
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = asked.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = asked.shared_bytes;
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

// Static shared memory is not known before a kernel runs.
int emulator_kernel_attributes(cudaFuncAttributes* attributes, const void*) {
  runtime.statistics.driver_calls++;
  *attributes = {};
  return cudaSuccess;
}

int emulator_set_kernel_attribute(const void* kernel, int attribute, int value) {
  runtime.statistics.driver_calls++;
  Device& device = devices[static_cast<size_t>(emulator_current_device())];
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > device.shared_bytes) {
    return cudaErrorInvalidValue;
  }
  device.allowed[kernel] = value;
  return cudaSuccess;
}

}  // extern "C"
