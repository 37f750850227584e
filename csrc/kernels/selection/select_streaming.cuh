// SPDX-License-Identifier: Apache-2.0
// Selection from many samples, by any ranking, in five launches, or six for a random order. See
// select_plan.h for the steps and the bytes that they move.
#pragma once

#include "kernels/selection/select_classify.cuh"
#include "kernels/selection/select_resolve.cuh"
#include "kernels/selection/shuffle.cuh"

namespace dynprune {
namespace cuda {

// Without a bound, ptxas aims at 32 registers and spills on some architectures.
constexpr int kListBlocksPerSm = 10;

// One block per tile, in the order in which blocks start. ids: [k], or null for a directory.
template <class Ranking>
__global__ void __launch_bounds__(kListThreads, kListBlocksPerSm)
    list_kernel(SelectTask<Ranking> task, CompactState* compact, uint32_t* bitmap,
                const TileCandidates* tiles, const typename Ranking::Key* candidate_keys,
                const uint32_t* candidate_ids, RankDirectory directory, int64_t* ids) {
  using Key = typename Ranking::Key;
  DYNPRUNE_SHARED(ListShared, shared, );
  const int64_t tile = take_tile(compact, &shared);
  const int thread = threadIdx.x, lane = thread % kWarpSize;
  const uint64_t seed = task.seed.get();
  const Selected<Ranking> selected(
      task, seed, {task.state->greedy.template threshold<Key>(), task.state->random});
  if (task.state->missed == 0) {
    shared.words[thread] = bitmap[tile * kWordsPerTile + thread];
    const TileCandidates candidates = tiles[tile];
    __syncthreads();
    for (uint32_t c = thread; c < candidates.count; c += kListThreads) {
      const uint32_t id = candidate_ids[candidates.first + c];
      if (!selected(candidate_keys[candidates.first + c], id)) continue;
      const auto place = static_cast<uint32_t>(id - tile * kTile);
      atomicOr(&shared.words[place / 32], 1u << place % 32);
    }
  } else {
    const typename Ranking::Hash hash(seed);
    for (int w = thread / kWarpSize; w < kWordsPerTile; w += kListThreads / kWarpSize) {
      const int64_t id = tile * kTile + w * kWarpSize + lane;
      bool keep = false;
      if (id < task.num_samples) {
        keep = selected(task.has_greedy() ? key_at(task.ranking, id, hash) : 0, id);
      }
      const unsigned word = __ballot_sync(kFullWarp, keep);
      if (lane == 0) shared.words[w] = word;
    }
  }
  count_tile(tile, compact, &shared);
  if (ids != nullptr) {
    write_tile(tile, &shared, task.num_greedy + task.num_random, ids);
  } else {
    write_directory(tile, &shared, bitmap, directory);
  }
}

// Launches a block on every multiprocessor, or fewer where the device refuses so many. A device may
// own fewer multiprocessors than it reports, or have no cooperative launches.
template <class Ranking>
void launch_resolve(const SelectTask<Ranking>& task, int64_t capacity,
                    const typename Ranking::Key* candidate_keys, const uint32_t* candidate_ids,
                    cudaStream_t stream) {
  for (auto blocks = static_cast<unsigned>(multiprocessor_count()); blocks > 1; blocks /= 2) {
    const cudaError_t error =
        DYNPRUNE_LAUNCH_COOPERATIVE((resolve_kernel<Ranking>), blocks, kSearchThreads, 0, stream,
                                    task, capacity, candidate_keys, candidate_ids);
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();  // a refused launch is no error: another follows
  }
  DYNPRUNE_LAUNCH((resolve_kernel<Ranking>), 1, kSearchThreads, 0, stream, task, capacity,
                  candidate_keys, candidate_ids);
}

// workspace: SelectWorkspace::bytes bytes, 256-byte aligned.
template <class Ranking>
cudaError_t select_streaming(const Ranking& ranking, const Selection& s, void* workspace,
                             ErrorRecord* errors, cudaStream_t stream) {
  using Key = typename Ranking::Key;
  const SelectWorkspace<Key> w(workspace, s);
  const int64_t n = s.num_samples;
  cudaError_t error = cudaMemsetAsync(workspace, 0, w.zero_bytes, stream);
  if (error != cudaSuccess) return error;
  const auto hash = HashBracket::of(n - s.num_greedy, s.num_random, kCudaBracket);
  const SelectTask<Ranking> task = {ranking, n,    s.num_greedy, s.num_random,
                                    s.seed,  hash, w.state,      errors};
  if (s.num_greedy > 0) {
    const BracketPlan plan = BracketPlan::of(n, kCudaBracket);
    const BracketRanks ranks = BracketRanks::of(n, s.num_greedy, plan);
    const auto blocks =
        static_cast<unsigned>((plan.sample_size + kSearchThreads - 1) / kSearchThreads);
    DYNPRUNE_LAUNCH((bracket_kernel<Ranking>), std::max(blocks, 1u), kSearchThreads, 0, stream,
                    task, plan.sample_size, ranks, w.sample);
  }
  const auto tiles = static_cast<unsigned>(num_tiles(n));
  const int64_t capacity = candidate_capacity(n);
  DYNPRUNE_LAUNCH((classify_kernel<Ranking>), tiles, kClassifyThreads, 0, stream, task, capacity,
                  w.bitmap, w.tiles, w.candidate_keys, w.candidate_ids);
  launch_resolve(task, capacity, w.candidate_keys, w.candidate_ids, stream);
  const bool lazy = s.order == Order::kRandom;
  DYNPRUNE_LAUNCH((list_kernel<Ranking>), tiles, kListThreads, 0, stream, task, w.compact, w.bitmap,
                  w.tiles, w.candidate_keys, w.candidate_ids, w.directory, lazy ? nullptr : s.ids);
  error = cudaGetLastError();
  if (error != cudaSuccess || !lazy) return error;
  return launch_shuffle(w.directory, s.k(), s.k(), s.seed, Stream::kOrder, s.ids, stream);
}

}  // namespace cuda
}  // namespace dynprune
