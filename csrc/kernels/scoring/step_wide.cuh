// SPDX-License-Identifier: Apache-2.0
// The fused step on rows that no block's shared memory holds. A team of blocks shares a row: each
// reads one slice into its shared memory, the blocks bring the slices' sums together, and each
// writes the gradient of its slice from there. Teams are persistent and meet once per row, in one
// of two ways: as a cluster, through shared memory, or anywhere on the machine, through global
// memory, in a cooperative launch. Sums are merged in the order of the slices, and how a row is
// sliced depends on its length, the element type and the way of meeting alone: no result depends on
// how many teams there are. Not for float64 (may_be_wide).
#pragma once

#include "device/grid.h"
#include "kernels/scoring/step_task.cuh"

namespace dynprune {
namespace cuda {

constexpr int kMaxTeam = kWarpSize;      // blocks: a warp reads all of their sums at once
constexpr int kMaxCluster = 8;           // what every device with clusters can run
constexpr int64_t kSliceAlignment = 32;  // bytes: slices of aligned rows share no sector

// How a row of `classes` is divided among `members` blocks.
struct WidePlan {
  int members;           // 0: the row does not fit
  int64_t slice;         // classes, of all but perhaps the last
  int64_t shared_bytes;  // per block

  static WidePlan of(int64_t classes, int64_t element_bytes, int members) {
    const int64_t granule = kSliceAlignment / element_bytes;
    const int64_t slice = ((classes + members - 1) / members + granule - 1) / granule * granule;
    return {members, slice, slice * element_bytes + 16};  // 16: for where a slice begins
  }
  // The smallest power of two of blocks, up to `most`, that hold a row.
  static WidePlan smallest(int64_t classes, int64_t element_bytes, int most, int64_t block_bytes) {
    for (int members = 2; members <= most; members *= 2) {
      const WidePlan plan = of(classes, element_bytes, members);
      if (plan.shared_bytes <= block_bytes) return plan;
    }
    return {0, 0, 0};
  }
};

// Every block of a grid has the place blockIdx.x % members in the team blockIdx.x / members.

template <class A>
class TeamInGrid {
 public:
  static constexpr bool kInCluster = false;

  __device__ TeamInGrid(const Workspace<A>& work, int members)
      : members_(members),
        member_(static_cast<int>(blockIdx.x) % members),
        records_(work.records + static_cast<int>(blockIdx.x) - member_),
        arrived_(work.arrived + static_cast<int>(blockIdx.x) - member_),
        round_(0) {
    if (member_ == 0 && threadIdx.x == 0) *arrived_ = 0;
    grid_sync();
  }

  // Thread 0 of every block brings its sums; the first lanes of its first warp get those of all.
  // Every thread calls. A record is written again two rounds later: by then all have read it,
  // because they have arrived at the round between.
  __device__ RowSums<A> exchange(const RowSums<A>& sums) {
    RowSums<A>* records = records_ + round_ % 2 * kMaxWideBlocks;
    round_++;
    if (threadIdx.x == 0) {
      records[member_] = sums;
      __threadfence();
      atomicAdd(arrived_, 1u);
      while (load_acquire(arrived_) < round_ * static_cast<unsigned>(members_)) {
      }
    }
    __syncwarp();
    const int lane = threadIdx.x;
    return lane < members_ ? records[lane] : RowSums<A>::none();
  }

  __device__ void leave() {}

 private:
  const int members_, member_;
  RowSums<A>* const records_;
  unsigned* const arrived_;
  unsigned round_;
};

template <class A>
class TeamInCluster {
 public:
  static constexpr bool kInCluster = true;

  __device__ TeamInCluster(const Workspace<A>&, int members) : members_(members), round_(0) {}

  // As above.
  __device__ RowSums<A> exchange(const RowSums<A>& sums) {
    DYNPRUNE_SHARED(RowSums<A>, records, [2]);
    RowSums<A>* record = &records[round_ % 2];
    round_++;
    if (threadIdx.x == 0) *record = sums;
    cluster_sync();
    const int lane = threadIdx.x;
    return lane < members_ ? *cluster_shared(record, static_cast<unsigned>(lane))
                           : RowSums<A>::none();
  }

  // A block stays until nobody reads its record any more.
  __device__ void leave() { cluster_sync(); }

