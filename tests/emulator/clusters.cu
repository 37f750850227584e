// SPDX-License-Identifier: Apache-2.0
// Blocks of a cluster that read each other's shared memory, and ways to get that wrong.
#include "device/grid.h"

namespace {

enum Removed { kNothing, kFirstSync, kSecondBuffer, kLastSync, kNeighbour };

// Numbers go round the cluster: in every round each block takes its right neighbour's.
template <Removed kRemoved>
__global__ void ring(int size, int rounds, int* out) {
  DYNPRUNE_SHARED(int, slots, [2]);
  DYNPRUNE_DYNAMIC_SHARED(int, tile);
  const unsigned rank = blockIdx.x % static_cast<unsigned>(size);
  const unsigned right = (rank + 1) % static_cast<unsigned>(size);
  const unsigned neighbour = kRemoved == kNeighbour ? rank + 1 : right;
  const int thread = threadIdx.x;
  int value = static_cast<int>(blockIdx.x);
  for (int i = 0; i < rounds; i++) {
    const int buffer = kRemoved == kSecondBuffer ? 0 : i % 2;
    if (thread == 0) slots[buffer] = value;
    tile[buffer * 64 + thread] = 1000 * value + thread;
    if (kRemoved != kFirstSync) dynprune::cluster_sync();
    const int taken = *dynprune::cluster_shared(&slots[buffer], neighbour);
    if (*dynprune::cluster_shared(&tile[buffer * 64 + 63 - thread], neighbour) !=
        1000 * taken + 63 - thread) {
      __trap();
    }
    value = taken;
  }
  if (kRemoved != kLastSync) dynprune::cluster_sync();
  if (thread == 0) out[blockIdx.x] = value;
}

__global__ void sync_only() { dynprune::cluster_sync(); }

template <Removed kRemoved>
int launch(int grid, int size, int rounds, int* out) {
  return DYNPRUNE_LAUNCH_CLUSTERS((ring<kRemoved>), static_cast<unsigned>(grid),
                                  static_cast<unsigned>(size), 64, 2 * 64 * sizeof(int), 0, size,
                                  rounds, out);
}

}  // namespace

extern "C" {

// out: [grid]
int launch_ring(int removed, int grid, int size, int rounds, int* out) {
  switch (removed) {
    case kFirstSync:
      return launch<kFirstSync>(grid, size, rounds, out);
    case kSecondBuffer:
      return launch<kSecondBuffer>(grid, size, rounds, out);
    case kLastSync:
      return launch<kLastSync>(grid, size, rounds, out);
    case kNeighbour:
      return launch<kNeighbour>(grid, size, rounds, out);
    default:
      return launch<kNothing>(grid, size, rounds, out);
  }
}
int launch_sync_only() {
  DYNPRUNE_LAUNCH((sync_only), 2, 64, 0, 0);
  return cudaGetLastError();
}
int resident_rings(int size) {
  return DYNPRUNE_RESIDENT_CLUSTERS((ring<kNothing>), static_cast<unsigned>(size), 64, 0);
}

}  // extern "C"
