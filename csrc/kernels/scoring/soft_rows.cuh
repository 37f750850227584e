// SPDX-License-Identifier: Apache-2.0
// Rows with probabilities as targets (shared/soft_row.h), each shared by a team of threads as in
// logit_rows.cuh. A team looks twice at its row: first for the sums, then, when the softmax is
// known, for EL2N and the gradient. A thread sees the same classes both times, so that it can keep
// their vectors for itself, in shared memory where the row fits.
#pragma once

#include "kernels/scoring/soft_sums.cuh"

namespace dynprune {
namespace cuda {

// T: type of the logits; U: of the probabilities.
template <class T, class U, int kTeam>
class SoftTeamRow {
 public:
  using Element = T;
  using Probability = U;
  using A = compute_t<T>;
  static constexpr int kRows = kThreads / kTeam;  // of a block
  static constexpr int kSize = Vector<T>::kSize;
  static constexpr int kWords = kSize * sizeof(U) / 16;  // of the probabilities beside a vector
  static constexpr int kAhead = sizeof(A) == 4 ? 2 : 1;  // vectors of one turn of a loop

  // Shared memory that a row takes: as many vectors for each thread, with their probabilities.
  static int64_t row_bytes(int64_t classes) {
    return (classes / kSize + kTeam - 1) / kTeam * kTeam * (1 + kWords) * 16;
  }

  const int member;  // of the team
  const int64_t index;
  const bool exists;  // a team behind the last row takes part in reductions only

  // staged_rows: staged_bytes for each team of the block. With 0, the row is read again.
  __device__ __forceinline__ SoftTeamRow(const CrossEntropyInput& in, const SoftTarget& target,
                                         unsigned char* staged_rows, int64_t staged_bytes)
      : member(threadIdx.x % kTeam),
        index(row_of_team<kTeam>()),
        exists(index < in.batch_size),
        x_(static_cast<const T*>(in.logits) + (exists ? in.row_offset(index) : 0)),
        t_(static_cast<const U*>(target.data) + (exists ? index * target.row_stride : 0)),
        classes_(exists ? in.num_classes : 0),
        split_(x_, classes_, member),
        in_vectors_(elements_past_boundary(t_ + split_.head) == 0),
        staged_(staged_bytes > 0
                    ? reinterpret_cast<uint4*>(staged_rows + threadIdx.x / kTeam * staged_bytes) +
                          member
                    : nullptr) {}

  __device__ __forceinline__ bool leads() const { return exists && member == 0; }