 private:
  const int members_;
  unsigned round_;
};

template <class T, class Team>
__global__ void __launch_bounds__(kThreads, kStepBlocksPerSm)
    wide_step_kernel(StepArguments<compute_t<T>> a, int members, int64_t slice) {
  using A = compute_t<T>;
  if constexpr (Team::kInCluster && !kHasClusters) return;
  DYNPRUNE_DYNAMIC_SHARED(unsigned char, staged_slice);
  DYNPRUNE_SHARED(SavedRow<A>, saved, );
  Team team(a.work, members);
  const CrossEntropyInput& in = a.in;
  const LossOptions<A> options(in);
  const bool smooth = options.label_smoothing > 0;
  const A divisor = divisor_of(a);
  const int thread = threadIdx.x, member = static_cast<int>(blockIdx.x) % members;
  const int64_t first = member * slice < in.num_classes ? member * slice : in.num_classes;
  const int64_t classes = in.num_classes - first < slice ? in.num_classes - first : slice;
  const int64_t num_teams = gridDim.x / static_cast<unsigned>(members);
  for (int64_t row = blockIdx.x / static_cast<unsigned>(members); row < in.batch_size;
       row += num_teams) {
    const RowTarget<A> y(in, row);
    T* out = static_cast<T*>(a.grad_logits) + row * in.num_classes + first;
    if (y.kind != RowKind::kScored) {  // for the whole team
      if (member == 0 && thread == 0) {
        write_scores(a, row, y, RowSums<A>::none(), RowResult<A>{}, A{0}, divisor);
      }
      write_zeros<kThreads>(out, classes, thread);
      continue;
    }
    const T* x = static_cast<const T*>(in.logits) + row * in.row_stride;
    T* staged = reinterpret_cast<T*>(staged_slice) + elements_past_boundary(x + first);
    RowSums<A> sums = RowSums<A>::none();
    add_row<kThreads>(x, first, classes, thread, y.first, options, &sums,
                      [&](int64_t c, const auto& value) { stage(staged + (c - first), value); });
    team_merge<kThreads>(&sums, smooth);
    // Asked for before the team meets: memory answers meanwhile.
    const A scale = gradient_scale(a, row, divisor), x_first = widen(x[y.first]);
    sums = team.exchange(sums);
    if (thread < kWarpSize) lanes_merge<kWarpSize>(&sums, smooth);
    if (thread == 0) {
      const RowResult<A> result = finish_row(sums.stats, x_first);
      saved = {result.max, result.log_normaliser, result.miss, sums.weight};
      if (member == 0) {
        const A x_second = y.second >= 0 ? static_cast<A>(widen(x[y.second])) : A{0};
        write_scores(a, row, y, sums, result, x_second, divisor);
      }
    }
    __syncthreads();
    if (scale == 0) {
      write_zeros<kThreads>(out, classes, thread);
    } else {
      const RowGradient<A> gradient(options, saved, y, in.num_classes, scale);
      write_gradient<kThreads>(staged, out, first, classes, thread, gradient);
    }
    __syncthreads();  // before the next row takes the place of this one
  }
  team.leave();
  if (a.finish_here && last_block_here(a.ticket)) {
    finish_batch(a, divisor);
    if (thread == 0) *a.ticket = 0;
  }
}

inline unsigned wide_grid(int64_t rows, int64_t teams, int members) {
  if (teams > kMaxWideBlocks / members) teams = kMaxWideBlocks / members;
  return static_cast<unsigned>((rows < teams ? rows : teams) * members);
}

// Both launch a step on rows that no single block holds, or return an error and leave nothing
// behind: a device may lack what it takes, or own less of itself than its attributes say.

template <class T>
cudaError_t launch_clusters_of_blocks(const StepArguments<compute_t<T>>& a, int64_t block_bytes,
                                      cudaStream_t stream) {
  using Team = TeamInCluster<compute_t<T>>;
  const int64_t classes = a.in.num_classes, size = sizeof(T);
  const int64_t most = block_bytes < kMaxStagedBytes ? block_bytes : kMaxStagedBytes;
  WidePlan plan = WidePlan::smallest(classes, size, kMaxCluster, most);
  if (plan.members == 0) plan = WidePlan::of(classes, size, kMaxCluster);
  if (plan.shared_bytes > block_bytes) return cudaErrorInvalidValue;
  const auto bytes = static_cast<size_t>(plan.shared_bytes);
  const auto members = static_cast<unsigned>(plan.members);
  const int teams =
      DYNPRUNE_RESIDENT_CLUSTERS((wide_step_kernel<T, Team>), members, kThreads, bytes);
  if (teams == 0) return cudaErrorInvalidValue;
  return DYNPRUNE_LAUNCH_CLUSTERS((wide_step_kernel<T, Team>),
                                  wide_grid(a.in.batch_size, teams, plan.members), members,
                                  kThreads, bytes, stream, a, plan.members, plan.slice);
}

template <class T>
cudaError_t launch_grid_of_blocks(const StepArguments<compute_t<T>>& a, int64_t block_bytes,
                                  cudaStream_t stream) {
  using Team = TeamInGrid<compute_t<T>>;
  const int64_t most = block_bytes < kMaxStagedBytes ? block_bytes : kMaxStagedBytes;
  const WidePlan plan = WidePlan::smallest(a.in.num_classes, sizeof(T), kMaxTeam, most);
  if (plan.members == 0) return cudaErrorInvalidValue;
  const auto bytes = static_cast<size_t>(plan.shared_bytes);
  const int teams =
      DYNPRUNE_RESIDENT_BLOCKS((wide_step_kernel<T, Team>), kThreads, bytes) / plan.members;
  if (teams == 0) return cudaErrorInvalidValue;
  return DYNPRUNE_LAUNCH_COOPERATIVE((wide_step_kernel<T, Team>),
                                     wide_grid(a.in.batch_size, teams, plan.members), kThreads,
                                     bytes, stream, a, plan.members, plan.slice);
}

template <class T>
bool launch_wide(const StepArguments<compute_t<T>>& a, int64_t block_bytes, cudaStream_t stream) {
  if (launch_clusters_of_blocks<T>(a, block_bytes, stream) == cudaSuccess) return true;
  (void)cudaGetLastError();  // a refused launch is no error: another way follows
  if (launch_grid_of_blocks<T>(a, block_bytes, stream) == cudaSuccess) return true;
  (void)cudaGetLastError();
  return false;
}

}  // namespace cuda
}  // namespace dynprune
