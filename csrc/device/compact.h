// SPDX-License-Identifier: Apache-2.0
// From one bit per id to a list of ids, in one pass, for any grid. A block processes a tile of 4096
// ids. Tiles are numbered in the order in which blocks start. Each tile publishes its count and
// finds its offset by decoupled look-back over its predecessors (Merrill & Garland 2016). The list
// is either written, ascending, or described by a directory: a few reads find the id of any rank.
#pragma once

#include "device/block.h"
#include "shared/portable.h"

namespace dynprune {

constexpr int kWordsPerTile = 128;
constexpr int kListThreads = kWordsPerTile;  // a thread for every word of a tile
constexpr int64_t kTile = int64_t{kWordsPerTile} * 32;

DYNPRUNE_HD int64_t num_tiles(int64_t n) { return (n + kTile - 1) / kTile; }

// Look-back state: all zero before a launch. Every block adds to the ticket: it has a cache line of
// its own.
struct alignas(kCacheLine) CompactState {
  unsigned ticket;
  // One word per tile follows: state in the two top bits, count below.
  DYNPRUNE_HD unsigned long long* tiles() {
    return reinterpret_cast<unsigned long long*>(this + 1);
  }
  static size_t bytes(int64_t n) {
    return sizeof(CompactState) + static_cast<size_t>(num_tiles(n)) * 8;
  }
};

constexpr unsigned long long kTileCounted = 1ull << 62;  // this tile's own count
constexpr unsigned long long kTilePrefixed = 2ull
                                             << 62;  // the count of this and all tiles before it
constexpr unsigned long long kTileCount = kTileCounted - 1;

// The number of ids kept by all tiles before `tile`; one whole warp calls it. Publishes this tile's
// counts. State and count are one word, and nothing else is handed over: relaxed accesses suffice.
__device__ __forceinline__ unsigned long long look_back(unsigned long long* tiles, int64_t tile,
                                                        unsigned long long count, int lane) {
  if (lane == 0) store_relaxed(&tiles[tile], (tile == 0 ? kTilePrefixed : kTileCounted) | count);
  unsigned long long before = 0;
  int64_t next = tile - 1 - lane;  // lane l reads the tile l before the nearest one
  bool searching = tile > 0;
  while (searching) {
    unsigned long long word = kTilePrefixed;  // in front of tile 0: nothing
    if (next >= 0) {
      do {
        word = load_relaxed(&tiles[next]);
      } while (word < kTileCounted);
    }
    __syncwarp();
    const unsigned prefixed = __ballot_sync(kFullWarp, word >= kTilePrefixed);
    const int nearest = prefixed != 0 ? __ffs(static_cast<int>(prefixed)) - 1 : kWarpSize - 1;
    unsigned long long sum = lane <= nearest ? word & kTileCount : 0;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(kFullWarp, sum, distance);
    }
    before += sum;
    searching = prefixed == 0;
    next -= kWarpSize;
  }
  if (lane == 0 && tile > 0) store_relaxed(&tiles[tile], kTilePrefixed | (before + count));
  return before;
}

// Finds the id of a given rank. It has a bitmap and the group of every 256th rank. A group is 256
// ids, one sector of the bitmap; the number of bits set before each group is stored, too. The
// search is a bisection between two of these groups. It takes 0.03 bytes per id beside the bitmap's
// 0.125; the list would take 8 per id kept.
constexpr int kGroup = 256;
constexpr int kGroupsPerTile = static_cast<int>(kTile / kGroup);

struct RankDirectory {
  const uint32_t* bitmap;
  uint32_t* before;   // [num_groups]; below 2^32 for k <= 2^32
  uint32_t* samples;  // [num_samples(k)]
  int64_t num_groups, k;

  static int64_t num_samples(int64_t k) { return (k + kGroup - 1) / kGroup; }

