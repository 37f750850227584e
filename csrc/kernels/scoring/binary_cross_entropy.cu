// SPDX-License-Identifier: Apache-2.0
// 8 lanes, a warp or a block per row, by the number of labels. A row's factor in the reduced loss
// is known before it is read: a mean divides by the number of rows. So loss, scores and gradient
// take one read of logits and targets and one write. The last block sums the losses and updates the
// table, as in scored_cross_entropy_step.cu. No sum depends on timing.
#include "kernels/scoring/binary_cross_entropy.h"

#include "kernels/scoring/binary_rows.cuh"
#include "kernels/scoring/step_finish.cuh"

namespace dynprune {
namespace cuda {
namespace {

// Left to itself, ptxas aims at more resident blocks than the registers allow, and spills.
constexpr int kLabelBlocksPerSm = 2;

// The arguments of the kernels. `step` has no logits and targets of its own: `in.batch_size`, and
// all that the end of a batch reads.
template <class A>
struct BinaryTask {
  BinaryInput in;
  StepTask<A> step;
  bool has_table;  // whether this is a step; else only step.out is written
};

// Derivative of the sum of the step's loss by the row's.
template <class A>
__device__ A row_weight_of(const BinaryTask<A>& task, int64_t row, A divisor) {
  return weight_of(task.step, row) * rows_factor<A>(task.in, task.step.reduction) / divisor;
}

// By one thread.
template <class A>
__device__ void write_row(const BinaryTask<A>& task, int64_t row, const BinarySums<A>& sums,
                          A divisor) {
  const StepTask<A>& step = task.step;
  TargetPair skipped{};
  skipped.kind = sums.kind();
  const bool scored = skipped.kind == RowKind::kScored;
  RowResult<A> result{};
  if (scored) {
    result = finish_binary_row(sums, task.in.num_labels);
    step.out.write(row, result.nll, result, 0);
  } else {
    if (skipped.kind == RowKind::kOutOfRange) {
      record_error(step.errors, DataError::kProbability,
                   bit_cast<long long>(static_cast<double>(sums.outside)));
      const A v = Limits<A>::nan();
      step.out.write(row, v, {v, v, v, v, v, v, v}, v);
    } else {
      step.out.write(row, 0, result, 0);
      step.out.correct[row] = false;
    }
  }
  if (!task.has_table) return;
  const A weight = scored ? row_weight_of(task, row, divisor) : A{0};
  // Before the division by what finish_batch divides by. The loss of a row of weight 0 is not
  // looked at: it may be infinite.
  const A weighted = weight != 0 ? weight * divisor * result.nll : A{0};
  step.row_weight[row] = weight;
  step.work.weighted[row] = weighted;
  if (step.reduction == Reduction::kNone) step.loss[row] = weighted;
  write_entry(step, row, {table_value(step.score, result.nll, result), false, scored});
}

template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads, kLabelBlocksPerSm)
    binary_step_kernel(BinaryTask<compute_t<T>> task) {
  using A = compute_t<T>;
  const int64_t row = row_of_team<kTeam>(), labels = task.in.num_labels;
  const bool exists = row < task.in.batch_size;
  T* out = nullptr;
  A scale = 0;
  const A divisor = divisor_of_all_rows(task.step);
  if (exists && task.step.grad_logits != nullptr) {
    out = static_cast<T*>(task.step.grad_logits) + row * labels;
    scale = row_weight_of(task, row, divisor) / static_cast<A>(labels);
    if (task.step.grad_scale != nullptr) scale *= *task.step.grad_scale;
  }
  BinarySums<A> sums = BinarySums<A>::none();
  const LabelRow<T, kTeam> labels_of_row(task.in, exists ? row : 0, out);
  if (exists) sums = labels_of_row.run(scale);
  merge_labels<kTeam>(&sums);
  if (exists) {
    if (out != nullptr && sums.kind() == RowKind::kOutOfRange) labels_of_row.write_zeros();
    if (threadIdx.x % kTeam == 0) write_row(task, row, sums, divisor);
  }
  if (task.has_table) finish_in_last_block(task.step, divisor);
}

template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads, kLabelBlocksPerSm)
    binary_backward_kernel(BinaryInput in, const compute_t<T>* grad_loss, int64_t grad_loss_stride,
                           T* grad_logits) {
  using A = compute_t<T>;
  const int64_t row = row_of_team<kTeam>();
  const bool exists = row < in.batch_size;
  BinarySums<A> sums = BinarySums<A>::none();
  const LabelRow<T, kTeam> labels_of_row(in, exists ? row : 0,
                                         grad_logits + (exists ? row : 0) * in.num_labels);
  if (exists) {
    sums = labels_of_row.run(grad_loss[row * grad_loss_stride] / static_cast<A>(in.num_labels));
  }
  merge_labels<kTeam>(&sums);
  if (exists && sums.kind() == RowKind::kOutOfRange) labels_of_row.write_zeros();
}

// What of a step's arguments and workspace does not depend on the loss.
CrossEntropyInput rows_of(const BinaryInput& in) {
  CrossEntropyInput rows{};
  rows.type = in.type;
  rows.batch_size = rows.group_rows = in.batch_size;
  return rows;
}

template <class T>
cudaError_t launch(const BinaryTask<compute_t<T>>& task, cudaStream_t stream) {
  return with_label_team(task.in.num_labels, [&](auto team) {
    constexpr int kTeam = decltype(team)::value;
    const int64_t rows = task.in.batch_size;
    // A batch without rows has a loss, too.
    DYNPRUNE_LAUNCH((binary_step_kernel<T, kTeam>), rows == 0 ? 1 : blocks_for(rows, kTeam),
                    kThreads, 0, stream, task);
    return cudaGetLastError();
  });
}

}  // namespace

