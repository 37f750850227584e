// SPDX-License-Identifier: Apache-2.0
// Two dictionaries of the checker: address -> variable, return address -> source line.
#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <limits>

#include "checker_state.h"

namespace emulator {
namespace {

std::vector<MemoryRange*> ranges;  // sorted, disjoint
uint64_t generation = 1;           // of `ranges`: pointers remembered by call sites expire with it

std::vector<MemoryRange*>::iterator first_above(uintptr_t address) {
  return std::upper_bound(ranges.begin(), ranges.end(), address,
                          [](uintptr_t a, const MemoryRange* range) { return a < range->begin; });
}

// Call sites, found through an open hash table of return addresses. A deque keeps references valid.
std::deque<CallSite> sites;
std::vector<CallSite*> site_table(1024, nullptr);

size_t slot_of(const void* return_address) {
  const uint64_t mixed = reinterpret_cast<uintptr_t>(return_address) * 0x9E3779B97F4A7C15ull >> 32;
  size_t slot = mixed % site_table.size();
  while (site_table[slot] != nullptr && site_table[slot]->return_address != return_address) {
    slot = (slot + 1) % site_table.size();
  }
  return slot;
}

void grow_site_table() {
  site_table.assign(site_table.size() * 2, nullptr);
  for (CallSite& site : sites) site_table[slot_of(site.return_address)] = &site;
}

CallSite& add_site(const void* return_address) {
  if (2 * (sites.size() + 1) > site_table.size()) grow_site_table();
  // 65535 places that access memory are far more than a test library has; the last one stands for
  // the rest.
  const size_t index = std::min<size_t>(sites.size(), std::numeric_limits<uint16_t>::max());
  CallSite site;
  site.return_address = return_address;
  site.index = static_cast<uint16_t>(index);
  sites.push_back(site);
  return *(site_table[slot_of(return_address)] = &sites.back());
}

bool is_emulator_header(const char* path) {
  const char* slash = strrchr(path, '/');
  return strncmp(slash != nullptr ? slash + 1 : path, "simt", 4) == 0;
}

// The innermost function that is not the emulator's, by addr2line: kernels inline simt.h.
std::string symbolise(const void* return_address) {
  Dl_info library;
  const char* inside_call = static_cast<const char*>(return_address) - 1;
  if (dladdr(inside_call, &library) == 0 || library.dli_fname == nullptr) return "?";
  const size_t offset =
      static_cast<size_t>(inside_call - static_cast<const char*>(library.dli_fbase));
  char command[1024];
  snprintf(command, sizeof(command), "addr2line -i -e '%s' %#zx", library.dli_fname, offset);
  FILE* output = popen(command, "r");
  if (output == nullptr) return "?";
  std::string result = "?";
  char line[512];
  bool found = false;
  while (fgets(line, sizeof(line), output) != nullptr) {
    if (found) continue;  // read to the end, or addr2line would die of SIGPIPE
    line[strcspn(line, " \n")] = '\0';
    const char* slash = strrchr(line, '/');
    result = slash != nullptr ? slash + 1 : line;
    found = !is_emulator_header(line);
  }
  pclose(output);
  return result;
}

struct ProgramImage {
  uintptr_t begin = std::numeric_limits<uintptr_t>::max(), end = 0;
};

int add_own_segments(dl_phdr_info* info, size_t, void* data) {
  Dl_info own;
  dladdr(reinterpret_cast<const void*>(&emulator_launch), &own);
  if (info->dlpi_addr != reinterpret_cast<uintptr_t>(own.dli_fbase)) return 0;
  auto& image = *static_cast<ProgramImage*>(data);
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    image.begin = std::min(image.begin, begin);
    image.end = std::max(image.end, begin + segment.p_memsz);
  }
  return 1;
}

}  // namespace

CallSite& call_site(const void* return_address) {
  CallSite* site = site_table[slot_of(return_address)];
  return site != nullptr ? *site : add_site(return_address);
}

std::string source_line(uint16_t index) {
  CallSite& site = sites[index];
  if (site.source_line.empty()) site.source_line = symbolise(site.return_address);
  return site.source_line;
}

MemoryRange* find_range(CallSite& site, uintptr_t address) {
  MemoryRange* last = site.last_range;
  if (site.last_generation == generation && address >= last->begin && address < last->end) {
    return last;
  }
  const auto above = first_above(address);
  if (above == ranges.begin()) return nullptr;
  MemoryRange* range = *(above - 1);
  if (address >= range->end) return nullptr;
  site.last_range = range;
  site.last_generation = generation;
  return range;
}

MemoryRange* nearest_range(uintptr_t address) {
  const auto above = first_above(address);
  MemoryRange* next = above != ranges.end() ? *above : nullptr;
  MemoryRange* previous = above != ranges.begin() ? *(above - 1) : nullptr;
  if (next == nullptr || previous == nullptr) return next != nullptr ? next : previous;
  if (address < previous->end) return previous;
  return next->begin - address < address - previous->end ? next : previous;
}

bool in_program_image(uintptr_t address) {
  static const ProgramImage image = [] {
    ProgramImage own;
    dl_iterate_phdr(add_own_segments, &own);
    return own;
  }();
  return address >= image.begin && address < image.end;
}

std::vector<MemoryRange*>& all_ranges() { return ranges; }

void checker_add_range(const void* address, size_t bytes, const char* name, MemoryKind kind) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address), end = begin + bytes;
  auto* range = new MemoryRange{begin, end, name, kind, {}, {}, {}};
  range->cells.resize((bytes + kCellBytes - 1) / kCellBytes);
  if (kind == MemoryKind::kGlobal) {
    range->sectors_read.resize((bytes + kSectorBytes - 1) / kSectorBytes);
    range->sectors_written = range->sectors_read;
  }
  ranges.insert(first_above(begin), range);
  generation++;
}

void checker_remove_range(const void* address) {
  const auto above = first_above(reinterpret_cast<uintptr_t>(address));
  delete *(above - 1);
  ranges.erase(above - 1);
  generation++;
}

void checker_mark_initialised(const void* address, size_t bytes, bool initialised) {
  if (bytes == 0) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address), end = begin + bytes;
  MemoryRange* range = *(first_above(begin) - 1);
  for (size_t number = begin / kCellBytes; number * kCellBytes < end; number++) {
    uint8_t& marks = range->cell(number).initialised;
    const uint8_t part = bytes_of_cell(number, begin, end);
    marks = static_cast<uint8_t>(initialised ? marks | part : marks & ~part);
  }
}

}  // namespace emulator
