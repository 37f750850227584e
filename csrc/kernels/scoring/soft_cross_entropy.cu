// SPDX-License-Identifier: Apache-2.0
// 8 lanes, a warp or a block per row, by the number of classes. No sum depends on timing.
#include "kernels/scoring/soft_cross_entropy.h"

#include "kernels/scoring/soft_plan.cuh"

namespace dynprune {
namespace cuda {
namespace {

// Left to itself, ptxas aims at more resident blocks than the registers allow, and spills.
constexpr int kForwardBlocks = 2;
constexpr int kBackwardBlocks = 2;

template <class Row>
__global__ void __launch_bounds__(kThreads, kForwardBlocks)
    soft_forward_kernel(CrossEntropyInput in, SoftTarget target, Outputs<typename Row::A> out,
                        int64_t staged_bytes) {
  using A = typename Row::A;
  DYNPRUNE_DYNAMIC_SHARED(unsigned char, staged_rows);
  const Row row(in, target, staged_rows, staged_bytes);
  const SoftScores<A> scores = score_soft_row(row, SoftWeights<A>(in), A{0}, nullptr);
  if (row.leads()) out.write(row.index, scores.result.nll, scores.result, scores.sum_weight);
}

template <class Row>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    soft_backward_kernel(CrossEntropyInput in, SoftTarget target, const typename Row::A* grad_loss,
                         int64_t grad_loss_stride, const SavedRow<typename Row::A>* saved,
                         typename Row::Element* grad_logits) {
  using A = typename Row::A;
  const Row row(in, target, nullptr, 0);
  if (!row.exists) return;
  const A scale = grad_loss[row.index * grad_loss_stride];
  const SoftRow<A> slopes(SoftWeights<A>(in), saved[row.index], scale);
  row.write_gradient(slopes, grad_logits + row.index * in.num_classes);
}

}  // namespace

cudaError_t launch_soft_cross_entropy(const CrossEntropyInput& in, const SoftTarget& target,
                                      const CrossEntropyOutput& o, cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return with_soft_rows(in, target, [&](auto policy) {
    using Row = typename decltype(policy)::type;
    const Outputs<typename Row::A> out(o);
    const SoftPlan plan = SoftPlan::of<Row>(in);
    if (plan.needs_allowance()) {
      const cudaError_t error = DYNPRUNE_ALLOW_SHARED((soft_forward_kernel<Row>));
      if (error != cudaSuccess) return error;
    }
    DYNPRUNE_LAUNCH((soft_forward_kernel<Row>), plan.blocks, kThreads,
                    static_cast<size_t>(plan.block_bytes), stream, in, target, out, plan.row_bytes);
    return cudaGetLastError();
  });
}

cudaError_t launch_soft_cross_entropy_backward(const CrossEntropyInput& in,
                                               const SoftTarget& target,
                                               const CrossEntropyGradient& g, cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return with_soft_rows(in, target, [&](auto policy) {
    using Row = typename decltype(policy)::type;
    using A = typename Row::A;
    DYNPRUNE_LAUNCH((soft_backward_kernel<Row>), blocks_for(in.batch_size, kThreads / Row::kRows),
                    kThreads, 0, stream, in, target, static_cast<const A*>(g.grad_loss),
                    g.grad_loss_stride, static_cast<const SavedRow<A>*>(g.saved),
                    static_cast<typename Row::Element*>(g.grad_logits));
    return cudaGetLastError();
  });
}

}  // namespace cuda
}  // namespace dynprune