  // The sums of the row: in all members of a small team or a warp, else in thread 0 of the block.
  // All threads of the block call.
  __device__ __forceinline__ SoftSums<A> sums(const SoftWeights<A>& weights) const {
    SoftSums<A> sums = weights.class_weight != nullptr ? add<true>(weights) : add<false>(weights);
    constexpr int kLanes = kTeam < kWarpSize ? kTeam : kWarpSize;
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) merge(&sums, shuffled(sums, d));
    if constexpr (kTeam > kWarpSize) {
      DYNPRUNE_SHARED(SoftSums<A>, by_warp, [kThreads / kWarpSize]);
      if (threadIdx.x % kWarpSize == 0) by_warp[threadIdx.x / kWarpSize] = sums;
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int w = 1; w < kThreads / kWarpSize; w++) merge(&sums, by_warp[w]);
      }
    }
    return sums;
  }

  __device__ __forceinline__ RowResult<A> finish(SoftSums<A>* sums) const {
    return finish_soft_row(sums, sums->y < 0 ? A{0} : static_cast<A>(widen(x_[sums->y])));
  }

  // What the team's first member passes. All threads of the block call.
  __device__ __forceinline__ SavedRow<A> share(const SavedRow<A>& saved) const {
    if constexpr (kTeam > kWarpSize) {
      DYNPRUNE_SHARED(SavedRow<A>, shared_saved, );
      if (member == 0) shared_saved = saved;
      __syncthreads();
      return shared_saved;
    } else {
      const int leader = static_cast<int>(threadIdx.x) % kWarpSize - member;
      return {__shfl_sync(kFullWarp, saved.max, leader),
              __shfl_sync(kFullWarp, saved.log_normaliser, leader),
              __shfl_sync(kFullWarp, saved.miss, leader),
              __shfl_sync(kFullWarp, saved.sum_weight, leader)};
    }
  }

  // The second look. Returns this thread's part of EL2N squared; writes its part of the gradient to
  // the row `out` unless that is null.
  __device__ __forceinline__ A look(const SoftRow<A>& row, T* out) const {
    if (out == nullptr) return look<false, false>(row, out);
    if (row.scale == 0) {
      write_zeros<kTeam>(out, classes_, member);
      return look<false, false>(row, out);
    }
    return row.weights.class_weight != nullptr ? look<true, true>(row, out)
                                               : look<true, false>(row, out);
  }
  // The gradient alone. With scale 0 the row is not read.
  __device__ __forceinline__ void write_gradient(const SoftRow<A>& row, T* out) const {
    if (row.scale == 0) {
      write_zeros<kTeam>(out, classes_, member);
    } else if (row.weights.class_weight != nullptr) {
      look<true, true>(row, out);
    } else {
      look<true, false>(row, out);
    }
  }

  // The sum of the parts, in the team's first member. All threads of the block call.
  __device__ __forceinline__ A total(A part) const {
    constexpr int kLanes = kTeam < kWarpSize ? kTeam : kWarpSize;
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) part += __shfl_xor_sync(kFullWarp, part, d);
    if constexpr (kTeam > kWarpSize) {
      DYNPRUNE_SHARED(A, by_warp, [kThreads / kWarpSize]);
      if (threadIdx.x % kWarpSize == 0) by_warp[threadIdx.x / kWarpSize] = part;
      __syncthreads();
      if (threadIdx.x == 0) {
        for (int w = 1; w < kThreads / kWarpSize; w++) part += by_warp[w];
      }
    }
    return part;
  }

 private:
  // A vector of logits and the probabilities of its classes, as they are in memory.
  struct Loaded {
    uint4 x;
    uint4 t[kWords];

    __device__ __forceinline__ void widen_to(A* logits, A* probabilities) const {
      Vector<T>::from(x).widen_to(logits);
      U raw[kSize];
      memcpy(raw, t, sizeof(raw));
#pragma unroll
      for (int k = 0; k < kSize; k++) probabilities[k] = widen(raw[k]);
    }
  };

  // This member's vector i from global memory.
  __device__ __forceinline__ Loaded load(int i) const {
    Loaded loaded;
    const int64_t c = split_.element(i);
    loaded.x = __ldg(reinterpret_cast<const uint4*>(x_ + c));
    if (in_vectors_) {
#pragma unroll
      for (int w = 0; w < kWords; w++) {
        loaded.t[w] = __ldg(reinterpret_cast<const uint4*>(t_ + c) + w);
      }
    } else {
      U raw[kSize];
#pragma unroll
      for (int k = 0; k < kSize; k++) raw[k] = t_[c + k];
      memcpy(loaded.t, raw, sizeof(raw));
    }
    return loaded;
  }
  __device__ __forceinline__ uint4* place(int i) const {
    return staged_ + int64_t{i} * kTeam * (1 + kWords);
  }
  __device__ __forceinline__ void keep(int i, const Loaded& loaded) const {
    uint4* to = place(i);
    *to = loaded.x;
#pragma unroll
    for (int w = 0; w < kWords; w++) to[(w + 1) * kTeam] = loaded.t[w];
  }
  // The same vector again.
  __device__ __forceinline__ Loaded again(int i) const {
    if (staged_ == nullptr) return load(i);
    Loaded loaded;
    const uint4* from = place(i);
    loaded.x = *from;
#pragma unroll
    for (int w = 0; w < kWords; w++) loaded.t[w] = from[(w + 1) * kTeam];
    return loaded;
  }

  template <bool kWeighted>
  __device__ __forceinline__ SoftSums<A> add(const SoftWeights<A>& weights) const {
    SoftSums<A> sums = no_soft_sums<A>();
    const auto one = [&](int64_t c) {
      A x = widen(x_[c]);
      const A t = widen(t_[c]);
      add_soft<1, kWeighted>(&sums, c, &x, &t, weights);
    };
    if (member < split_.head) one(member);
    for (int i = 0; i < split_.mine; i += kAhead) {
      Loaded loaded[kAhead];
#pragma unroll
      for (int u = 0; u < kAhead; u++) {
        if (i + u < split_.mine) loaded[u] = load(i + u);
      }
#pragma unroll
      for (int u = 0; u < kAhead; u++) {
        if (i + u >= split_.mine) break;
        if (staged_ != nullptr) keep(i + u, loaded[u]);
        A x[kSize], t[kSize];
        loaded[u].widen_to(x, t);
        add_soft<kSize, kWeighted>(&sums, split_.element(i + u), x, t, weights);
      }
    }
    if (split_.tail + member < classes_) one(split_.tail + member);
    return sums;
  }

  template <bool kGradient, bool kWeighted>
  __device__ __forceinline__ A look(const SoftRow<A>& row, T* out) const {
    const A shift = row.log_normaliser * static_cast<A>(kLog2E);
    A squares = 0;
    // Returns the gradient.
    const auto see = [&](int64_t c, A x, A t) {
      A p;
      if constexpr (sizeof(A) == 8) {
        p = exp_of(x - row.max - row.log_normaliser);
      } else {
        p = exp2_approx(fmaf(x - row.max, kLog2E, -shift));
      }
      const bool greatest = x == row.max;
      const A error = row.error(greatest, p, t);
      squares = fma(error, error, squares);
      return kGradient ? row.template gradient<kWeighted>(greatest, c, p, t) : A{0};
    };
    // Through a variable: the emulator's compiler does not record the store of what a call returns.
    const auto one = [&](int64_t c) {
      const T single = narrow<T>(see(c, widen(x_[c]), widen(t_[c])));
      if constexpr (kGradient) out[c] = single;
    };
    if (member < split_.head) one(member);
    const bool same_alignment = kGradient && elements_past_boundary(out + split_.head) == 0;
    for (int i = 0; i < split_.mine; i++) {
      const int64_t c = split_.element(i);
      A x[kSize], t[kSize];
      again(i).widen_to(x, t);
#pragma unroll
      for (int k = 0; k < kSize; k++) x[k] = see(c + k, x[k], t[k]);
      if constexpr (kGradient) {
        const Vector<T> narrowed = Vector<T>::narrowed(x);
        if (same_alignment) {
          __stcg(reinterpret_cast<uint4*>(out + c), narrowed.raw());
        } else {
#pragma unroll
          for (int k = 0; k < kSize; k++) out[c + k] = narrowed.v[k];
        }
      }
    }
    if (split_.tail + member < classes_) one(split_.tail + member);
    return squares;
  }

  const T* const x_;
  const U* const t_;
  const int64_t classes_;  // to read: a row that does not exist has none
  const RowSplit<kTeam, T> split_;
  const bool in_vectors_;  // whether the probabilities beside a vector are whole vectors
  uint4* const staged_;    // of this thread: [vectors][1 + kWords][kTeam]
};

