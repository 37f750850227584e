// SPDX-License-Identifier: Apache-2.0
// The team of a row reads it once, into shared memory, and writes the gradient from there. A row
// that no block's shared memory holds is shared by several blocks (step_wide.cuh). Where these
// cannot be resident together, or no gradient is wanted, one block reads the row again.
// The last block to finish sums the losses and updates the table: only then are all rows known.
// Every block adds up the divisor of a mean from the targets. Waiting for other blocks could
// deadlock; scaling afterwards would read and write the gradient again. With too many rows for
// that, launches of their own make the sums and the update. No sum depends on timing.
#include "kernels/scoring/scored_cross_entropy_step.h"

#include "kernels/scoring/column_rows.cuh"
#include "kernels/scoring/step_finish.cuh"
#include "kernels/scoring/step_wide.cuh"

namespace dynprune {
namespace cuda {
namespace {

template <class Row>
__global__ void __launch_bounds__(kThreads, Row::kStepBlocksPerSm)
    step_kernel(StepTask<typename Row::A> task) {
  using A = typename Row::A;
  DYNPRUNE_DYNAMIC_SHARED(unsigned char, staged_rows);
  const LossOptions<A> options(task.in);
  const A divisor = divisor_of(task);
  const Row row(task.in, static_cast<typename Row::Element*>(task.grad_logits), staged_rows,
                task.staged_bytes);
  step_row(task, options, row, divisor);
  finish_in_last_block(task, divisor);
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
  const RowSplit<kTeam, T> split(out, classes, threadIdx.x % kTeam);
  write_row(
      out, split, classes, [&](int64_t c) { return narrow<T>(widen(out[c]) * factor); },
      [&](int i) {
        A x[Vector<T>::kSize];
        Vector<T>::from(*reinterpret_cast<const uint4*>(out + split.element(i))).widen_to(x);
#pragma unroll
        for (int k = 0; k < Vector<T>::kSize; k++) x[k] *= factor;
        return Vector<T>::narrowed(x);
      });
}

// What of a step's launches depends on its size and on the device.
struct StepPlan {
  unsigned blocks;       // of step_kernel
  unsigned partials;     // of a sum over all rows that has launches of its own
  bool finish_here;      // by the last block; else by launches of their own
  bool divisor_first;    // the divisor of a mean by a launch of its own, not by every block
  bool wide;             // several blocks share a row, if the device can
  int64_t staged_bytes;  // of shared memory per row; 0: a row is read again
  int64_t block_bytes;   // of dynamic shared memory that a block may have
  int64_t static_bytes;  // of shared memory besides
};

// row_bytes: of shared memory per row; static_bytes: at least what the kernel declares.
template <class Row>
StepPlan plan_step(const StepTask<typename Row::A>& task, int64_t row_bytes, int64_t static_bytes) {
  const int64_t rows = task.in.batch_size;
  const bool with_gradient = task.grad_logits != nullptr;
  StepPlan plan{};
  plan.blocks = rows == 0 ? 1 : blocks_for(rows, kThreads / Row::kRows);
  plan.partials = num_partials(rows);
  plan.finish_here = rows <= kMaxRowsPerLaunch;
  plan.static_bytes = static_bytes;
  plan.block_bytes = static_cast<int64_t>(shared_memory_limit()) - static_bytes;
  const int64_t bytes = row_bytes * Row::kRows;
  const bool fits = bytes <= kMaxStagedBytes && bytes <= plan.block_bytes;
  plan.wide = !fits && may_be_wide(task.in) && with_gradient && rows > 0;
  plan.staged_bytes = fits && with_gradient ? row_bytes : 0;
  plan.divisor_first =
      task.reduction == Reduction::kMean && task.divisor == nullptr && !plan.finish_here;
  return plan;
}

template <class Row>
cudaError_t launch_by_row(const StepTask<typename Row::A>& task, const StepPlan& plan,
                          cudaStream_t stream) {
  const int64_t bytes = plan.staged_bytes * Row::kRows;
  if (bytes > kStaticBytes + kBytesWithoutOptIn - plan.static_bytes) {
    const cudaError_t error = DYNPRUNE_ALLOW_SHARED((step_kernel<Row>));
    if (error != cudaSuccess) return error;
  }
  DYNPRUNE_LAUNCH((step_kernel<Row>), plan.blocks, kThreads, static_cast<size_t>(bytes), stream,
                  task);
  return cudaGetLastError();
}

// launch: of the kernel that reads the logits, with the task as it is planned.
template <class A, class Launch>
cudaError_t launch_planned(StepTask<A> task, const StepPlan& plan, cudaStream_t stream,
                           const Launch& launch) {
  task.finish_here = plan.finish_here;
  task.staged_bytes = plan.staged_bytes;
  cudaError_t error = launch_clear(task, stream);
  if (error == cudaSuccess && plan.divisor_first) {
    task.num_mean_partials = plan.partials;
    error = launch_mean_partials(task, plan.partials, stream);
  }
  if (error == cudaSuccess) error = launch(task);
  if (error != cudaSuccess) return error;
  return plan.finish_here ? cudaGetLastError() : launch_finish(task, plan.partials, stream);
}

template <class T, int kTeam>
cudaError_t launch_step(const StepTask<compute_t<T>>& task, cudaStream_t stream) {
  using Row = StagedTeamRow<T, kTeam>;
  // 16 bytes for where the row begins after a boundary.
  const int64_t row_bytes = (task.in.num_classes * static_cast<int64_t>(sizeof(T)) + 31) / 16 * 16;
  const StepPlan plan = plan_step<Row>(task, row_bytes, kStaticBytes);
  return launch_planned(task, plan, stream, [&](const StepTask<compute_t<T>>& planned) {
    if constexpr (kTeam == kThreads && !std::is_same<T, double>::value) {
      if (plan.wide && launch_wide<T>(planned, plan.block_bytes, stream)) return cudaSuccess;
    }
    return launch_by_row<Row>(planned, plan, stream);
  });
}

// Of rows whose classes lie apart.
template <class T, int kMembers>
cudaError_t launch_columns(const StepTask<compute_t<T>>& task, cudaStream_t stream) {
  using Row = ColumnRow<T, kMembers>;
  StepPlan plan = plan_step<Row>(task, task.in.num_classes * static_cast<int64_t>(sizeof(T)),
                                 kColumnStaticBytes);
  return launch_planned(task, plan, stream, [&](const StepTask<compute_t<T>>& planned) {
    return launch_by_row<Row>(planned, plan, stream);
  });
}

}  // namespace

size_t scored_cross_entropy_step_workspace_bytes(const CrossEntropyInput& in, int64_t max_ids) {
  const auto bytes = [&](auto compute) {
    return Workspace<decltype(compute)>(nullptr, in, max_ids).bytes;
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
    using T = decltype(tag);
    using A = compute_t<T>;
    const StepTask<A> task = step_task<A>(in, output, step, update, workspace, ticket, errors);
    if (in.in_columns()) {
      return with_members(in.num_classes, [&](auto members) {
        return launch_columns<T, decltype(members)::value>(task, stream);
      });
    }
    return with_team(in.num_classes, [&](auto team) {
      return launch_step<T, decltype(team)::value>(task, stream);
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
