// SPDX-License-Identifier: Apache-2.0
#include "kernels/selection/select_uniform.h"

#include "device/compact.h"
#include "kernels/selection/shuffle.cuh"

namespace dynprune {
namespace cuda {
namespace {

// One block per tile. An id is in the subset if its position in the permutation is below k.
__global__ void __launch_bounds__(kListThreads)
    list_uniform_kernel(Seed seed, int64_t n, int64_t k, CompactState* compact, int64_t* ids) {
  DYNPRUNE_SHARED(ListShared, shared, );
  const int64_t tile = take_tile(compact, &shared);
  const int lane = threadIdx.x % kWarpSize;
  const Permutation permutation(static_cast<uint64_t>(n), seed.get(), Stream::kPermutation);
  for (int w = threadIdx.x / kWarpSize; w < kWordsPerTile; w += kListThreads / kWarpSize) {
    const int64_t id = tile * kTile + w * kWarpSize + lane;
    const bool keep =
        id < n && permutation.position_of(static_cast<uint64_t>(id)) < static_cast<uint64_t>(k);
    const unsigned word = __ballot_sync(kFullWarp, keep);
    if (lane == 0) shared.words[w] = word;
  }
  count_tile(tile, compact, &shared);
  write_tile(tile, &shared, k, ids);
}

}  // namespace

size_t select_uniform_workspace_bytes(const Selection& s) {
  return s.order == Order::kRandom ? 0 : CompactState::bytes(s.num_samples);
}

cudaError_t launch_select_uniform(const Selection& s, void* workspace, cudaStream_t stream) {
  if (s.k() == 0) return cudaSuccess;
  if (s.order == Order::kRandom) {
    return launch_shuffle(Identity{}, s.num_samples, s.k(), s.seed, Stream::kPermutation, s.ids,
                          stream);
  }
  const cudaError_t error =
      cudaMemsetAsync(workspace, 0, select_uniform_workspace_bytes(s), stream);
  if (error != cudaSuccess) return error;
  DYNPRUNE_LAUNCH((list_uniform_kernel), static_cast<unsigned>(num_tiles(s.num_samples)),
                  kListThreads, 0, stream, s.seed, s.num_samples, s.k(),
                  static_cast<CompactState*>(workspace), s.ids);
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace dynprune
