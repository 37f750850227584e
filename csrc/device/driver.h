// SPDX-License-Identifier: Apache-2.0
// What the driver is asked and told, once for each device. A later training step only asks which
// device is current, which the runtime knows. Host only. Any thread may call.
#pragma once

#include <algorithm>
#include <utility>

#include "device/cache.h"
#include "device/cuda_types.h"

namespace dynprune {

inline int current_device() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess ? device : 0;
}

// Of the current device; 0 if there is an error.
inline int device_attribute(cudaDeviceAttr attribute) {
  static AnswerCache<std::pair<int, cudaDeviceAttr>> cache;
  const int device = current_device();
  const int answer = cache.get({device, attribute}, [&] {
    int value = 0;
    return cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess ? value : -1;
  });
  return std::max(answer, 0);
}

inline int multiprocessor_count() {
  return std::max(device_attribute(cudaDevAttrMultiProcessorCount), 1);
}

inline size_t shared_memory_limit() {
  return static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

// Allows a kernel more than 48 KB of dynamic shared memory, on the current device. This is not a
// stream operation and may happen while a graph is captured. It allows the maximum, because the
// setting belongs to the kernel, which other threads may be launching too.
inline cudaError_t allow_all_shared(const void* kernel) {
  static AnswerCache<std::pair<int, const void*>> cache;
  const int answer = cache.get({current_device(), kernel}, [&] {
    cudaFuncAttributes attributes = {};
    cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error == cudaSuccess) {
      const auto most = static_cast<int>(shared_memory_limit() - attributes.sharedSizeBytes);
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    }
    return -static_cast<int>(error);
  });
  return static_cast<cudaError_t>(-answer);
}

}  // namespace dynprune
