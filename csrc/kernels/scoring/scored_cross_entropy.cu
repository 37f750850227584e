// SPDX-License-Identifier: Apache-2.0
// A row gets 8 lanes, a warp or a block, by the number of classes. A row whose classes lie apart
// gets a lane of one or of 8 warps. Forward reads a row once and writes 4 numbers, a flag and 4
// saved numbers. Backward reads it once more and writes the gradient once. No sum depends on
// timing.
#include "kernels/scoring/scored_cross_entropy.h"

#include "kernels/scoring/column_rows.cuh"
#include "kernels/scoring/row_policy.cuh"

namespace dynprune {
namespace cuda {
namespace {

constexpr int kBackwardBlocksPerSm = 4;

template <class Row>
__global__ void __launch_bounds__(kThreads, Row::kForwardBlocksPerSm)
    forward_kernel(CrossEntropyInput in, Outputs<typename Row::A> out, ErrorRecord* errors) {
  using A = typename Row::A;
  const LossOptions<A> options(in);
  const Row row(in, /*grad_logits=*/nullptr);
  RowSums<A> sums = row.load(options);
  row.reduce(&sums, options.label_smoothing > 0);
  if (!row.leads() || !row.exists) return;
  const RowTarget<A>& y = row.target;
  if (!row.scored()) {
    out.write_skipped(row.index, y, errors);
    return;
  }
  const RowResult<A> result = finish_row(sums.stats, row.logit(y.first));
  const A x_second = y.second >= 0 ? row.logit(y.second) : A{0};
  const A loss = row_loss(options, y, result, x_second, in.num_classes, sums.weight, sums.distance);
  out.write(row.index, loss, result, sums.weight);
}

template <class Row>
__global__ void __launch_bounds__(kThreads, kBackwardBlocksPerSm)
    backward_kernel(CrossEntropyInput in, const typename Row::A* grad_loss,
                    int64_t grad_loss_stride, const SavedRow<typename Row::A>* saved,
                    typename Row::Element* grad_logits) {
  using A = typename Row::A;
  const Row row(in, grad_logits);
  if (!row.exists) return;
  const A scale = grad_loss[row.index * grad_loss_stride];
  if (!row.scored() || scale == 0) {  // the logits need not be read
    row.write_zeros();
    return;
  }
  row.write_gradient(
      RowGradient<A>(LossOptions<A>(in), saved[row.index], row.target, in.num_classes, scale));
}

// Calls f with the policy of the rows, as Tag<Row>, and the number of blocks.
template <class Row>
struct Tag {
  using type = Row;
};
template <class T, class F>
cudaError_t with_rows(const CrossEntropyInput& in, F&& f) {
  if (in.in_columns()) {
    return with_members(in.num_classes, [&](auto members) {
      using Row = ColumnRow<T, decltype(members)::value>;
      return f(Tag<Row>{}, blocks_for(in.batch_size, kThreads / Row::kRows));
    });
  }
  return with_team(in.num_classes, [&](auto team) {
    constexpr int kTeam = decltype(team)::value;
    return f(Tag<TeamRow<T, kTeam>>{}, blocks_for(in.batch_size, kTeam));
  });
}

}  // namespace

cudaError_t launch_scored_cross_entropy(const CrossEntropyInput& in, const CrossEntropyOutput& o,
                                        ErrorRecord* errors, cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    return with_rows<T>(in, [&](auto policy, unsigned blocks) {
      using Row = typename decltype(policy)::type;
      const Outputs<compute_t<T>> out(o);
      DYNPRUNE_LAUNCH((forward_kernel<Row>), blocks, kThreads, 0, stream, in, out, errors);
      return cudaGetLastError();
    });
  });
}

cudaError_t launch_scored_cross_entropy_backward(const CrossEntropyInput& in,
                                                 const CrossEntropyGradient& g,
                                                 cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    return with_rows<T>(in, [&](auto policy, unsigned blocks) {
      using Row = typename decltype(policy)::type;
      DYNPRUNE_LAUNCH((backward_kernel<Row>), blocks, kThreads, 0, stream, in,
                      static_cast<const A*>(g.grad_loss), g.grad_loss_stride,
                      static_cast<const SavedRow<A>*>(g.saved), static_cast<T*>(g.grad_logits));
      return cudaGetLastError();
    });
  });
}

}  // namespace cuda
}  // namespace dynprune
