// SPDX-License-Identifier: Apache-2.0
// A kernel to put twins of single opcodes in place of: four inputs and an output, 8 bytes a thread.
#include "device/grid.h"

namespace {

__global__ void opcode_kernel(const uint64_t*, const uint64_t*, const uint64_t*, const uint64_t*,
                              uint64_t*) {}

}  // namespace

extern "C" {

// cluster: 0 for a cooperative launch, 1 for an ordinary one.
int launch_opcode(const uint64_t* const* inputs, uint64_t* out, unsigned grid, unsigned cluster,
                  unsigned block, size_t shared_bytes) {
  if (cluster == 0) {
    return DYNPRUNE_LAUNCH_COOPERATIVE((opcode_kernel), grid, block, shared_bytes, nullptr,
                                       inputs[0], inputs[1], inputs[2], inputs[3], out);
  }
  if (cluster > 1) {
    return DYNPRUNE_LAUNCH_CLUSTERS((opcode_kernel), grid, cluster, block, shared_bytes, nullptr,
                                    inputs[0], inputs[1], inputs[2], inputs[3], out);
  }
  DYNPRUNE_LAUNCH((opcode_kernel), grid, block, shared_bytes, nullptr, inputs[0], inputs[1],
                  inputs[2], inputs[3], out);
  return cudaGetLastError();
}

const void* opcode_kernel_address() { return reinterpret_cast<const void*>(&opcode_kernel); }
}
