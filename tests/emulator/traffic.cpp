// SPDX-License-Identifier: Apache-2.0
// How much global memory a kernel moves: bytes, and 32-byte sectors per request. A request is the
// k-th execution of one access by the lanes of a warp, whenever each lane gets there. No caches are
// modelled: sectors_* is what the warps ask for, unique_sectors_* what must come from memory at
// least once.
#include <algorithm>

#include "checker_state.h"

namespace emulator {
namespace {

EmulatorTraffic traffic;
uint32_t launch = 0;     // launches so far
uint32_t num_sites = 0;  // of this launch

// Sites are numbered anew for each launch: a block's tables are as large as what its kernel uses,
// and not as all kernels of the process.
uint32_t number_in_launch(CallSite& site) {
  if (site.launch != launch) {
    site.launch = launch;
    site.number = num_sites++;
  }
  return site.number;
}

Request& request_of(const Fiber& fiber, CallSite& site) {
  const uint32_t number = number_in_launch(site);
  std::vector<uint32_t>& executions = history_of(fiber).executions;
  if (executions.size() <= number) executions.resize(number + 1);
  auto& of_warp = fiber.block->history->requests[fiber.warp];
  if (of_warp.size() <= number) of_warp.resize(number + 1);
  auto& of_site = of_warp[number];
  const uint32_t k = executions[number]++;
  if (of_site.size() <= k) {
    of_site.resize(k + 1);
    traffic.requests++;
  }
  return of_site[k];
}

// True if the request has not touched the sector before.
bool add_sector(Request& request, uint32_t sector) {
  for (size_t i = request.num_sectors; i-- > 0;) {  // neighbouring lanes come one after the other
    if (request.sectors[i] == sector) return false;
  }
  if (request.num_sectors < request.sectors.size()) {
    request.sectors[request.num_sectors++] = sector;
  }
  return true;
}

void count_unique(MemoryRange& range, size_t sector, bool write) {
  auto& seen = write ? range.sectors_written : range.sectors_read;
  auto bit = seen[sector - range.first_sector()];
  if (bit) return;
  bit = true;
  (write ? traffic.unique_sectors_written : traffic.unique_sectors_read)++;
}

}  // namespace

void count_traffic(MemoryRange& range, uintptr_t address, size_t bytes, bool write, bool atomic,
                   CallSite& site, const Fiber& fiber) {
  (write ? traffic.bytes_written : traffic.bytes_read) += bytes;
  traffic.atomics += atomic;
  Request& request = request_of(fiber, site);
  for (size_t sector = address / kSectorBytes; sector * kSectorBytes < address + bytes; sector++) {
    if (!add_sector(request, static_cast<uint32_t>(sector))) continue;
    (write ? traffic.sectors_written : traffic.sectors_read)++;
    count_unique(range, sector, write);
  }
}

void begin_traffic_of_launch() {
  launch++;
  num_sites = 0;
  for (MemoryRange* range : all_ranges()) {
    std::fill(range->sectors_read.begin(), range->sectors_read.end(), false);
    std::fill(range->sectors_written.begin(), range->sectors_written.end(), false);
  }
}

void checker_memset(const void* address, size_t bytes) {
  if (bytes == 0) return;
  checker_mark_initialised(address, bytes, true);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  const size_t sectors = (begin + bytes - 1) / kSectorBytes - begin / kSectorBytes + 1;
  traffic.bytes_written += bytes;
  traffic.sectors_written += sectors;
  traffic.unique_sectors_written += sectors;
}

}  // namespace emulator

extern "C" void emulator_traffic(EmulatorTraffic* out) {
  *out = emulator::traffic;
  emulator::traffic = {};
}
