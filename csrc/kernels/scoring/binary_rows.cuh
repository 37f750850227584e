// SPDX-License-Identifier: Apache-2.0
// A row of labels and the team of threads that shares it. The slope of a label's loss needs no
// other label, so that one pass reads logits and targets and writes the gradient.
#pragma once

#include "kernels/scoring/logit_rows.cuh"
#include "shared/binary_row.h"

namespace dynprune {
namespace cuda {

constexpr int64_t kMaxLabelsPerSmallTeam = 128;
constexpr int64_t kMaxLabelsPerWarp = 2048;
// Vectors of logits that a thread loads at once, with their targets.
template <class T>
constexpr int kLabelVectors = sizeof(T) == 8 ? 1 : 2;

// Calls f with the team size for a number of labels, as a constant.
template <class F>
auto with_label_team(int64_t labels, F&& f) {
  if (labels <= kMaxLabelsPerSmallTeam) return f(std::integral_constant<int, kSmallTeam>{});
  if (labels <= kMaxLabelsPerWarp) return f(std::integral_constant<int, kWarpSize>{});
  return f(std::integral_constant<int, kThreads>{});
}

// The widest word that kBytes consist of.
template <int kBytes>
struct Word {
  using type = uint4;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<2> {
  using type = unsigned short;
};

// The targets of a row, of any type: a switch per vector, not a kernel for each of five types.
template <class A, int kSize>
struct RowTargets {
  const void* data;
  LabelType type;
  bool aligned;  // vectors of targets are words

  // first: the label that the vectors of logits begin with.
  __device__ __forceinline__ RowTargets(const BinaryInput& in, int64_t row, int64_t first)
      : type(in.target_type) {
    const int size = type == LabelType::kBool      ? 1
                     : type == LabelType::kFloat64 ? 8
                     : type == LabelType::kFloat32 ? 4
                                                   : 2;
    data = static_cast<const char*>(in.target) + row * in.target_stride * size;
    const int bytes = size * kSize;
    aligned = (reinterpret_cast<uintptr_t>(data) + first * size) % (bytes < 16 ? bytes : 16) == 0;
  }

  __device__ __forceinline__ A at(int64_t label) const {
    A t;
    with_type([&](auto tag) { t = static_cast<A>(widen(pointer(tag)[label])); });
    return t;
  }
  // Those of kVectors vectors from `label` on, `apart` labels from each other; zeros behind the
  // first `exist` vectors.
  template <int kVectors>
  __device__ __forceinline__ void load(int64_t label, int64_t apart, int exist, A* t) const {
    with_type([&](auto tag) {
      using S = decltype(tag);
#pragma unroll
      for (int u = 0; u < kVectors; u++) {
        const S* from = pointer(tag) + label + u * apart;
        S v[kSize] = {};
        if (u < exist && aligned) {
          using W = typename Word<(kSize * sizeof(S) < 16 ? kSize * sizeof(S) : 16)>::type;
          constexpr int kWords = kSize * sizeof(S) / sizeof(W);
          W words[kWords];
#pragma unroll
          for (int i = 0; i < kWords; i++) words[i] = __ldg(reinterpret_cast<const W*>(from) + i);
          memcpy(v, words, sizeof(v));
        } else if (u < exist) {
#pragma unroll
          for (int k = 0; k < kSize; k++) v[k] = from[k];
        }
#pragma unroll
        for (int k = 0; k < kSize; k++) t[u * kSize + k] = static_cast<A>(widen(v[k]));
      }
    });
  }

 private:
  template <class S>
  __device__ __forceinline__ const S* pointer(S) const {
    return static_cast<const S*>(data);
  }
  template <class F>
  __device__ __forceinline__ void with_type(const F& f) const {
    if (type == LabelType::kFloat32) {
      f(float{});
    } else if (type == LabelType::kBool) {
      f(uint8_t{});
    } else if (type == LabelType::kBFloat16) {
      f(BFloat16{});
    } else if (type == LabelType::kFloat16) {
      f(Half{});
    } else {
      f(double{});
    }
  }
};

__device__ __forceinline__ float minus_magnitude(float x) { return -fabsf(x); }
__device__ __forceinline__ double minus_magnitude(double x) { return -fabs(x); }
__device__ __forceinline__ float decay_of(float below) { return exp2_approx(below * kLog2E); }
__device__ __forceinline__ double decay_of(double below) { return exp_of(below); }

// A thread's view of a row of labels that kTeam threads of a block share.
template <class T, int kTeam>
class LabelRow {
 public:
  using A = compute_t<T>;
  static constexpr int kSize = Vector<T>::kSize;

  // out: the row's gradient, or null.
  __device__ __forceinline__ LabelRow(const BinaryInput& in, int64_t row, T* out)
      : in_(in),
        labels_(in.num_labels),
        x_(static_cast<const T*>(in.logits) + row * in.row_stride),
        out_(out),
        weight_(in.label_weight == nullptr
                    ? nullptr
                    : static_cast<const A*>(in.label_weight) + row * in.label_weight_stride),
        pos_weight_(static_cast<const A*>(in.pos_weight)),
        split_(x_, labels_, threadIdx.x % kTeam),
        targets_(in, row, split_.head),
        same_alignment_(elements_past_boundary(x_) == elements_past_boundary(out)) {}

  // Writes `scale` times this thread's slopes, and returns its sums. With a scale of 0 the slopes
  // are 0, also of a broken row.
  __device__ __forceinline__ BinarySums<A> run(A scale) const {
    BinarySums<A> sums = BinarySums<A>::none();
    constexpr bool kOneForBoth = sizeof(A) == 8;  // float64 is not for speed
    if (kOneForBoth || weight_ != nullptr || pos_weight_ != nullptr) {
      run<true>(scale, &sums);
    } else {
      sums.counts = true;
      run<false>(scale, &sums);
    }
    return sums;
  }

