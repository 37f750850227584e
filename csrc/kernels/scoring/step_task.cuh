// SPDX-License-Identifier: Apache-2.0
// What all kernels of scored_cross_entropy_step_ share: their arguments, the workspace, what a row
// leaves behind, and the end of a batch.
#pragma once

#include "kernels/scoring/logit_rows.cuh"
#include "kernels/scoring/update_scores.cuh"

namespace dynprune {
namespace cuda {

constexpr int64_t kMaxRowsPerLaunch = 8192;   // that one block finishes
constexpr int64_t kMaxTargetsRead = 1 << 21;  // by all blocks together
constexpr int64_t kMaxPartialSums = 256;
constexpr int64_t kMaxStagedBytes = 96 * 1024;  // per block: two on a multiprocessor of an H100
constexpr int64_t kStaticBytes = 2 * 1024;      // at least what the kernels declare
constexpr int64_t kBytesWithoutOptIn = 48 * 1024 - kStaticBytes;
constexpr int kMaxWideBlocks = 1024;

// Whether several blocks may have to share a row. float64 is for checking gradients: its rows are
// read again instead, and the kernels for them need not exist.
inline bool may_be_wide(const CrossEntropyInput& in) {
  const int64_t bytes = in.type == ScalarType::kFloat32 ? 4 : 2;
  return in.type != ScalarType::kFloat64 && in.num_classes * bytes > kBytesWithoutOptIn;
}

// Per-row results that later steps read, in the workspace.
template <class A>
struct Workspace {
  A* weighted;       // [B] the row's term of the summed loss, 0 for a row that does not count
  A* mean_partials;  // [kMaxPartialSums] of what a mean divides by
  A* loss_partials;  // [kMaxPartialSums]
  int64_t* row_ids;  // [B] sample ids, kNoSample for a row that does not count
  float* values;     // [B] what enters the table
  Slot* slots;       // of the update
  // Of rows that several blocks share (step_wide.cuh).
  RowSums<A>* records;  // [2, kMaxWideBlocks]
  unsigned* arrived;    // [kMaxWideBlocks]
  size_t bytes;         // all together

