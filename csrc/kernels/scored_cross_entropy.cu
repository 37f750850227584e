// SPDX-License-Identifier: Apache-2.0
// One warp per row up to 1024 classes, one block per row above. Forward reads a row once and writes
// 4 numbers, a flag and 4 saved numbers; backward reads it once more and writes the gradient once.
// No sum depends on timing.
#include "kernels/scored_cross_entropy.h"

#include "primitives/block.h"
#include "primitives/cross_entropy_row.h"
#include "primitives/device_errors.h"

namespace dynprune {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxClassesPerWarp = 1024;
// Left to itself, ptxas aims at 32 registers for backward and spills for it on some architectures.
constexpr int kBackwardBlocksPerSm = 4;

template <class A>
struct Outputs {
  A *loss, *el2n, *entropy, *margin;
  bool* correct;
  SavedRow<A>* saved;

  __device__ void write(int64_t row, A row_loss, const RowResult<A>& r, A sum_weight) const {
    loss[row] = row_loss;
    el2n[row] = r.el2n;
    entropy[row] = r.entropy;
    margin[row] = r.margin;
    correct[row] = r.margin > 0;
    saved[row] = {r.max, r.log_normaliser, r.miss, sum_weight};
  }
};

// The sums of a row that its threads share.
template <class A>
struct RowSums {
  RowStats<A> stats;
  A weight;    // sum_j w_j
  A distance;  // sum_j w_j (x_j - x_y)

  __device__ void merge(const RowSums& other) {
    stats.merge(other.stats);
    weight += other.weight;
    distance += other.distance;
  }
};

// Every lane ends with the sums of the warp.
template <class A>
__device__ void warp_merge(RowSums<A>* sums) {
#pragma unroll
  for (int d = kWarpSize / 2; d > 0; d /= 2) {
    RowSums<A> other;
    other.stats.m = __shfl_xor_sync(kFullWarp, sums->stats.m, d);
    other.stats.s = __shfl_xor_sync(kFullWarp, sums->stats.s, d);
    other.stats.q = __shfl_xor_sync(kFullWarp, sums->stats.q, d);
    other.stats.t = __shfl_xor_sync(kFullWarp, sums->stats.t, d);
    other.weight = __shfl_xor_sync(kFullWarp, sums->weight, d);
    other.distance = __shfl_xor_sync(kFullWarp, sums->distance, d);
    sums->merge(other);
  }
}

// Thread 0 of the row's team ends with the row's sums; the team is a warp or the block.
template <int kThreadsPerRow, class A>
__device__ void team_merge(RowSums<A>* sums) {
  warp_merge(sums);
  if constexpr (kThreadsPerRow > kWarpSize) {
    DYNPRUNE_SHARED(RowSums<A>, by_warp, [kThreads / kWarpSize]);
    if (threadIdx.x % kWarpSize == 0) by_warp[threadIdx.x / kWarpSize] = *sums;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kThreads / kWarpSize; w++) sums->merge(by_warp[w]);
    }
  }
}

template <int kThreadsPerRow>
__device__ int64_t row_of_team() {
  return int64_t{blockIdx.x} * (kThreads / kThreadsPerRow) + threadIdx.x / kThreadsPerRow;
}

template <class T, int kThreadsPerRow>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* logits, int64_t rows, int64_t classes, int64_t row_stride,
                   IndexArray targets, LossOptions<compute_t<T>> options, Outputs<compute_t<T>> out,
                   ErrorRecord* errors) {
  using A = compute_t<T>;
  const int64_t row = row_of_team<kThreadsPerRow>();
  if (row >= rows) return;  // the whole team leaves
  const int64_t member = threadIdx.x % kThreadsPerRow;
  const int64_t target = targets[row];
  if (target == options.ignore_index || target < 0 || target >= classes) {
    if (member == 0) {
      const bool ignored = target == options.ignore_index;
      const A v = ignored ? A{0} : Limits<A>::nan();
      out.write(row, v, {v, v, v, v, v, v, v}, v);
      if (!ignored) record_error(errors, DataError::kTarget, target);
    }
    return;
  }
  const T* x = logits + row * row_stride;
  const A x_y = widen(x[target]);
  const bool smooth = options.label_smoothing > 0;
  RowSums<A> sums{RowStats<A>::none(), 0, 0};
  for (int64_t c = member; c < classes; c += kThreadsPerRow) {
    const A v = widen(x[c]);
    if (c != target) sums.stats.add(v);
    if (smooth) {
      const A w = options.weight_of(c);
      sums.weight += w;
      sums.distance += w * (v - x_y);
    }
  }
  team_merge<kThreadsPerRow>(&sums);
  if (member == 0) {
    const RowResult<A> result = finish_row(sums.stats, x_y);
    const A loss = row_loss(options, result.nll, target, classes, sums.weight, sums.distance);
    out.write(row, loss, result, sums.weight);
  }
}

