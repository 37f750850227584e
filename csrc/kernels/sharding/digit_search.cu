// SPDX-License-Identifier: Apache-2.0
#include "kernels/sharding/digit_search.h"

#include "device/compact.h"
#include "device/digit_search.h"
#include "kernels/sharding/fill.cuh"

namespace dynprune {
namespace cuda {
namespace {

constexpr int kCountThreads = 1024;

__global__ void __launch_bounds__(kCountThreads)
    digit_counts_kernel(ShardWords words, const SearchState* state, Digit digit, Seed seed,
                        unsigned long long* counts) {
  DYNPRUNE_SHARED(unsigned, bins, [kNumBins]);
  const uint64_t prefix = state->prefix, seed_value = seed.get();
  if (state->wanted == 0) return;
  const IdHash tie_hash(seed_value, Stream::kTie), explore_hash(seed_value, Stream::kExplore);
  for (int b = threadIdx.x; b < digit.num_bins(); b += kCountThreads) bins[b] = 0;
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * kCountThreads;
  for (int64_t begin = int64_t{blockIdx.x} * kCountThreads; begin < words.shard.count;
       begin += stride) {
    const int64_t i = begin + threadIdx.x;
    const bool valid = i < words.shard.count;
    count_bin(bins, valid ? words.bin(i, digit, prefix, tie_hash, explore_hash) : -1);
  }
  __syncthreads();
  for (int b = threadIdx.x; b < digit.num_bins(); b += kCountThreads) {
    if (bins[b] != 0) atomicAdd(&counts[b], 0ull + bins[b]);
  }
}

// One block per tile.
__global__ void __launch_bounds__(kListThreads)
    positions_kernel(ShardSelected selected, Seed seed, int64_t k, CompactState* compact,
                     int64_t* positions) {
  DYNPRUNE_SHARED(ListShared, shared, );
  const int64_t tile = take_tile(compact, &shared);
  const int lane = threadIdx.x % kWarpSize;
  const uint64_t seed_value = seed.get();
  const IdHash tie_hash(seed_value, Stream::kTie), explore_hash(seed_value, Stream::kExplore);
  for (int w = threadIdx.x / kWarpSize; w < kWordsPerTile; w += kListThreads / kWarpSize) {
    const int64_t i = tile * kTile + w * kWarpSize + lane;
    const bool keep = i < selected.words.shard.count && selected(i, tie_hash, explore_hash);
    const unsigned word = __ballot_sync(kFullWarp, keep);
    if (lane == 0) shared.words[w] = word;
  }
  count_tile(tile, compact, &shared);
  write_tile(tile, &shared, k, positions);
}

}  // namespace

cudaError_t launch_shard_digit_counts(const ShardWords& words, const SearchState* state, int round,
                                      Seed seed, int64_t* counts, cudaStream_t stream) {
  const Digit digit = Digit::of_round(round);
  const cudaError_t error =
      cudaMemsetAsync(counts, 0, static_cast<size_t>(digit.num_bins()) * sizeof(int64_t), stream);
  if (error != cudaSuccess || words.shard.count == 0) return error;
  DYNPRUNE_LAUNCH((digit_counts_kernel), grid_for(words.shard.count, kCountThreads, 2),
                  kCountThreads, 0, stream, words, state, digit, seed,
                  reinterpret_cast<unsigned long long*>(counts));
  return cudaGetLastError();
}

size_t shard_positions_workspace_bytes(int64_t n) { return CompactState::bytes(n); }

cudaError_t launch_shard_positions(const ShardSelected& selected, Seed seed, int64_t k,
                                   int64_t* positions, void* workspace, cudaStream_t stream) {
  const int64_t n = selected.words.shard.count;
  if (k == 0 || n == 0) return cudaSuccess;
  const cudaError_t error =
      cudaMemsetAsync(workspace, 0, shard_positions_workspace_bytes(n), stream);
  if (error != cudaSuccess) return error;
  DYNPRUNE_LAUNCH((positions_kernel), static_cast<unsigned>(num_tiles(n)), kListThreads, 0, stream,
                  selected, seed, k, static_cast<CompactState*>(workspace), positions);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace dynprune
