// SPDX-License-Identifier: Apache-2.0
// Ordered compaction in one pass: the ids below n that satisfy a predicate, ascending, whatever the
// grid. Tiles are numbered in the order in which blocks start, each publishes its count, and a
// tile's offset comes from looking back over its predecessors (Merrill & Garland 2016, "decoupled
// look-back"). Per id: what the predicate reads, plus 8 bytes written per id kept.
#pragma once

#include "block.h"

namespace dynprune {

constexpr int kCompactThreads = 256;
constexpr int kCompactRounds = 8;
constexpr int64_t kCompactTile = int64_t{kCompactThreads} * kCompactRounds;

inline int64_t num_compact_tiles(int64_t n) { return (n + kCompactTile - 1) / kCompactTile; }

// Look-back state: all zero before a launch.
struct CompactState {
  unsigned ticket;
  unsigned unused;
  // One word per tile follows: state in the two top bits, count below.
  DYNPRUNE_HD unsigned long long* tiles() {
    return reinterpret_cast<unsigned long long*>(this + 1);
  }
  static size_t bytes(int64_t n) {
    return sizeof(CompactState) + static_cast<size_t>(num_compact_tiles(n)) * 8;
  }
};

constexpr unsigned long long kTileCounted = 1ull << 62;  // this tile's own count
constexpr unsigned long long kTilePrefixed = 2ull
                                             << 62;  // the count of this and all tiles before it
constexpr unsigned long long kTileCount = kTileCounted - 1;

// The number of ids kept by all tiles before `tile`; one whole warp calls it. Publishes this tile's
// counts.
__device__ __forceinline__ unsigned long long look_back(unsigned long long* tiles, int64_t tile,
                                                        unsigned long long count, int lane) {
  if (lane == 0) store_release(&tiles[tile], (tile == 0 ? kTilePrefixed : kTileCounted) | count);
  unsigned long long before = 0;
  int64_t next = tile - 1 - lane;  // lane l looks l tiles further back
  bool searching = tile > 0;
  while (searching) {
    unsigned long long word = kTilePrefixed;  // in front of tile 0: nothing
    if (next >= 0) {
      do {
        word = load_acquire(&tiles[next]);
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
  if (lane == 0 && tile > 0) store_release(&tiles[tile], kTilePrefixed | (before + count));
  return before;
}

// One block per tile. Predicate: bool operator()(int64_t id), prepared by begin() on the device.
template <class Predicate>
__global__ void __launch_bounds__(kCompactThreads)
    compact_kernel(Predicate predicate, int64_t n, CompactState* state, int64_t* ids) {
  constexpr int kWarps = kCompactThreads / kWarpSize;
  DYNPRUNE_SHARED(unsigned, offsets, [kCompactRounds * kWarps]);
  DYNPRUNE_SHARED(unsigned long long, tile_offset, );
  DYNPRUNE_SHARED(unsigned, tile_number, );
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;

  if (thread == 0) tile_number = atomicAdd(&state->ticket, 1u);
  __syncthreads();
  const int64_t tile = tile_number;
  const int64_t first = tile * kCompactTile + thread;

  auto keeps = predicate.begin();
  unsigned kept = 0;  // bit r: this thread keeps the id of round r
  for (int r = 0; r < kCompactRounds; r++) {
    const int64_t id = first + r * kCompactThreads;
    const bool keep = id < n && keeps(id);
    const unsigned ballot = __ballot_sync(kFullWarp, keep);
    kept |= static_cast<unsigned>(keep) << r;
    if (lane == 0) offsets[r * kWarps + warp] = __popc(ballot);
  }
  __syncthreads();

  if (warp == 0) {  // ids ascend with (round, warp, lane): scan the 64 counts, two a lane
    static_assert(kCompactRounds * kWarps == 2 * kWarpSize, "the scan below is over 64 counts");
    const unsigned a = offsets[2 * lane], b = offsets[2 * lane + 1];
    const unsigned inclusive = warp_inclusive_sum(a + b, lane);
    const unsigned total = __shfl_sync(kFullWarp, inclusive, kWarpSize - 1);
    offsets[2 * lane] = inclusive - a - b;
    offsets[2 * lane + 1] = inclusive - b;
    const unsigned long long before = look_back(state->tiles(), tile, total, lane);
    if (lane == 0) tile_offset = before;
  }
  __syncthreads();

  for (int r = 0; r < kCompactRounds; r++) {
    const bool keep = (kept >> r & 1u) != 0;
    const unsigned ballot = __ballot_sync(kFullWarp, keep);
    const unsigned rank = __popc(ballot & ((1u << lane) - 1));
    if (keep) {
      ids[tile_offset + offsets[r * kWarps + warp] + rank] = first + r * kCompactThreads;
    }
  }
}

// state: CompactState::bytes(n) bytes of zeros. ids: room for every id that the predicate keeps.
template <class Predicate>
cudaError_t launch_compact(const Predicate& predicate, int64_t n, CompactState* state, int64_t* ids,
                           cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  const unsigned grid = static_cast<unsigned>(num_compact_tiles(n));
  DYNPRUNE_LAUNCH((compact_kernel<Predicate>), grid, kCompactThreads, 0, stream, predicate, n,
                  state, ids);
  return cudaGetLastError();
}

}  // namespace dynprune
