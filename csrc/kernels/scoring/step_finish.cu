// SPDX-License-Identifier: Apache-2.0
#include "kernels/scoring/step_finish.cuh"

#include "kernels/scoring/update_scores.h"

namespace dynprune {
namespace cuda {
namespace {

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
__global__ void __launch_bounds__(kThreads) loss_kernel(StepTask<A> task, int64_t num_partials) {
  const A divisor = divisor_of(task);
  write_loss(task,
             block_sum<A>(num_partials, [&](int64_t i) { return task.work.loss_partials[i]; }),
             divisor);
}

}  // namespace

template <class A>
cudaError_t launch_clear(const StepTask<A>& task, cudaStream_t stream) {
  if (task.finish_here) return cudaSuccess;
  const UpdateMemory& memory = task.work.update;
  char* const slots = reinterpret_cast<char*>(memory.slots);
  char* const begin = task.work.parts != nullptr ? reinterpret_cast<char*>(task.work.parts) : slots;
  const auto bytes = static_cast<size_t>(slots - begin) + memory.bytes_to_clear;
  return cudaMemsetAsync(begin, 0, bytes, stream);
}

template <class A>
cudaError_t launch_mean_partials(const StepTask<A>& task, unsigned partials, cudaStream_t stream) {
  DYNPRUNE_LAUNCH((partial_sums_kernel<A>), partials, kThreads, 0, stream, task.in,
                  static_cast<const A*>(nullptr), task.work.mean_partials);
  return cudaGetLastError();
}

template <class A>
cudaError_t launch_finish(const StepTask<A>& task, unsigned partials, cudaStream_t stream) {
  if (task.reduction != Reduction::kNone) {
    DYNPRUNE_LAUNCH((partial_sums_kernel<A>), partials, kThreads, 0, stream, task.in,
                    static_cast<const A*>(task.work.weighted), task.work.loss_partials);
    DYNPRUNE_LAUNCH((loss_kernel<A>), 1, kThreads, 0, stream, task, int64_t{partials});
  }
  ScoreUpdate update = task.update;
  if (task.work.parts != nullptr) {
    update.batch_size = update.max_ids;
  } else {
    update.sample_ids = task.work.row_ids;
  }
  return launch_parts(update, task.work.parts, task.work.update, task.errors, stream);
}

template cudaError_t launch_clear(const StepTask<float>&, cudaStream_t);
template cudaError_t launch_clear(const StepTask<double>&, cudaStream_t);
template cudaError_t launch_mean_partials(const StepTask<float>&, unsigned, cudaStream_t);
template cudaError_t launch_mean_partials(const StepTask<double>&, unsigned, cudaStream_t);
template cudaError_t launch_finish(const StepTask<float>&, unsigned, cudaStream_t);
template cudaError_t launch_finish(const StepTask<double>&, unsigned, cudaStream_t);

}  // namespace cuda
}  // namespace dynprune