cudaError_t launch_scored_binary_cross_entropy(const BinaryInput& in,
                                               const CrossEntropyOutput& output,
                                               ErrorRecord* errors, cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    CrossEntropyStep losses{};
    losses.reduction = Reduction::kNone;
    const StepTask<A> step = step_task<A>(rows_of(in), output, losses, ScoreUpdate{},
                                          /*workspace=*/nullptr, /*ticket=*/nullptr, errors);
    return launch<T>({in, step, /*has_table=*/false}, stream);
  });
}

cudaError_t launch_scored_binary_cross_entropy_backward(const BinaryInput& in,
                                                        const BinaryGradient& g,
                                                        cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return dispatch(in.type, [&](auto tag) {
    return with_label_team(in.num_labels, [&](auto team) {
      using T = decltype(tag);
      constexpr int kTeam = decltype(team)::value;
      DYNPRUNE_LAUNCH((binary_backward_kernel<T, kTeam>), blocks_for(in.batch_size, kTeam),
                      kThreads, 0, stream, in, static_cast<const compute_t<T>*>(g.grad_loss),
                      g.grad_loss_stride, static_cast<T*>(g.grad_logits));
      return cudaGetLastError();
    });
  });
}

size_t scored_binary_cross_entropy_step_workspace_bytes(const BinaryInput& in) {
  const auto bytes = [&](auto compute) {
    using A = decltype(compute);
    return Workspace<A>(nullptr, rows_of(in), in.batch_size).bytes;
  };
  return in.type == ScalarType::kFloat64 ? bytes(double{}) : bytes(float{});
}

cudaError_t launch_scored_binary_cross_entropy_step(const BinaryInput& in,
                                                    const CrossEntropyOutput& output,
                                                    const CrossEntropyStep& step,
                                                    const ScoreUpdate& update, void* workspace,
                                                    unsigned* ticket, ErrorRecord* errors,
                                                    cudaStream_t stream) {
  return dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    StepTask<A> task = step_task<A>(rows_of(in), output, step, update, workspace, ticket, errors);
    task.finish_here = in.batch_size <= kMaxRowsPerLaunch;
    // Each row has an id: rows are not added up within the step.
    cudaError_t error = launch_clear(task, stream);
    if (error == cudaSuccess) error = launch<T>({in, task, /*has_table=*/true}, stream);
    if (error != cudaSuccess || task.finish_here) return error;
    return launch_finish(task, num_partials(in.batch_size), stream);
  });
}

}  // namespace cuda
}  // namespace dynprune