  Workspace(void* memory, const CrossEntropyInput& in) : bytes(0) {
    const int64_t rows = in.batch_size;
    const auto take = [&](auto** array, int64_t n) {
      *array = reinterpret_cast<std::decay_t<decltype(*array)>>(static_cast<char*>(memory) + bytes);
      bytes += (static_cast<size_t>(n) * sizeof(**array) + 15) / 16 * 16;
    };
    take(&slots, num_slots(rows));
    take(&row_ids, rows);
    take(&weighted, rows);
    take(&mean_partials, kMaxPartialSums);
    take(&loss_partials, kMaxPartialSums);
    take(&values, rows);
    take(&records, may_be_wide(in) ? 2 * kMaxWideBlocks : 0);
    take(&arrived, may_be_wide(in) ? kMaxWideBlocks : 0);
  }
};

template <class A>
struct StepArguments {
  CrossEntropyInput in;
  Outputs<A> out;
  const A *sample_weight, *grad_scale;
  Reduction reduction;
  Score score;
  A *loss, *row_weight;
  void* grad_logits;
  ScoreUpdate update;  // sample_ids: the caller's, values: the workspace's
  Workspace<A> work;
  int64_t slots;
  int64_t num_mean_partials;  // 0: every block adds up the targets itself
  bool finish_here;           // by the last block, instead of by other launches
  int64_t staged_bytes;       // of shared memory per row; 0: a row is read again
  unsigned* ticket;
  ErrorRecord* errors;
};

// Sum of value(i), 0 <= i < n, over the block; in every thread.
template <class A, class Value>
__device__ A block_sum(int64_t n, const Value& value) {
  DYNPRUNE_SHARED(A, by_warp, [kThreads / kWarpSize]);
  A sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += value(i);
#pragma unroll
  for (int d = kWarpSize / 2; d > 0; d /= 2) sum += __shfl_xor_sync(kFullWarp, sum, d);
  if (threadIdx.x % kWarpSize == 0) by_warp[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < kThreads / kWarpSize; w++) sum += by_warp[w];
  __syncthreads();  // by_warp may be used again
  return sum;
}

template <class A>
__device__ A mean_weight_of(const CrossEntropyInput& in, int64_t row) {
  const RowTarget<A> y(in, row);
  return y.kind == RowKind::kScored ? y.mean_weight(LossOptions<A>(in)) : A{0};
}

// What the summed loss is divided by.
template <class A>
__device__ A divisor_of(const StepArguments<A>& a) {
  if (a.reduction != Reduction::kMean) return 1;
  if (a.num_mean_partials > 0) {
    return block_sum<A>(a.num_mean_partials, [&](int64_t i) { return a.work.mean_partials[i]; });
  }
  return block_sum<A>(a.in.batch_size, [&](int64_t row) { return mean_weight_of<A>(a.in, row); });
}

template <class A>
__device__ void write_loss(const StepArguments<A>& a, A sum, A divisor) {
  if (threadIdx.x == 0 && a.reduction != Reduction::kNone) *a.loss = sum / divisor;
}

// All of what is left when every row is scored, by one block.
template <class A>
__device__ void finish_batch(const StepArguments<A>& a, A divisor) {
  const int64_t rows = a.in.batch_size;
  if (a.reduction != Reduction::kNone) {
    write_loss(a, block_sum<A>(rows, [&](int64_t row) { return a.work.weighted[row]; }), divisor);
  }
  ScoreUpdate update = a.update;
  update.sample_ids = a.work.row_ids;
  Slot* slots = a.work.slots;
  for (int64_t s = threadIdx.x; s < a.slots; s += kThreads) slots[s] = Slot{0, 0, 0};
  __syncthreads();
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
    claim_row(update, row, slots, a.slots, a.errors);
  }
  __syncthreads();
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
    if (update.count_type == IndexType::kInt32) {
      apply_row<int32_t>(update, row, slots, a.slots);
    } else {
      apply_row<int64_t>(update, row, slots, a.slots);
    }
  }
}

// The factor of a scored row's gradient.
template <class A>
__device__ A gradient_scale(const StepArguments<A>& a, int64_t row, A divisor) {
  const A weight = a.sample_weight != nullptr ? a.sample_weight[row] : A{1};
  return weight / divisor * (a.grad_scale != nullptr ? *a.grad_scale : A{1});
}

// The scores of a row and what later steps need of it; by one thread.
template <class A>
__device__ void write_scores(const StepArguments<A>& a, int64_t row, const RowTarget<A>& y,
                             const RowSums<A>& sums, const RowResult<A>& result, A x_second,
                             A divisor) {
  const bool scored = y.kind == RowKind::kScored;
  A weight = 0, weighted = 0;
  if (scored) {
    const A loss = row_loss(LossOptions<A>(a.in), y, result, x_second, a.in.num_classes,
                            sums.weight, sums.distance);
    weight = a.sample_weight != nullptr ? a.sample_weight[row] : A{1};
    weighted = weight * loss;
    a.out.write(row, loss, result, sums.weight);
    a.work.values[row] = table_value(a.score, loss, result);
  } else {
    a.out.write_skipped(row, y, a.errors);
  }
  a.row_weight[row] = scored ? weight / divisor : A{0};
  a.work.row_ids[row] = scored ? a.update.sample_ids[row] : kNoSample;
  a.work.weighted[row] = weighted;
  if (a.reduction == Reduction::kNone) a.loss[row] = weighted;
}

// Left to itself, ptxas aims at more resident blocks than the registers allow, and spills.
constexpr int kStepBlocksPerSm = 2;

}  // namespace cuda
}  // namespace dynprune