  // Over what this thread wrote.
  __device__ __forceinline__ void write_zeros() const {
    const T zero = narrow<T>(A{0});
    if (split_.member < split_.head) out_[split_.member] = zero;
    for (int i = 0; i < split_.mine; i++) {
      for (int k = 0; k < kSize; k++) out_[split_.element(i) + k] = zero;
    }
    if (split_.tail + split_.member < labels_) out_[split_.tail + split_.member] = zero;
  }

 private:
  // Adds one label, and returns its slope.
  template <bool kWeighted>
  __device__ __forceinline__ A add(A x, A t, int64_t label, A scale, BinarySums<A>* sums) const {
    A w = 1, v = 1;
    if constexpr (kWeighted) {
      if (weight_ != nullptr) w = weight_[label];
      if (pos_weight_ != nullptr) v = pos_weight_[label];
      if (w == 0) {
        x = -Limits<A>::infinity();
        t = 0;
      } else {
        sums->counts = true;
      }
    }
    DecayTerms<A> decay;
    decay.below = minus_magnitude(x);
    set_terms_of_decay(decay_of(decay.below), &decay);
    const BinaryTerms<A> terms = BinaryTerms<A>::template of<kWeighted>(x, t, decay, w, v);
    sums->loss += terms.loss;
    sums->squares += terms.square;
    sums->entropy += terms.entropy;
    sums->margin = terms.margin < sums->margin ? terms.margin : sums->margin;
    sums->outside = is_probability(t) ? sums->outside : t;
    return scale != 0 ? scale * terms.slope : 0;
  }

  template <bool kWeighted>
  __device__ __forceinline__ void add_single(int64_t label, A scale, BinarySums<A>* sums) const {
    const A slope =
        add<kWeighted>(static_cast<A>(widen(x_[label])), targets_.at(label), label, scale, sums);
    // Through a variable: the emulator's compiler does not record the store of what a call returns.
    const T single = narrow<T>(slope);
    if (out_ != nullptr) out_[label] = single;
  }

  template <bool kWeighted>
  __device__ __forceinline__ void run(A scale, BinarySums<A>* sums) const {
    constexpr int kVectors = kLabelVectors<T>;
    if (split_.member < split_.head) add_single<kWeighted>(split_.member, scale, sums);
    for (int i = 0; i < split_.mine; i += kVectors) {
      const int exist = split_.mine - i < kVectors ? split_.mine - i : kVectors;
      uint4 loaded[kVectors];
      A t[kVectors * kSize];
#pragma unroll
      for (int u = 0; u < kVectors; u++) {
        loaded[u] = uint4{0, 0, 0, 0};
        if (u < exist) {
          loaded[u] = __ldg(reinterpret_cast<const uint4*>(x_ + split_.element(i + u)));
        }
      }
      targets_.template load<kVectors>(split_.element(i), int64_t{kTeam} * kSize, exist, t);
#pragma unroll
      for (int u = 0; u < kVectors; u++) {
        if (u < exist)
          add_vector<kWeighted>(split_.element(i + u), loaded[u], t + u * kSize, scale, sums);
      }
    }
    const int64_t last = split_.tail + split_.member;
    if (last < labels_) add_single<kWeighted>(last, scale, sums);
  }

  template <bool kWeighted>
  __device__ __forceinline__ void add_vector(int64_t label, uint4 raw, const A* t, A scale,
                                             BinarySums<A>* sums) const {
    A x[kSize];
    Vector<T>::from(raw).widen_to(x);
#pragma unroll
    for (int k = 0; k < kSize; k++) x[k] = add<kWeighted>(x[k], t[k], label + k, scale, sums);
    if (out_ == nullptr) return;
    const Vector<T> slopes = Vector<T>::narrowed(x);
    if (same_alignment_) {
      __stcg(reinterpret_cast<uint4*>(out_ + label), slopes.raw());
    } else {
#pragma unroll
      for (int k = 0; k < kSize; k++) out_[label + k] = slopes.v[k];
    }
  }

  const BinaryInput& in_;
  const int64_t labels_;
  const T* const x_;
  T* const out_;
  const A *const weight_, *const pos_weight_;
  const RowSplit<kTeam, T> split_;
  const RowTargets<A, kSize> targets_;
  const bool same_alignment_;
};

// Every thread of a team ends with the sums of its row. All threads of the block must call.
template <int kTeam, class A>
__device__ __forceinline__ void merge_labels(BinarySums<A>* sums) {
  constexpr int kLanes = kTeam < kWarpSize ? kTeam : kWarpSize;
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) {
    BinarySums<A> other;
    other.loss = __shfl_xor_sync(kFullWarp, sums->loss, d);
    other.squares = __shfl_xor_sync(kFullWarp, sums->squares, d);
    other.entropy = __shfl_xor_sync(kFullWarp, sums->entropy, d);
    other.margin = __shfl_xor_sync(kFullWarp, sums->margin, d);
    other.outside = __shfl_xor_sync(kFullWarp, sums->outside, d);
    other.counts = __shfl_xor_sync(kFullWarp, sums->counts ? 1 : 0, d) != 0;
    sums->merge(other);
  }
  if constexpr (kTeam > kWarpSize) {
    DYNPRUNE_SHARED(BinarySums<A>, by_warp, [kThreads / kWarpSize]);
    if (threadIdx.x % kWarpSize == 0) by_warp[threadIdx.x / kWarpSize] = *sums;
    __syncthreads();
    *sums = by_warp[0];
    for (int w = 1; w < kThreads / kWarpSize; w++) sums->merge(by_warp[w]);
  }
}

}  // namespace cuda
}  // namespace dynprune