// All scores of a row but EL2N, which member 0 of its team has after look() and total().
template <class A>
struct SoftScores {
  RowResult<A> result;
  A sum_weight;
};

// Both looks at a row. scale: of its gradient; out: of its gradient, or null. All threads call.
template <class Row>
__device__ __forceinline__ SoftScores<typename Row::A> score_soft_row(
    const Row& row, const SoftWeights<typename Row::A>& weights, typename Row::A scale,
    typename Row::Element* out) {
  using A = typename Row::A;
  SoftSums<A> sums = row.sums(weights);
  SoftScores<A> scores{};
  if (row.leads()) {
    scores.result = row.finish(&sums);
    scores.sum_weight = sums.weight;
  }
  const RowResult<A>& result = scores.result;
  const SavedRow<A> saved =
      row.share({result.max, result.log_normaliser, result.miss, scores.sum_weight});
  const A squares = row.total(row.look(SoftRow<A>(weights, saved, scale), out));
  scores.result.el2n = sqrt_of(squares);
  return scores;
}

// Calls f with the policy of the rows, as Tag<Row>.
template <class Row>
struct SoftTag {
  using type = Row;
};
template <class F>
auto with_soft_rows(const CrossEntropyInput& in, const SoftTarget& target, F&& f) {
  return dispatch(in.type, [&](auto logit) {
    using T = decltype(logit);
    return with_team(in.num_classes, [&](auto team) {
      constexpr int kTeam = decltype(team)::value;
      if (target.type == in.type) return f(SoftTag<SoftTeamRow<T, T, kTeam>>{});
      return f(SoftTag<SoftTeamRow<T, compute_t<T>, kTeam>>{});
    });
  });
}

}  // namespace cuda
}  // namespace dynprune
