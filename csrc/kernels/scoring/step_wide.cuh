// SPDX-License-Identifier: Apache-2.0
// The fused step on rows that no block's shared memory holds. A team of blocks shares a row. Each
// block reads one slice into its shared memory. The blocks exchange the sums of their slices, and
// each writes the gradient of its slice from there. A team keeps its blocks from row to row and
// exchanges once per row. A cluster exchanges through shared memory, a cooperative launch through
// global memory. Sums are merged in the order of the slices. How a row is sliced depends on its
// length, the element type and the kind of team. So no result depends on the number of teams.
// Not for float64 (may_be_wide).
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

// Block b of a grid is member b % members of team b / members.

// A team in a cooperative launch: exchanges through global memory.
template <class A>
class GridTeam {
 public:
  static constexpr bool kInCluster = false;

  __device__ GridTeam(const Workspace<A>& work, int members)
      : members_(members),
        member_(static_cast<int>(blockIdx.x) % members),
        records_(work.records + static_cast<int>(blockIdx.x) - member_),
        arrived_(&work.arrivals[static_cast<int>(blockIdx.x) / members].count),
        round_(0) {
    if (member_ == 0 && threadIdx.x == 0) *arrived_ = 0;
    grid_sync();
  }

  // Thread 0 of every block passes its sums; the first lanes of its first warp get those of all.
  // Every thread calls. A record is written again two rounds later. By then all blocks have read
  // it, because they have arrived at the round between.
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

// A team that is a cluster: exchanges through shared memory.
template <class A>
class ClusterTeam {
 public:
  static constexpr bool kInCluster = true;

  __device__ ClusterTeam(const Workspace<A>&, int members) : members_(members), round_(0) {}

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

  // A block stays until no other block reads its record any more.
  __device__ void leave() { cluster_sync(); }

 private:
  const int members_;
  unsigned round_;
};

// The slice of every row that a block of a team has.
struct BlockSlice {
  const CrossEntropyInput& in;
  const int member;        // of the team
  int64_t first, classes;  // of a row
  unsigned char* const staged;

  // slice: classes of all slices but perhaps the last.
  __device__ __forceinline__ BlockSlice(const CrossEntropyInput& input, int members, int64_t slice,
                                        unsigned char* staged_slice)
      : in(input), member(static_cast<int>(blockIdx.x) % members), staged(staged_slice) {
    first = member * slice < in.num_classes ? member * slice : in.num_classes;
    classes = in.num_classes - first < slice ? in.num_classes - first : slice;
  }
};

// The policy of a row that the blocks of a team share, a slice each: see row_policy.cuh.
template <class T, template <class> class TeamOf>
class SlicedRow {
 public:
  using Element = T;
  using A = compute_t<T>;
  using Team = TeamOf<A>;
  static constexpr int kRows = 1;  // of a block, at a time
  static constexpr bool exists = true, has_gradient = true;
  static constexpr int kStepBlocksPerSm = 2;

  const int64_t index;
  const RowTarget<A> target;

  __device__ __forceinline__ SlicedRow(const BlockSlice& slice, Team* team, int64_t row,
                                       T* grad_logits)
      : index(row),
        target(slice.in, row),
        out_(grad_logits + row * slice.in.num_classes + slice.first),
        slice_(slice),
        team_(team),
        x_(static_cast<const T*>(slice.in.logits) + slice.in.row_offset(row)),
        staged_(reinterpret_cast<T*>(slice.staged) + elements_past_boundary(x_ + slice.first)) {}

  __device__ __forceinline__ bool scored() const { return target.kind == RowKind::kScored; }
  __device__ __forceinline__ bool leads() const { return slice_.member == 0 && threadIdx.x == 0; }
  __device__ __forceinline__ bool has_sums() const { return threadIdx.x == 0; }
  __device__ __forceinline__ A logit(int64_t c) const { return widen(x_[c]); }

  __device__ __forceinline__ RowSums<A> load(const LossOptions<A>& options) const {
    RowSums<A> sums = RowSums<A>::none();
    const int64_t first = slice_.first;
    add_row<kThreads>(x_, first, slice_.classes, threadIdx.x, target.first, options, &sums,
                      [&](int64_t c, const auto& value) { stage(staged_ + (c - first), value); });
    return sums;
  }
  __device__ __forceinline__ void reduce(RowSums<A>* sums, bool smooth) const {
    team_merge<kThreads>(sums, smooth);
  }
  __device__ __forceinline__ void exchange(RowSums<A>* sums, bool smooth) const {
    *sums = team_->exchange(*sums);
    if (threadIdx.x < kWarpSize) lanes_merge<kWarpSize>(sums, smooth);
  }
  __device__ __forceinline__ SavedRow<A> share(const SavedRow<A>& saved) const {
    DYNPRUNE_SHARED(SavedRow<A>, shared_saved, );
    if (threadIdx.x == 0) shared_saved = saved;
    __syncthreads();
    return shared_saved;
  }
  __device__ __forceinline__ void write_gradient(const RowGradient<A>& gradient) const {
    cuda::write_gradient<kThreads>(static_cast<const T*>(staged_), out_, slice_.first,
                                   slice_.classes, threadIdx.x, gradient);
  }
  __device__ __forceinline__ void write_zeros() const {
    cuda::write_zeros<kThreads>(out_, slice_.classes, threadIdx.x);
  }

