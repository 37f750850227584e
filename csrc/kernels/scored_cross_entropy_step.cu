// SPDX-License-Identifier: Apache-2.0
// The row's team reads it once, into shared memory where it fits, and writes the gradient from
// there; a row that does not fit is read again. The last block to finish sums the losses and
// updates the table, since only then are all rows known. What a mean divides by every block adds up
// for itself from the targets: waiting for other blocks could deadlock, and scaling afterwards
// would read and write the gradient again. With too many rows for that, the sums are made by
// launches of their own, and so is the update. No sum depends on timing.
#include "kernels/scored_cross_entropy_step.h"

#include "kernels/logit_rows.cuh"
#include "kernels/update_scores.cuh"
#include "kernels/update_scores.h"

namespace dynprune {
namespace cuda {
namespace {

constexpr int64_t kMaxRowsPerLaunch = 8192;   // that one block finishes
constexpr int64_t kMaxTargetsRead = 1 << 21;  // by all blocks together
constexpr int64_t kMaxPartialSums = 256;
constexpr int64_t kMaxStagedBytes = 96 * 1024;     // two blocks per multiprocessor on an H100
constexpr int64_t kBytesWithoutOptIn = 46 * 1024;  // 48 less what is static

// Per-row results that later steps read, in the workspace.
template <class A>
struct Workspace {
  A* weighted;       // [B] the row's term of the summed loss, 0 for a row that does not count
  A* mean_partials;  // [kMaxPartialSums] of what a mean divides by
  A* loss_partials;  // [kMaxPartialSums]
  int64_t* row_ids;  // [B] sample ids, kNoSample for a row that does not count
  float* values;     // [B] what enters the table
  Slot* slots;       // of the update

