// SPDX-License-Identifier: Apache-2.0
// The seam between kernels compiled for the CPU (simt.h) and the emulator's runtime, and between
// the runtime and Python (emulator.py). Plain C symbols: kernels may be instrumented, the runtime
// never is, so the two must not share C++ templates.
#pragma once

#include "simt_types.h"

// What one CUDA thread knows about itself; the runtime points emulator_current_thread at the
// running one.
struct EmulatorThread {
  uint3 thread_index, block_index;
  dim3 block_size, grid_size;
  unsigned lane;
};

enum EmulatorBarrier { kBarrierPlain, kBarrierCount, kBarrierAnd, kBarrierOr };

enum EmulatorWarpOperation {
  kWarpSync,
  kWarpShuffle,
  kWarpBallot,
  kWarpMatchAny,
  kWarpMatchAll,
  kWarpAdd,
  kWarpMinUnsigned,
  kWarpMaxUnsigned,
  kWarpMinSigned,
  kWarpMaxSigned,
  kWarpAnd,
  kWarpOr,
  kWarpXor,
};

enum EmulatorAccess { kAccessRead, kAccessWrite, kAccessReadWrite };

struct EmulatorConfig {
  uint64_t seed;            // 0: round robin; otherwise random threads, blocks and preemptions
  int32_t resident_blocks;  // how many blocks may be on the machine at once
  int32_t block_order;      // 0 ascending, 1 descending, 2 random (by seed)
  int32_t
      preempt;     // of 256: chance of a switch after an atomic; of 4096: before any access (check)
  int32_t strict;  // report threads of a block that leave after different numbers of barriers
  int32_t multiprocessors;     // an attribute of the device
  int32_t shared_bytes;        // and the most that a block may have; 48 KB are always granted
  int32_t first_block;         // blocks before it are not run, as if they had ended before
  int32_t max_cluster;         // blocks that a cluster may have; 0: a device without clusters
  int32_t granted_blocks;      // that a cooperative launch may have; 0: one for each multiprocessor
  int32_t refuse_clusters;     // launches of clusters fail, although the device has them
  int32_t refuse_cooperative;  // and cooperative launches, of any number of blocks
  int32_t exp2_ulps;           // how far off exp2_approx() is, upwards or (negative) downwards
  int32_t exp2_mixed;          // upwards for some arguments, downwards for others
};

struct EmulatorStatistics {
  uint64_t switches, barriers, warp_operations, blocks;
  uint64_t launches;       // of kernels, and memsets
  uint64_t grid_barriers;  // that whole grids passed
  uint64_t driver_calls;   // that ask for attributes of devices and kernels, or set them
};

// Global memory only. A read-modify-write counts as one write.
struct EmulatorTraffic {
  uint64_t bytes_read, bytes_written;
  uint64_t sectors_read, sectors_written;                // 32-byte sectors, per request of a warp
  uint64_t unique_sectors_read, unique_sectors_written;  // each sector once per launch
  uint64_t requests;                                     // executions of an access by a warp
  uint64_t atomics;
};

// A kernel translated from PTX, which launches of the kernel run in its place. It takes a pointer
// to each argument.
struct EmulatorTwin;
typedef void (*EmulatorTwinFunction)(const void* const* arguments);

extern "C" {
extern EmulatorThread* emulator_current_thread;  // null while host code runs

// ---- called by kernels, through simt.h
int emulator_barrier(int kind, int predicate, const char* file, int line);
// operand: the lane's value; source_lane: for shuffles. Returns the lane's result.
uint64_t emulator_warp_operation(int operation, unsigned mask, uint64_t operand, int source_lane,
                                 const char* file, int line);
void emulator_fence(int device_scope);
void emulator_poll(const void* address);  // an access that may be a busy wait: yields when repeated
void emulator_progress();  // other threads may see a change: resets the livelock watch
void emulator_trap(const char* file, int line);
void* emulator_shared_variable(const void* tag, size_t bytes, const char* name);
void* emulator_dynamic_shared();
// The counter at which the calling block meets the grid, or its cluster, this time. Two take turns:
// with one, a block that is late would see that others have come again, and know what they have
// done since, as on no device.
unsigned* emulator_grid_barrier();
// For kernels translated from PTX: both counters, null if the launch is not cooperative; and an
// atomic that releases, which may be a grid's barrier.
void* emulator_grid_workspace();
void emulator_note_release(const void* address);
unsigned* emulator_cluster_barrier();
unsigned emulator_cluster_size();
// Where a variable of the calling block lies in another block of its cluster.
void* emulator_cluster_shared(const void* address, unsigned rank, const char* file, int line);

// ---- called by kernels in check builds only; the return address is the place that gets reported
void emulator_record_plain(const volatile void* address, size_t bytes, int access);
void emulator_record_atomic(const volatile void* address, size_t bytes, int access,
                            int memory_order);

// ---- called by launchers
// function: the kernel itself; kernel: calls it with the arguments.
void emulator_launch(const char* name, const void* function, dim3 grid, dim3 block,
                     size_t dynamic_shared_bytes, void (*kernel)(void*), void* arguments);
// All blocks are on the machine at once: at most one for each multiprocessor.
int emulator_launch_cooperative(const char* name, const void* function, dim3 grid, dim3 block,
                                size_t dynamic_shared_bytes, void (*kernel)(void*),
                                void* arguments);
// Blocks come in clusters of `cluster` neighbours, which are on the machine together.
int emulator_launch_clusters(const char* name, const void* function, dim3 grid, unsigned cluster,
                             dim3 block, size_t dynamic_shared_bytes, void (*kernel)(void*),
                             void* arguments);
int emulator_resident_clusters(unsigned cluster);  // how many run at once; 0 if none can
// The runtime API's functions that this project uses, of attributes. Each returns a cudaError_t.
int emulator_current_device();
int emulator_device_attribute(int* value, int attribute, int device);
int emulator_kernel_attributes(cudaFuncAttributes* attributes, const void* kernel);
int emulator_set_kernel_attribute(const void* kernel, int attribute, int value);
float emulator_exp2(float x);
double emulator_reciprocal(double x);
// The twin of a kernel, null without one. It is reported if its parameters have other sizes.
EmulatorTwin* emulator_find_twin(const void* kernel, const size_t* sizes, size_t num_parameters);
void emulator_run_twin(EmulatorTwin* twin, const void* const* arguments);
void emulator_count_host_thread();
int emulator_last_error(int clear);
int emulator_memset(void* address, int value, size_t bytes);

// ---- called by tests
void emulator_configure(const EmulatorConfig* config);
const char* emulator_take_error();  // every report since the last call; allows launches again
void emulator_statistics(EmulatorStatistics* out);  // since the last call
void emulator_traffic(EmulatorTraffic* out);  // since the last call; zeros except in check builds
void emulator_set_twin(const void* kernel, EmulatorTwinFunction function, const size_t* sizes,
                       size_t num_parameters);       // a null function removes it
uint64_t emulator_twin_threads(const void* kernel);  // that have run its twin
uint64_t emulator_host_threads();  // that have run a kernel without twin, since the last call
void* emulator_allocate(size_t bytes, const char* name, int initialised);
void emulator_free(void* address);
void emulator_mark_initialised(const void* address, int initialised);
}