 private:
  T* const out_;
  const BlockSlice& slice_;
  Team* const team_;
  const T* const x_;  // the whole row
  T* const staged_;   // the slice
};

template <class Row>
__global__ void __launch_bounds__(kThreads, Row::kStepBlocksPerSm)
    wide_step_kernel(StepTask<typename Row::A> task, int members, int64_t slice_classes) {
  using A = typename Row::A;
  if constexpr (Row::Team::kInCluster && !kHasClusters) return;
  DYNPRUNE_DYNAMIC_SHARED(unsigned char, staged_slice);
  typename Row::Team team(task.work, members);
  const LossOptions<A> options(task.in);
  const A divisor = divisor_of(task);
  const BlockSlice slice(task.in, members, slice_classes, staged_slice);
  const int64_t num_teams = gridDim.x / static_cast<unsigned>(members);
  for (int64_t i = blockIdx.x / static_cast<unsigned>(members); i < task.in.batch_size;
       i += num_teams) {
    const Row row(slice, &team, i, static_cast<typename Row::Element*>(task.grad_logits));
    if (!row.scored()) {  // the same for the whole team: none of its blocks exchanges
      if (row.leads()) {
        write_scores(task, i, row.target, RowSums<A>::none(), RowResult<A>{}, A{0}, divisor);
      }
      row.write_zeros();
      continue;
    }
    step_row(task, options, row, divisor);
    __syncthreads();  // the next row overwrites the staged slice
  }
  team.leave();
  finish_in_last_block(task, divisor);
}

inline unsigned wide_grid(int64_t rows, int64_t teams, int members) {
  if (teams > kMaxWideBlocks / members) teams = kMaxWideBlocks / members;
  return static_cast<unsigned>((rows < teams ? rows : teams) * members);
}

// Both launch a step on rows that no single block holds, or return an error and launch nothing. A
// device may lack clusters or cooperative launches, or own fewer multiprocessors than it reports.

template <class T>
cudaError_t launch_clusters_of_blocks(const StepTask<compute_t<T>>& task, int64_t block_bytes,
                                      cudaStream_t stream) {
  using Row = SlicedRow<T, ClusterTeam>;
  const int64_t classes = task.in.num_classes, size = sizeof(T);
  const int64_t most = block_bytes < kMaxStagedBytes ? block_bytes : kMaxStagedBytes;
  WidePlan plan = WidePlan::smallest(classes, size, kMaxCluster, most);
  if (plan.members == 0) plan = WidePlan::of(classes, size, kMaxCluster);
  if (plan.shared_bytes > block_bytes) return cudaErrorInvalidValue;
  const auto bytes = static_cast<size_t>(plan.shared_bytes);
  const auto members = static_cast<unsigned>(plan.members);
  const int teams = DYNPRUNE_RESIDENT_CLUSTERS((wide_step_kernel<Row>), members, kThreads, bytes);
  if (teams == 0) return cudaErrorInvalidValue;
  return DYNPRUNE_LAUNCH_CLUSTERS((wide_step_kernel<Row>),
                                  wide_grid(task.in.batch_size, teams, plan.members), members,
                                  kThreads, bytes, stream, task, plan.members, plan.slice);
}

template <class T>
cudaError_t launch_grid_of_blocks(const StepTask<compute_t<T>>& task, int64_t block_bytes,
                                  cudaStream_t stream) {
  using Row = SlicedRow<T, GridTeam>;
  const int64_t most = block_bytes < kMaxStagedBytes ? block_bytes : kMaxStagedBytes;
  const WidePlan plan = WidePlan::smallest(task.in.num_classes, sizeof(T), kMaxTeam, most);
  if (plan.members == 0) return cudaErrorInvalidValue;
  const auto bytes = static_cast<size_t>(plan.shared_bytes);
  const int teams =
      DYNPRUNE_RESIDENT_BLOCKS((wide_step_kernel<Row>), kThreads, bytes) / plan.members;
  if (teams == 0) return cudaErrorInvalidValue;
  return DYNPRUNE_LAUNCH_COOPERATIVE((wide_step_kernel<Row>),
                                     wide_grid(task.in.batch_size, teams, plan.members), kThreads,
                                     bytes, stream, task, plan.members, plan.slice);
}

template <class T>
bool launch_wide(const StepTask<compute_t<T>>& task, int64_t block_bytes, cudaStream_t stream) {
  if (launch_clusters_of_blocks<T>(task, block_bytes, stream) == cudaSuccess) return true;
  (void)cudaGetLastError();  // a refused launch is no error: another kind follows
  if (launch_grid_of_blocks<T>(task, block_bytes, stream) == cudaSuccess) return true;
  (void)cudaGetLastError();
  return false;
}

}  // namespace cuda
}  // namespace dynprune
