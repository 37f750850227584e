// SPDX-License-Identifier: Apache-2.0
// 8 lanes, a warp or a block per row, by the number of classes. Forward reads a row once and writes
// 4 numbers, a flag and 4 saved numbers; backward reads it once more and writes the gradient once.
// No sum depends on timing.
#include "kernels/scoring/scored_cross_entropy.h"

#include "kernels/scoring/logit_rows.cuh"

namespace dynprune {
namespace cuda {
namespace {

// Left to itself, ptxas aims at more resident blocks than the registers allow on some
// architectures, and spills.
constexpr int kForwardBlocksPerSm = 2;
constexpr int kBackwardBlocksPerSm = 3;

template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads, kForwardBlocksPerSm)
    forward_kernel(CrossEntropyInput in, Outputs<compute_t<T>> out, ErrorRecord* errors) {
  using A = compute_t<T>;
  const LossOptions<A> options(in);
  const int member = threadIdx.x % kTeam;
  const int64_t row = row_of_team<kTeam>();
  const bool exists = row < in.batch_size;
  RowTarget<A> y;
  y.kind = RowKind::kIgnored;
  if (exists) y = RowTarget<A>(in, row);
  const bool scored = y.kind == RowKind::kScored;
  const T* x = static_cast<const T*>(in.logits) + (scored ? row * in.row_stride : 0);
  RowSums<A> sums = RowSums<A>::none();
  // A row that is skipped has nothing to read, but its threads must take part in the merge.
  add_row<kTeam>(x, 0, scored ? in.num_classes : 0, member, y.first, options, &sums,
                 [](int64_t, const auto&) {});
  team_merge<kTeam>(&sums, options.label_smoothing > 0);
  if (member != 0 || !exists) return;
  if (!scored) {
    out.write_skipped(row, y, errors);
    return;
  }
  const RowResult<A> result = finish_row(sums.stats, static_cast<A>(widen(x[y.first])));
  const A x_second = y.second >= 0 ? static_cast<A>(widen(x[y.second])) : A{0};
  const A loss = row_loss(options, y, result, x_second, in.num_classes, sums.weight, sums.distance);
  out.write(row, loss, result, sums.weight);
}

template <class T, int kTeam>
__global__ void __launch_bounds__(kThreads, kBackwardBlocksPerSm)
    backward_kernel(CrossEntropyInput in, const compute_t<T>* grad_loss, int64_t grad_loss_stride,
                    const SavedRow<compute_t<T>>* saved, T* grad_logits) {
  using A = compute_t<T>;
  const int64_t row = row_of_team<kTeam>();
  if (row >= in.batch_size) return;
  const int member = threadIdx.x % kTeam;
  const RowTarget<A> y(in, row);
  T* out = grad_logits + row * in.num_classes;
  const A scale = grad_loss[row * grad_loss_stride];
  if (y.kind != RowKind::kScored || scale == 0) {  // the logits need not be read
    write_zeros<kTeam>(out, in.num_classes, member);
    return;
  }
  const RowGradient<A> gradient(LossOptions<A>(in), saved[row], y, in.num_classes, scale);
  const T* x = static_cast<const T*>(in.logits) + row * in.row_stride;
  write_gradient<kTeam>(x, out, 0, in.num_classes, member, gradient);
}

}  // namespace

cudaError_t launch_scored_cross_entropy(const CrossEntropyInput& in, const CrossEntropyOutput& o,
                                        ErrorRecord* errors, cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return dispatch(in.type, [&](auto tag) {
    return with_team(in.num_classes, [&](auto team) {
      using T = decltype(tag);
      constexpr int kTeam = decltype(team)::value;
      const Outputs<compute_t<T>> out(o);
      DYNPRUNE_LAUNCH((forward_kernel<T, kTeam>), blocks_for(in.batch_size, kTeam), kThreads, 0,
                      stream, in, out, errors);
      return cudaGetLastError();
    });
  });
}

cudaError_t launch_scored_cross_entropy_backward(const CrossEntropyInput& in,
                                                 const CrossEntropyGradient& g,
                                                 cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return dispatch(in.type, [&](auto tag) {
    return with_team(in.num_classes, [&](auto team) {
      using T = decltype(tag);
      using A = compute_t<T>;
      constexpr int kTeam = decltype(team)::value;
      DYNPRUNE_LAUNCH((backward_kernel<T, kTeam>), blocks_for(in.batch_size, kTeam), kThreads, 0,
                      stream, in, static_cast<const A*>(g.grad_loss), g.grad_loss_stride,
                      static_cast<const SavedRow<A>*>(g.saved), static_cast<T*>(g.grad_logits));
      return cudaGetLastError();
    });
  });
}

}  // namespace cuda
}  // namespace dynprune
