// SPDX-License-Identifier: Apache-2.0
// What all kernels of scored_cross_entropy_step_ share: their arguments, the workspace, the step of
// one row, and the end of a batch.
#pragma once

#include "kernels/scoring/row_policy.cuh"
#include "kernels/scoring/update_scores.cuh"

namespace dynprune {
namespace cuda {

// That one block finishes, and whose targets every block reads.
constexpr int64_t kMaxRowsPerLaunch = 512;
constexpr int64_t kMaxPartialSums = 256;
constexpr int64_t kMaxStagedBytes = 96 * 1024;  // per block; an H100's multiprocessor has 228 KB
constexpr int64_t kStaticBytes = 2 * 1024;      // at least what kernels of rows declare
constexpr int64_t kBytesWithoutOptIn = 48 * 1024 - kStaticBytes;
constexpr int kMaxWideBlocks = 1024;
constexpr int kMaxWideTeams = kMaxWideBlocks / 2;  // of two blocks or more

// Whether several blocks may have to share a row. float64 is for checking gradients: its rows are
// read again instead, and the kernels for them need not exist.
inline bool may_be_wide(const CrossEntropyInput& in) {
  const int64_t bytes = in.type == ScalarType::kFloat32 ? 4 : 2;
  return in.type != ScalarType::kFloat64 && in.num_classes * bytes > kBytesWithoutOptIn;
}

// How many blocks of a team have arrived. They poll it, so that no other team's shares its cache
// line. Its alignment is that of the workspace.
struct Arrivals {
  unsigned count;
  unsigned unused[kCacheLine / sizeof(unsigned) - 1];
};

// Ids that stand for at least so many rows have them added up within the step. Else a row's value
// and id are written and read again, which are 12 bytes; a total has 96.
constexpr int64_t kMinRowsPerPart = 8;

// Per-row results that later steps read, in the workspace.
template <class A>
struct Workspace {
  A* weighted;       // [B] the row's term of the summed loss, 0 for a row that does not count
  A* mean_partials;  // [kMaxPartialSums] of what a mean divides by
  A* loss_partials;  // [kMaxPartialSums]
  // [B / rows_per_id] what the rows of an element of sample_ids add up to, zero at the start. If it
  // is null, the rows are the parts of the update:
  RowTotal* parts;
  int64_t* row_ids;  // [B] sample ids, kNoSample for a row that does not count
  float* values;     // [B] what enters the table
  UpdateMemory update;
  // Of rows that several blocks share (step_wide.cuh).
  RowSums<A>* records;  // [2, kMaxWideBlocks]
  Arrivals* arrivals;   // [kMaxWideTeams]
  size_t bytes;         // all together