  Workspace(void* memory, int64_t rows) {
    char* p = static_cast<char*>(memory);
    const auto take = [&](auto** array, int64_t n) {
      *array = reinterpret_cast<std::decay_t<decltype(*array)>>(p);
      p += (n * static_cast<int64_t>(sizeof(**array)) + 15) / 16 * 16;
    };
    take(&slots, num_slots(rows));
    take(&row_ids, rows);
    take(&weighted, rows);
    take(&mean_partials, kMaxPartialSums);
    take(&loss_partials, kMaxPartialSums);
    take(&values, rows);
  }
};

template <class A>
struct StepArguments {
  CrossEntropyInput in;
  Outputs<A> out;
  const A *sample_weight, *grad_scale;
  Reduction reduction;
  Score score;
  A *loss, *row_scale;
  void* grad_logits;
  ScoreUpdate update;  // sample_ids: the caller's, values: the workspace's
  Workspace<A> work;
  int64_t slots;
  int64_t num_mean_partials;  // 0: every block adds up the targets itself
  bool finish_here;           // by the last block, instead of by other launches
  bool staged;                // rows fit into shared memory
  int64_t staged_bytes;       // per row
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

// The scores of a row and what later steps need of it; by one thread. The gradient's factor.
template <class A>
__device__ A write_scores(const StepArguments<A>& a, int64_t row, const RowTarget<A>& y,
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
  const A row_scale = scored ? weight / divisor : A{0};
  a.row_scale[row] = row_scale;
  a.work.row_ids[row] = scored ? a.update.sample_ids[row] : kNoSample;
  a.work.weighted[row] = weighted;
  if (a.reduction == Reduction::kNone) a.loss[row] = weighted;
  return row_scale * (a.grad_scale != nullptr ? *a.grad_scale : A{1});
}

// Left to itself, ptxas aims at more resident blocks than the registers allow, and spills.
constexpr int kStepBlocksPerSm = 2;

template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads, kStepBlocksPerSm)
    step_kernel(StepArguments<compute_t<T>> a) {
  using A = compute_t<T>;
  DYNPRUNE_DYNAMIC_SHARED(unsigned char, staged_rows);
  const CrossEntropyInput& in = a.in;
  const LossOptions<A> options(in);
  const A divisor = divisor_of(a);
  const int member = threadIdx.x % kTeam;
  const int64_t row = row_of_team<kTeam>();
  const bool exists = row < in.batch_size;
  RowTarget<A> y;
  y.kind = RowKind::kIgnored;
  if (exists) y = RowTarget<A>(in, row);
  const bool scored = y.kind == RowKind::kScored;
  const T* x = static_cast<const T*>(in.logits) + (scored ? row * in.row_stride : 0);
  const int64_t classes = scored ? in.num_classes : 0;
  // As far past a 16-byte boundary as the row itself, so that vectors stay vectors.
  T* staged = reinterpret_cast<T*>(staged_rows + threadIdx.x / kTeam * a.staged_bytes) +
              elements_past_boundary(x);
  RowSums<A> sums = RowSums<A>::none();
  const auto stage = [&](int64_t c, const auto& value) {
    if (!a.staged) return;
    if constexpr (sizeof(value) == 16 && sizeof(T) < 16) {
      *reinterpret_cast<uint4*>(staged + c) = value.raw();
    } else {
      staged[c] = value;
    }
  };
  add_row<kTeam>(x, classes, member, y.first, options, &sums, stage);
  team_merge<kTeam>(&sums, options.label_smoothing > 0);

  // In a block, thread 0 alone knows the sums; what the others need goes through shared memory.
  RowResult<A> result{};
  A scale = 0;
  if (scored && (kTeam <= kWarpSize || member == 0)) {
    result = finish_row(sums.stats, static_cast<A>(widen(x[y.first])));
  }
  if (exists && member == 0) {
    const A x_second = y.second >= 0 && scored ? static_cast<A>(widen(x[y.second])) : A{0};
    scale = write_scores(a, row, y, sums, result, x_second, divisor);
  }
  SavedRow<A> saved{result.max, result.log_normaliser, result.miss, sums.weight};
  if constexpr (kTeam > kWarpSize) {
    DYNPRUNE_SHARED(SavedRow<A>, shared_saved, );
    DYNPRUNE_SHARED(A, shared_scale, );
    if (member == 0) {
      shared_saved = saved;
      shared_scale = scale;
    }
    __syncthreads();  // the staged row too
    saved = shared_saved;
    scale = shared_scale;
  } else {
    scale = __shfl_sync(kFullWarp, scale, 0, kTeam);
    __syncwarp();
  }
  if (exists && a.grad_logits != nullptr) {
    T* out = static_cast<T*>(a.grad_logits) + row * in.num_classes;
    if (!scored || scale == 0) {
      write_zeros<kTeam>(out, in.num_classes, member);
    } else {
      const RowGradient<A> gradient(options, saved, y, in.num_classes, scale);
      write_gradient<kTeam>(a.staged ? static_cast<const T*>(staged) : x, out, in.num_classes,
                            member, gradient);
    }
  }
  if (a.finish_here && last_block_here(a.ticket)) {
    finish_batch(a, divisor);
    if (threadIdx.x == 0) *a.ticket = 0;
  }
}

// partials[block]: sums of the rows' mean weights, or of their weighted losses.
template <class A>
__global__ void __launch_bounds__(kThreads)
    partial_sums_kernel(CrossEntropyInput in, const A* terms, A* partials) {
  const int64_t each = (in.batch_size + gridDim.x - 1) / gridDim.x;
  const int64_t first = blockIdx.x * each;
  const int64_t n =
      first < in.batch_size ? (each < in.batch_size - first ? each : in.batch_size - first) : 0;
  const A sum = block_sum<A>(n, [&](int64_t i) {
    return terms != nullptr ? terms[first + i] : mean_weight_of<A>(in, first + i);
  });
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

template <class A>
__global__ void __launch_bounds__(kThreads) loss_kernel(StepArguments<A> a, int64_t num_partials) {
  const A divisor = divisor_of(a);
  write_loss(a, block_sum<A>(num_partials, [&](int64_t i) { return a.work.loss_partials[i]; }),
             divisor);
}

template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(T* grad_logits, int64_t rows, int64_t classes, const compute_t<T>* grad_loss,
                 int64_t grad_loss_stride, const compute_t<T>* grad_scale) {
  using A = compute_t<T>;
  const int64_t row = row_of_team<kTeam>();
  if (row >= rows) return;
  A factor = grad_loss[row * grad_loss_stride];
  if (grad_scale != nullptr) factor /= *grad_scale;
  if (factor == 1) return;
  T* out = grad_logits + row * classes;
  write_row<kTeam>(
      out, classes, threadIdx.x % kTeam,
      [&](int64_t c) { return narrow<T>(widen(out[c]) * factor); },
      [&](int64_t c) {
        Vector<T> v = Vector<T>::from(*reinterpret_cast<const uint4*>(out + c));
#pragma unroll
        for (int k = 0; k < Vector<T>::kSize; k++) v.v[k] = narrow<T>(widen(v.v[k]) * factor);
        return v;
      });
}

template <class T, int kTeam>
cudaError_t launch_step(StepArguments<compute_t<T>> a, cudaStream_t stream) {
  using A = compute_t<T>;
  const int64_t rows = a.in.batch_size;
  const unsigned blocks = rows == 0 ? 1 : blocks_for(rows, kTeam);
  const unsigned partials = static_cast<unsigned>(
      rows / kThreads < kMaxPartialSums ? rows / kThreads + 1 : kMaxPartialSums);
  a.finish_here = rows <= kMaxRowsPerLaunch;
  if (a.reduction == Reduction::kMean && blocks * rows > kMaxTargetsRead) {
    a.num_mean_partials = partials;
    DYNPRUNE_LAUNCH((partial_sums_kernel<A>), partials, kThreads, 0, stream, a.in,
                    static_cast<const A*>(nullptr), a.work.mean_partials);
  }
  // 16 bytes for where the row begins after a boundary.
  a.staged_bytes = (a.in.num_classes * static_cast<int64_t>(sizeof(T)) + 31) / 16 * 16;
  int64_t bytes = a.staged_bytes * (kThreads / kTeam);
  a.staged = a.grad_logits != nullptr && bytes <= kMaxStagedBytes;
  if (!a.staged) a.staged_bytes = bytes = 0;
  if (bytes > kBytesWithoutOptIn) {
    // Always the same allowance: it belongs to the kernel, and another thread may be launching it.
    const cudaError_t error = DYNPRUNE_ALLOW_SHARED((step_kernel<T, kTeam>), kMaxStagedBytes);
    if (error != cudaSuccess) return error;
  }
  DYNPRUNE_LAUNCH((step_kernel<T, kTeam>), blocks, kThreads, static_cast<size_t>(bytes), stream, a);
  if (a.finish_here) return cudaGetLastError();
  if (a.reduction != Reduction::kNone) {
    DYNPRUNE_LAUNCH((partial_sums_kernel<A>), partials, kThreads, 0, stream, a.in,
                    static_cast<const A*>(a.work.weighted), a.work.loss_partials);
    DYNPRUNE_LAUNCH((loss_kernel<A>), 1, kThreads, 0, stream, a, int64_t{partials});
  }
  ScoreUpdate update = a.update;
  update.sample_ids = a.work.row_ids;
  return launch_update_scores(update, a.work.slots, a.errors, stream);
}

}  // namespace

size_t scored_cross_entropy_step_workspace_bytes(const CrossEntropyInput& in) {
  const auto bytes = [&](auto compute) {
    const Workspace<decltype(compute)> work(nullptr, in.batch_size);
    return reinterpret_cast<size_t>(work.values) +
           (static_cast<size_t>(in.batch_size) * sizeof(float) + 15) / 16 * 16;
  };
  return in.type == ScalarType::kFloat64 ? bytes(double{}) : bytes(float{});
}

cudaError_t launch_scored_cross_entropy_step(const CrossEntropyInput& in,
                                             const CrossEntropyOutput& output,
                                             const CrossEntropyStep& step,
                                             const ScoreUpdate& update, void* workspace,
                                             unsigned* ticket, ErrorRecord* errors,
                                             cudaStream_t stream) {
  return dispatch(in.type, [&](auto tag) {
    return with_team(in.num_classes, [&](auto team) {
      using T = decltype(tag);
      using A = compute_t<T>;
      const Workspace<A> work(workspace, in.batch_size);
      StepArguments<A> a{in,
                         Outputs<A>(output),
                         static_cast<const A*>(step.sample_weight),
                         static_cast<const A*>(step.grad_scale),
                         step.reduction,
                         step.score,
                         static_cast<A*>(step.loss),
                         static_cast<A*>(step.row_scale),
                         step.grad_logits,
                         update,
                         work,
                         num_slots(in.batch_size),
                         /*num_mean_partials=*/0,
                         /*finish_here=*/false,
                         /*staged=*/false,
                         /*staged_bytes=*/0,
                         ticket,
                         errors};
      a.update.values = work.values;
      return launch_step<T, decltype(team)::value>(a, stream);
    });
  });
}

cudaError_t launch_scale_gradient(void* grad_logits, ScalarType type, int64_t rows, int64_t classes,
                                  const void* grad_loss, int64_t grad_loss_stride,
                                  const void* grad_scale, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return dispatch(type, [&](auto tag) {
    return with_team(classes, [&](auto team) {
      using T = decltype(tag);
      using A = compute_t<T>;
      constexpr int kTeam = decltype(team)::value;
      DYNPRUNE_LAUNCH((scale_kernel<T, kTeam>), blocks_for(rows, kTeam), kThreads, 0, stream,
                      static_cast<T*>(grad_logits), rows, classes, static_cast<const A*>(grad_loss),
                      grad_loss_stride, static_cast<const A*>(grad_scale));
      return cudaGetLastError();
    });
  });
}

}  // namespace cuda
}  // namespace dynprune
