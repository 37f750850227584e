// SPDX-License-Identifier: Apache-2.0
// The row's team reads it once, into shared memory, and writes the gradient from there. A row that
// no block's shared memory holds is shared by several blocks (step_wide.cuh); where they cannot
// meet, or no gradient is wanted, by one block, which reads it again. The last block to finish sums
// the losses and updates the table, since only then are all rows known. What a mean divides by
// every block adds up for itself from the targets: waiting for other blocks could deadlock, and
// scaling afterwards would read and write the gradient again. With too many rows for that, the sums
// are made by launches of their own, and so is the update. No sum depends on timing.
#include "kernels/scoring/scored_cross_entropy_step.h"

#include "kernels/scoring/step_task.cuh"
#include "kernels/scoring/step_wide.cuh"
#include "kernels/scoring/update_scores.h"

namespace dynprune {
namespace cuda {
namespace {

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
  const bool keep = a.staged_bytes > 0;
  add_row<kTeam>(x, 0, classes, member, y.first, options, &sums, [&](int64_t c, const auto& value) {
    if (keep) stage(staged + c, value);
  });
  team_merge<kTeam>(&sums, options.label_smoothing > 0);

  // In a block, thread 0 alone knows the sums; what the others need goes through shared memory.
  RowResult<A> result{};
  if (scored && (kTeam <= kWarpSize || member == 0)) {
    result = finish_row(sums.stats, static_cast<A>(widen(x[y.first])));
  }
  if (exists && member == 0) {
    const A x_second = y.second >= 0 && scored ? static_cast<A>(widen(x[y.second])) : A{0};
    write_scores(a, row, y, sums, result, x_second, divisor);
  }
  SavedRow<A> saved{result.max, result.log_normaliser, result.miss, sums.weight};
  if constexpr (kTeam > kWarpSize) {
    DYNPRUNE_SHARED(SavedRow<A>, shared_saved, );
    if (member == 0) shared_saved = saved;
    __syncthreads();  // the staged row too
    saved = shared_saved;
  } else {
    __syncwarp();
  }
  if (exists && a.grad_logits != nullptr) {
    T* out = static_cast<T*>(a.grad_logits) + row * in.num_classes;
    const A scale = scored ? gradient_scale(a, row, divisor) : A{0};
    if (scale == 0) {
      write_zeros<kTeam>(out, in.num_classes, member);
    } else {
      const RowGradient<A> gradient(options, saved, y, in.num_classes, scale);
      write_gradient<kTeam>(keep ? static_cast<const T*>(staged) : x, out, 0, in.num_classes,
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
cudaError_t launch_by_row(const StepArguments<compute_t<T>>& a, unsigned blocks,
                          cudaStream_t stream, int64_t block_bytes) {
  const int64_t bytes = a.staged_bytes * (kThreads / kTeam);
  if (bytes > kBytesWithoutOptIn) {
    // Always the same allowance: it belongs to the kernel, and another thread may be launching it.
    const int64_t most = block_bytes < kMaxStagedBytes ? block_bytes : kMaxStagedBytes;
    const cudaError_t error = DYNPRUNE_ALLOW_SHARED((step_kernel<T, kTeam>), most);
    if (error != cudaSuccess) return error;
  }
  DYNPRUNE_LAUNCH((step_kernel<T, kTeam>), blocks, kThreads, static_cast<size_t>(bytes), stream, a);
  return cudaGetLastError();
}

template <class T, int kTeam>
cudaError_t launch_step(StepArguments<compute_t<T>> a, cudaStream_t stream) {
  using A = compute_t<T>;
  const int64_t rows = a.in.batch_size;
  const unsigned blocks = rows == 0 ? 1 : blocks_for(rows, kTeam);
  const unsigned partials = static_cast<unsigned>(
      rows / kThreads < kMaxPartialSums ? rows / kThreads + 1 : kMaxPartialSums);
  a.finish_here = rows <= kMaxRowsPerLaunch;
  const int64_t block_bytes = static_cast<int64_t>(shared_memory_limit()) - kStaticBytes;
  // 16 bytes for where the row begins after a boundary.
  const int64_t row_bytes = (a.in.num_classes * static_cast<int64_t>(sizeof(T)) + 31) / 16 * 16;
  const int64_t bytes = row_bytes * (kThreads / kTeam);
  const bool fits = bytes <= kMaxStagedBytes && bytes <= block_bytes;
  const bool wide = !fits && may_be_wide(a.in) && a.grad_logits != nullptr && rows > 0;
  a.staged_bytes = fits && a.grad_logits != nullptr ? row_bytes : 0;
  // The few blocks that share long rows may read all targets.
  const bool many = wide ? !a.finish_here : blocks * rows > kMaxTargetsRead;
  if (a.reduction == Reduction::kMean && many) {
    a.num_mean_partials = partials;
    DYNPRUNE_LAUNCH((partial_sums_kernel<A>), partials, kThreads, 0, stream, a.in,
                    static_cast<const A*>(nullptr), a.work.mean_partials);
  }
  bool launched = false;
  if constexpr (kTeam == kThreads && !std::is_same<T, double>::value) {
    launched = wide && launch_wide<T>(a, block_bytes, stream);
  }
  const cudaError_t error =
      launched ? cudaSuccess : launch_by_row<T, kTeam>(a, blocks, stream, block_bytes);
  if (error != cudaSuccess) return error;
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
  const auto bytes = [&](auto compute) { return Workspace<decltype(compute)>(nullptr, in).bytes; };
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
      const Workspace<A> work(workspace, in);
      StepArguments<A> a{in,
                         Outputs<A>(output),
                         static_cast<const A*>(step.sample_weight),
                         static_cast<const A*>(step.grad_scale),
                         step.reduction,
                         step.score,
                         static_cast<A*>(step.loss),
                         static_cast<A*>(step.row_weight),
                         step.grad_logits,
                         update,
                         work,
                         num_slots(in.batch_size),
                         /*num_mean_partials=*/0,
                         /*finish_here=*/false,
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
