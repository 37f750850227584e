// SPDX-License-Identifier: Apache-2.0
// Sums over all rows of a step, and its end, by launches of their own: where the rows are too many
// for the last block.
#pragma once

#include "kernels/scoring/step_task.cuh"

namespace dynprune {
namespace cuda {

// Blocks of a sum over all rows.
inline unsigned num_partials(int64_t rows) {
  return static_cast<unsigned>(rows / kThreads < kMaxPartialSums ? rows / kThreads + 1
                                                                 : kMaxPartialSums);
}

// Clears, before a step that its last block does not finish, what its rows are added to.
template <class A>
cudaError_t launch_clear(const StepTask<A>& task, cudaStream_t stream);

// task.work.mean_partials[block]: sums of the rows' weights in a mean. A: float or double.
template <class A>
cudaError_t launch_mean_partials(const StepTask<A>& task, unsigned partials, cudaStream_t stream);

// The reduced loss and the update of the table, where the last block does not finish the batch.
template <class A>
cudaError_t launch_finish(const StepTask<A>& task, unsigned partials, cudaStream_t stream);

}  // namespace cuda
}  // namespace dynprune