  __device__ int64_t operator()(uint64_t rank) const {
    const int64_t sample = static_cast<int64_t>(rank / kGroup);
    int64_t group = samples[sample];
    int64_t last = (sample + 1) * kGroup < k ? samples[sample + 1] : num_groups - 1;
    while (group < last) {
      const int64_t middle = (group + last + 1) / 2;
      if (before[middle] <= rank) {
        group = middle;
      } else {
        last = middle - 1;
      }
    }
    int left = static_cast<int>(rank - before[group]);
    const uint4* words = reinterpret_cast<const uint4*>(bitmap + group * (kGroup / 32));
    const uint4 a = __ldg(&words[0]), b = __ldg(&words[1]);
    const uint32_t all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    uint32_t word = 0;
    int offset = 0;
    bool found = false;
#pragma unroll
    for (int w = 0; w < 8; w++) {
      const int count = __popc(all[w]);
      if (!found) {
        word = all[w];
        offset = w * 32;
        found = left < count;
        if (!found) left -= count;
      }
    }
    return group * kGroup + offset + nth_bit(word, left);
  }

 private:
  // The position of the n-th bit that is set, from 0: halves, quarters, ...
  __device__ static int nth_bit(uint32_t word, int n) {
    int position = 0;
#pragma unroll
    for (int width = 16; width > 0; width /= 2) {
      const int below = __popc(word & ((1u << width) - 1));
      const bool upper = n >= below;
      n -= upper ? below : 0;
      word >>= upper ? width : 0;
      position += upper ? width : 0;
    }
    return position;
  }
};

struct ListShared {
  uint32_t words[kWordsPerTile];
  uint16_t kept[kTile];
  unsigned warp_totals[kListThreads / kWarpSize];
  unsigned offsets[kWordsPerTile + 1];
  unsigned long long before;
  unsigned tile;
};

// The tile of a block, the same in all its threads.
__device__ __forceinline__ int64_t take_tile(CompactState* state, ListShared* shared) {
  if (threadIdx.x == 0) shared->tile = atomicAdd(&state->ticket, 1u);
  __syncthreads();
  return shared->tile;
}

// Counts the bits in shared->words, and those of the tiles before. All threads of the block call
// it, each after it has written its words.
__device__ __forceinline__ void count_tile(int64_t tile, CompactState* state, ListShared* shared) {
  const int thread = threadIdx.x;
  __syncthreads();
  const unsigned count = __popc(shared->words[thread]);
  const unsigned offset = block_exclusive_sum(count, shared->warp_totals);
  shared->offsets[thread] = offset;
  if (thread == kListThreads - 1) shared->offsets[kWordsPerTile] = offset + count;
  __syncthreads();
  if (thread < kWarpSize) {
    const unsigned long long before =
        look_back(state->tiles(), tile, shared->offsets[kWordsPerTile], thread);
    if (thread == 0) shared->before = before;
  }
}

// Writes the tile's ids behind those of the tiles before, at most k in all. They are gathered in
// shared memory, so that neighbouring threads write neighbouring ids. k only protects the memory
// behind ids: if another stream changes the scores meanwhile, more than k may be found.
__device__ __forceinline__ void write_tile(int64_t tile, ListShared* shared, int64_t k,
                                           int64_t* ids) {
  const int thread = threadIdx.x;
  unsigned next = shared->offsets[thread];
  for (uint32_t word = shared->words[thread]; word != 0; word &= word - 1) {
    shared->kept[next++] = static_cast<uint16_t>(thread * 32 + __ffs(static_cast<int>(word)) - 1);
  }
  __syncthreads();
  const auto before = static_cast<int64_t>(shared->before);
  for (unsigned i = thread; i < shared->offsets[kWordsPerTile]; i += kListThreads) {
    if (before + i < k) ids[before + i] = tile * kTile + shared->kept[i];
  }
}

// Writes the tile's part of a directory, bitmap included.
__device__ __forceinline__ void write_directory(int64_t tile, ListShared* shared, uint32_t* bitmap,
                                                const RankDirectory& directory) {
  const int thread = threadIdx.x;
  __syncthreads();
  bitmap[tile * kWordsPerTile + thread] = shared->words[thread];
  if (thread >= kGroupsPerTile) return;
  constexpr int kWordsPerGroup = kGroup / 32;
  const int64_t group = tile * kGroupsPerTile + thread;
  const unsigned long long begin = shared->before + shared->offsets[thread * kWordsPerGroup];
  const unsigned long long end = shared->before + shared->offsets[(thread + 1) * kWordsPerGroup];
  directory.before[group] = static_cast<uint32_t>(begin);
  const unsigned long long sample = (begin + kGroup - 1) / kGroup;
  if (sample * kGroup < end) directory.samples[sample] = static_cast<uint32_t>(group);
}

}  // namespace dynprune
