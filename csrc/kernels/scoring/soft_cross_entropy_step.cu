// SPDX-License-Identifier: Apache-2.0
// The step with probabilities as targets. A team looks twice at its row, which it keeps in shared
// memory: what a mean divides by is known before the launch. The last block to finish sums the
// losses and updates the table, or launches of their own do, with too many rows. A row that no
// block's shared memory holds is read again. No sum depends on timing.
#include "kernels/scoring/soft_cross_entropy.h"
#include "kernels/scoring/soft_plan.cuh"
#include "kernels/scoring/step_finish.cuh"

namespace dynprune {
namespace cuda {
namespace {

// Left to itself, ptxas aims at more resident blocks than the registers allow, and spills.
constexpr int kSoftStepBlocks = 2;

// As write_scores.
template <class A>
__device__ __forceinline__ TableEntry write_soft_scores(const StepTask<A>& task, int64_t row,
                                                        const SoftScores<A>& scores, A divisor) {
  const A loss = scores.result.nll, weight = weight_of(task, row);
  // A row of weight 0 is how these targets say "ignore": its loss may be infinite or NaN.
  const A weighted = weight != 0 ? weight * loss : A{0};
  task.out.write(row, loss, scores.result, scores.sum_weight);
  task.row_weight[row] = weight / divisor;
  task.work.weighted[row] = weighted;
  if (task.reduction == Reduction::kNone) task.loss[row] = weighted;
  const TableEntry entry{table_value(task.score, loss, scores.result), scores.result.margin > 0,
                         true};
  write_entry(task, row, entry);
  return entry;
}

template <class Row>
__global__ void __launch_bounds__(kThreads, kSoftStepBlocks)
    soft_step_kernel(StepTask<typename Row::A> task, SoftTarget target) {
  using A = typename Row::A;
  using T = typename Row::Element;
  DYNPRUNE_DYNAMIC_SHARED(unsigned char, staged_rows);
  const A divisor = divisor_of_all_rows(task);
  const Row row(task.in, target, staged_rows, task.staged_bytes);
  T* out = nullptr;
  A scale = 0;
  if (row.exists && task.grad_logits != nullptr) {
    out = static_cast<T*>(task.grad_logits) + row.index * task.in.num_classes;
    scale = gradient_scale(task, row.index, divisor);
  }
  const SoftScores<A> scores = score_soft_row(row, SoftWeights<A>(task.in), scale, out);
  TableEntry entry{};
  if (row.leads()) entry = write_soft_scores(task, row.index, scores, divisor);
  add_entries(task, row, entry);
  finish_in_last_block(task, divisor);
}

}  // namespace

size_t soft_cross_entropy_step_workspace_bytes(const CrossEntropyInput& in, int64_t max_ids) {
  const auto bytes = [&](auto compute) {
    return Workspace<decltype(compute)>(nullptr, in, max_ids).bytes;
  };
  return in.type == ScalarType::kFloat64 ? bytes(double{}) : bytes(float{});
}

cudaError_t launch_soft_cross_entropy_step(const CrossEntropyInput& in, const SoftTarget& target,
                                           const CrossEntropyOutput& output,
                                           const CrossEntropyStep& step, const ScoreUpdate& update,
                                           void* workspace, unsigned* ticket, ErrorRecord* errors,
                                           cudaStream_t stream) {
  return with_soft_rows(in, target, [&](auto policy) {
    using Row = typename decltype(policy)::type;
    using A = typename Row::A;
    StepTask<A> task = step_task<A>(in, output, step, update, workspace, ticket, errors);
    task.finish_here = in.batch_size <= kMaxRowsPerLaunch;
    const SoftPlan plan = SoftPlan::of<Row>(in);
    task.staged_bytes = plan.row_bytes;
    if (plan.needs_allowance()) {
      const cudaError_t error = DYNPRUNE_ALLOW_SHARED((soft_step_kernel<Row>));
      if (error != cudaSuccess) return error;
    }
    const cudaError_t error = launch_clear(task, stream);
    if (error != cudaSuccess) return error;
    DYNPRUNE_LAUNCH((soft_step_kernel<Row>), plan.blocks, kThreads,
                    static_cast<size_t>(plan.block_bytes), stream, task, target);
    if (task.finish_here) return cudaGetLastError();
    return launch_finish(task, num_partials(in.batch_size), stream);
  });
}

}  // namespace cuda
}  // namespace dynprune