template <class T, int kThreadsPerRow>
__global__ void __launch_bounds__(kThreads, kBackwardBlocksPerSm)
    backward_kernel(const T* logits, int64_t rows, int64_t classes, int64_t row_stride,
                    IndexArray targets, LossOptions<compute_t<T>> options,
                    const compute_t<T>* grad_loss, int64_t grad_loss_stride,
                    const SavedRow<compute_t<T>>* saved, T* grad_logits) {
  using A = compute_t<T>;
  const int64_t row = row_of_team<kThreadsPerRow>();
  if (row >= rows) return;
  const int64_t member = threadIdx.x % kThreadsPerRow;
  const int64_t target = targets[row];
  T* out = grad_logits + row * classes;
  const A scale = grad_loss[row * grad_loss_stride];
  const bool skipped = target == options.ignore_index || target < 0 || target >= classes;
  if (skipped || scale == 0) {  // the logits need not be read
    for (int64_t c = member; c < classes; c += kThreadsPerRow) out[c] = narrow<T>(A{0});
    return;
  }
  const RowGradient<A> gradient(options, saved[row], target, classes, scale);
  const T* x = logits + row * row_stride;
  for (int64_t c = member; c < classes; c += kThreadsPerRow) {
    out[c] = narrow<T>(gradient.at(c, static_cast<A>(widen(x[c]))));
  }
}

unsigned grid_for(int64_t rows, int threads_per_row) {
  const int rows_per_block = kThreads / threads_per_row;
  return static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block);
}

template <class A>
LossOptions<A> options_of(const CrossEntropyInput& in) {
  return {static_cast<const A*>(in.class_weight), static_cast<A>(in.label_smoothing),
          in.ignore_index};
}

}  // namespace

cudaError_t launch_scored_cross_entropy(const CrossEntropyInput& in, const CrossEntropyOutput& o,
                                        ErrorRecord* errors, cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const T* logits = static_cast<const T*>(in.logits);
    const Outputs<A> out{static_cast<A*>(o.loss),
                         static_cast<A*>(o.el2n),
                         static_cast<A*>(o.entropy),
                         static_cast<A*>(o.margin),
                         o.correct,
                         static_cast<SavedRow<A>*>(o.saved)};
    const LossOptions<A> options = options_of<A>(in);
    if (in.num_classes <= kMaxClassesPerWarp) {
      DYNPRUNE_LAUNCH((forward_kernel<T, kWarpSize>), grid_for(in.batch_size, kWarpSize), kThreads,
                      0, stream, logits, in.batch_size, in.num_classes, in.row_stride, in.target,
                      options, out, errors);
    } else {
      DYNPRUNE_LAUNCH((forward_kernel<T, kThreads>), grid_for(in.batch_size, kThreads), kThreads, 0,
                      stream, logits, in.batch_size, in.num_classes, in.row_stride, in.target,
                      options, out, errors);
    }
    return cudaGetLastError();
  });
}

cudaError_t launch_scored_cross_entropy_backward(const CrossEntropyInput& in,
                                                 const CrossEntropyGradient& g,
                                                 cudaStream_t stream) {
  if (in.batch_size == 0) return cudaSuccess;
  return dispatch(in.type, [&](auto tag) {
    using T = decltype(tag);
    using A = compute_t<T>;
    const T* logits = static_cast<const T*>(in.logits);
    const A* grad_loss = static_cast<const A*>(g.grad_loss);
    const SavedRow<A>* saved = static_cast<const SavedRow<A>*>(g.saved);
    T* grad_logits = static_cast<T*>(g.grad_logits);
    const LossOptions<A> options = options_of<A>(in);
    if (in.num_classes <= kMaxClassesPerWarp) {
      DYNPRUNE_LAUNCH((backward_kernel<T, kWarpSize>), grid_for(in.batch_size, kWarpSize), kThreads,
                      0, stream, logits, in.batch_size, in.num_classes, in.row_stride, in.target,
                      options, grad_loss, g.grad_loss_stride, saved, grad_logits);
    } else {
      DYNPRUNE_LAUNCH((backward_kernel<T, kThreads>), grid_for(in.batch_size, kThreads), kThreads,
                      0, stream, logits, in.batch_size, in.num_classes, in.row_stride, in.target,
                      options, grad_loss, g.grad_loss_stride, saved, grad_logits);
    }
    return cudaGetLastError();
  });
}

}  // namespace cuda
}  // namespace dynprune