  // num_ids: elements of sample_ids.
  Workspace(void* memory, const CrossEntropyInput& in, int64_t num_ids)
      : parts(nullptr), update(nullptr, 0, 0), bytes(0) {
    const int64_t rows = in.batch_size;
    const bool in_parts = rows > kMaxRowsPerLaunch && rows >= kMinRowsPerPart * num_ids;
    const auto take = [&](auto** array, int64_t n) {
      *array = reinterpret_cast<std::decay_t<decltype(*array)>>(static_cast<char*>(memory) + bytes);
      bytes += (static_cast<size_t>(n) * sizeof(**array) + 15) / 16 * 16;
    };
    if (in_parts) take(&parts, num_ids);  // cleared together with what follows
    char* update_memory = nullptr;
    const int64_t num_parts = in_parts ? num_ids : rows;
    take(&update_memory, static_cast<int64_t>(UpdateMemory(nullptr, num_parts, num_ids).bytes));
    update = UpdateMemory(update_memory, num_parts, num_ids);
    take(&row_ids, in_parts ? 0 : rows);
    take(&weighted, rows);
    take(&mean_partials, kMaxPartialSums);
    take(&loss_partials, kMaxPartialSums);
    take(&values, in_parts ? 0 : rows);
    take(&records, may_be_wide(in) ? 2 * kMaxWideBlocks : 0);
    take(&arrivals, may_be_wide(in) ? kMaxWideTeams : 0);
  }
};

// The arguments of the step's kernels.
template <class A>
struct StepTask {
  CrossEntropyInput in;
  Outputs<A> out;
  const A *sample_weight, *token_weight, *grad_scale, *divisor;
  Reduction reduction;
  Score score;
  A *loss, *row_weight;
  void* grad_logits;
  int64_t rows_per_id;
  ScoreUpdate update;  // sample_ids: the caller's, values: the workspace's
  Workspace<A> work;
  int64_t num_mean_partials;  // 0: every block adds up the targets itself
  bool finish_here;           // by the last block, instead of by other launches
  int64_t staged_bytes;       // of shared memory per row; 0: a row is read again
  unsigned* ticket;
  ErrorRecord* errors;
};

// The task of a launcher's arguments, not planned yet.
template <class A>
StepTask<A> step_task(const CrossEntropyInput& in, const CrossEntropyOutput& output,
                      const CrossEntropyStep& step, const ScoreUpdate& update, void* workspace,
                      unsigned* ticket, ErrorRecord* errors) {
  const Workspace<A> work(workspace, in, update.max_ids);
  StepTask<A> task{in,
                   Outputs<A>(output),
                   static_cast<const A*>(step.sample_weight),
                   static_cast<const A*>(step.token_weight),
                   static_cast<const A*>(step.grad_scale),
                   static_cast<const A*>(step.divisor),
                   step.reduction,
                   step.score,
                   static_cast<A*>(step.loss),
                   static_cast<A*>(step.row_weight),
                   step.grad_logits,
                   step.rows_per_id,
                   update,
                   work,
                   /*num_mean_partials=*/0,
                   /*finish_here=*/false,
                   /*staged_bytes=*/0,
                   ticket,
                   errors};
  task.update.values = work.values;
  return task;
}

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

// What the summed loss is divided by, where every row counts as one.
template <class A>
__device__ __forceinline__ A divisor_of_all_rows(const StepTask<A>& task) {
  if (task.reduction != Reduction::kMean) return 1;
  return task.divisor != nullptr ? *task.divisor : static_cast<A>(task.in.batch_size);
}

// What the summed loss is divided by. Rows with probabilities have no class that could be ignored.
template <class A>
__device__ A divisor_of(const StepTask<A>& task) {
  if (task.reduction != Reduction::kMean || task.divisor != nullptr ||
      task.in.target.data == nullptr) {
    return divisor_of_all_rows(task);
  }
  if (task.num_mean_partials > 0) {
    return block_sum<A>(task.num_mean_partials,
                        [&](int64_t i) { return task.work.mean_partials[i]; });
  }
  return block_sum<A>(task.in.batch_size,
                      [&](int64_t row) { return mean_weight_of<A>(task.in, row); });
}

template <class A>
__device__ void write_loss(const StepTask<A>& task, A sum, A divisor) {
  if (threadIdx.x == 0 && task.reduction != Reduction::kNone) *task.loss = sum / divisor;
}

// The reduced loss and the update of the table, when every row is scored; by one block.
template <class A>
__device__ void finish_batch(const StepTask<A>& task, A divisor) {
  const int64_t rows = task.in.batch_size;
  if (task.reduction != Reduction::kNone) {
    write_loss(task, block_sum<A>(rows, [&](int64_t row) { return task.work.weighted[row]; }),
               divisor);
  }
  ScoreUpdate update = task.update;
  update.sample_ids = task.work.row_ids;
  const UpdateMemory& memory = task.work.update;
  for (int64_t s = threadIdx.x; s < memory.num_slots; s += kThreads) memory.slots[s] = Slot{};
  if (threadIdx.x == 0) *memory.totals_taken = 0;
  __syncthreads();
  for (int64_t row = 0; row < rows; row += kThreads) {
    claim_parts(update, nullptr, row + threadIdx.x, memory, task.errors);
  }
  __syncthreads();
  for (int64_t row = 0; row < rows; row += kThreads) {
    apply_parts(update, nullptr, row + threadIdx.x, memory);
  }
}

// The last block to get here finishes the batch, unless other launches do.
template <class A>
__device__ __forceinline__ void finish_in_last_block(const StepTask<A>& task, A divisor) {
  if (task.finish_here && last_block_here(task.ticket)) {
    finish_batch(task, divisor);
    if (threadIdx.x == 0) *task.ticket = 0;
  }
}

// The sample of a row, as a place in sample_ids.
template <class A>
__device__ int64_t sample_of(const StepTask<A>& task, int64_t row) {
  return task.rows_per_id == 1 ? row : row / task.rows_per_id;
}

template <class A>
__device__ A weight_of(const StepTask<A>& task, int64_t row) {
  const A weight = task.sample_weight != nullptr ? task.sample_weight[sample_of(task, row)] : A{1};
  return task.token_weight != nullptr ? weight * task.token_weight[row] : weight;
}

// The factor of a scored row's gradient.
template <class A>
__device__ A gradient_scale(const StepTask<A>& task, int64_t row, A divisor) {
  return weight_of(task, row) / divisor * (task.grad_scale != nullptr ? *task.grad_scale : A{1});
}

// What the update will read of a row, unless rows are added up within the step; by one thread.
template <class A>
__device__ __forceinline__ void write_entry(const StepTask<A>& task, int64_t row,
                                            const TableEntry& entry) {
  if (task.work.parts != nullptr) return;
  task.work.values[row] = entry.value;
  task.work.row_ids[row] = entry.counts ? task.update.sample_ids[sample_of(task, row)] : kNoSample;
}

// Adds the rows of a block to what those of their samples add up to, if the step does. Whole blocks
// call, with an entry in the threads that wrote one, and again after a barrier only.
template <class Row>
__device__ __forceinline__ void add_entries(const StepTask<typename Row::A>& task, const Row& row,
                                            const TableEntry& entry) {
  if (task.work.parts == nullptr) return;
  const int64_t first = Row::kRows == 1 ? row.index : int64_t{blockIdx.x} * Row::kRows;
  const int64_t behind =
      first + Row::kRows < task.in.batch_size ? first + Row::kRows : task.in.batch_size;
  const int64_t sample = sample_of(task, first);
  if (sample == sample_of(task, behind - 1)) {
    add_rows_of_block<kThreads / kWarpSize>(&task.work.parts[sample], task.update.row_reduction,
                                            entry);
  } else {
    add_neighbouring_rows(task.work.parts, sample_of(task, row.index), task.update.row_reduction,
                          entry);
  }
}

// Writes the scores of a row and what later phases read of it; by one thread. Returns what the row
// enters into its sample.
template <class A>
__device__ TableEntry write_scores(const StepTask<A>& task, int64_t row, const RowTarget<A>& y,
                                   const RowSums<A>& sums, const RowResult<A>& result, A x_second,
                                   A divisor) {
  const bool scored = y.kind == RowKind::kScored;
  TableEntry entry{0, result.margin > 0, scored};
  A weight = 0, weighted = 0;
  if (scored) {
    const A loss = row_loss(LossOptions<A>(task.in), y, result, x_second, task.in.num_classes,
                            sums.weight, sums.distance);
    weight = weight_of(task, row);
    weighted = weight * loss;
    task.out.write(row, loss, result, sums.weight);
    entry.value = table_value(task.score, loss, result);
  } else {
    task.out.write_skipped(row, y, task.errors);
  }
  task.row_weight[row] = scored ? weight / divisor : A{0};
  task.work.weighted[row] = weighted;
  if (task.reduction == Reduction::kNone) task.loss[row] = weighted;
  write_entry(task, row, entry);
  return entry;
}

// One row of the step, by all threads that share it (row_policy.cuh).
template <class Row>
__device__ __forceinline__ void step_row(const StepTask<typename Row::A>& task,
                                         const LossOptions<typename Row::A>& options,
                                         const Row& row, typename Row::A divisor) {
  using A = typename Row::A;
  const RowTarget<A>& y = row.target;
  const bool smooth = options.label_smoothing > 0;
  RowSums<A> sums = row.load(options);
  row.reduce(&sums, smooth);
  // Read before the exchange, on which none of it depends.
  const A scale = row.scored() ? gradient_scale(task, row.index, divisor) : A{0};
  const A x_first = row.scored() && row.has_sums() ? row.logit(y.first) : A{0};
  row.exchange(&sums, smooth);
  RowResult<A> result{};
  TableEntry entry{};
  if (row.has_sums()) {
    if (row.scored()) result = finish_row(sums.stats, x_first);
    if (row.exists && row.leads()) {
      const A x_second = row.scored() && y.second >= 0 ? row.logit(y.second) : A{0};
      entry = write_scores(task, row.index, y, sums, result, x_second, divisor);
    }
  }
  add_entries(task, row, entry);
  const SavedRow<A> saved =
      row.share({result.max, result.log_normaliser, result.miss, sums.weight});
  if (!row.has_gradient) return;
  if (scale == 0) {
    row.write_zeros();
  } else {
    row.write_gradient(RowGradient<A>(options, saved, y, task.in.num_classes, scale));
  }
}

}  // namespace cuda
}  // namespace dynprune
