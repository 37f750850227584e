// SPDX-License-Identifier: Apache-2.0
// Rows whose classes lie apart in memory and whose neighbours are neighbours, such as pixels. The
// lanes of a warp read one class of neighbouring rows together. See row_policy.cuh.
#pragma once

#include "kernels/scoring/logit_rows.cuh"

namespace dynprune {
namespace cuda {

constexpr int kColumnMembers = 8;             // threads that share a row of many classes
constexpr int64_t kMaxClassesPerMember = 64;  // that one thread alone reads
// At least what the kernels of these rows declare.
constexpr int64_t kColumnStaticBytes = 16 * 1024;

// Calls f with the number of threads that share a row, as a constant.
template <class F>
auto with_members(int64_t classes, F&& f) {
  if (classes <= kMaxClassesPerMember) return f(std::integral_constant<int, 1>{});
  return f(std::integral_constant<int, kColumnMembers>{});
}

// A thread's view of a row that kMembers threads of a block share: member m reads the classes m,
// m + kMembers, ... Keeps the row in shared memory, unless staged_bytes is 0.
template <class T, int kMembers>
class ColumnRow {
 public:
  using Element = T;
  using A = compute_t<T>;
  static constexpr int kRows = kThreads / kMembers;  // of a block
  static constexpr int kForwardBlocksPerSm = 3;
  static constexpr int kStepBlocksPerSm = 2;

  const int member;
  const int64_t index;
  const bool exists;
  const bool has_gradient;
  RowTarget<A> target;

  __device__ __forceinline__ ColumnRow(const CrossEntropyInput& in, T* grad_logits,
                                       unsigned char* staged_rows = nullptr,
                                       int64_t staged_bytes = 0)
      : member(threadIdx.x / kRows),
        index(int64_t{blockIdx.x} * kRows + threadIdx.x % kRows),
        exists(index < in.batch_size),
        has_gradient(exists && grad_logits != nullptr),
        in_(in),
        keeps_(staged_bytes > 0),
        staged_(reinterpret_cast<T*>(staged_rows) + threadIdx.x % kRows) {
    target.kind = RowKind::kIgnored;
    if (exists) target = RowTarget<A>(in, index);
    x_ = static_cast<const T*>(in.logits) + (exists ? in.row_offset(index) : 0);
    out_ = has_gradient ? grad_logits + in.gradient_offset(index) : nullptr;
  }

  __device__ __forceinline__ bool scored() const { return target.kind == RowKind::kScored; }
  __device__ __forceinline__ bool leads() const { return member == 0; }
  __device__ __forceinline__ bool has_sums() const { return member == 0; }
  __device__ __forceinline__ A logit(int64_t c) const { return widen(x_[c * in_.class_stride]); }

  __device__ __forceinline__ RowSums<A> load(const LossOptions<A>& options) const {
    constexpr int kAtOnce = sizeof(A) == 4 ? 8 : 2;
    RowSums<A> sums = RowSums<A>::none();
    if (!scored()) return sums;
    const bool smooth = options.label_smoothing > 0;
    const A x_y = smooth ? logit(target.first) : A{0};
    for (int64_t begin = member; begin < in_.num_classes; begin += kAtOnce * kMembers) {
      T raw[kAtOnce];
      A v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; k++) {
        const int64_t c = begin + k * kMembers;
        raw[k] = c < in_.num_classes ? x_[c * in_.class_stride] : narrow<T>(A{0});
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; k++) {
        const int64_t c = begin + k * kMembers;
        const bool exists = c < in_.num_classes;
        const A x = widen(raw[k]);
        if (keeps_ && exists) staged_[c * kRows] = raw[k];
        if (smooth && exists) {
          const A w = options.weight_of(c);
          sums.weight += w;
          sums.distance += w * (x - x_y);
        }
        v[k] = exists && c != target.first ? x : -Limits<A>::infinity();
      }
      add_all<kAtOnce>(&sums.stats, v);
    }
    return sums;
  }

  // Member 0 ends with the sums of its row, added in the order of the members.
  __device__ __forceinline__ void reduce(RowSums<A>* sums, bool) const {
    if constexpr (kMembers > 1) {
      DYNPRUNE_SHARED(RowSums<A>, by_member, [kThreads]);
      by_member[threadIdx.x] = *sums;
      __syncthreads();
      if (member == 0) {
        for (int m = 1; m < kMembers; m++) sums->merge(by_member[m * kRows + threadIdx.x]);
      }
    }
  }
  __device__ __forceinline__ void exchange(RowSums<A>*, bool) const {}
  __device__ __forceinline__ SavedRow<A> share(const SavedRow<A>& saved) const {
    if constexpr (kMembers > 1) {
      DYNPRUNE_SHARED(SavedRow<A>, shared_saved, [kRows]);
      if (member == 0) shared_saved[threadIdx.x] = saved;
      __syncthreads();
      return shared_saved[threadIdx.x % kRows];
    } else {
      return saved;
    }
  }

  __device__ __forceinline__ void write_gradient(const RowGradient<A>& gradient) const {
    if (gradient.uniform_weight != 0 && gradient.class_weight != nullptr) {
      write_gradient<true>(gradient);
    } else {
      write_gradient<false>(gradient);
    }
  }
  __device__ __forceinline__ void write_zeros() const {
    const T zero = narrow<T>(A{0});
    const int64_t stride = in_.gradient_class_stride();
    for (int64_t c = member; c < in_.num_classes; c += kMembers) out_[c * stride] = zero;
  }

 private:
  template <bool kWeighted>
  __device__ __forceinline__ void write_gradient(const RowGradient<A>& gradient) const {
    const OtherClasses<A, kWeighted> others(gradient);
    const int64_t stride = in_.gradient_class_stride();
    for (int64_t c = member; c < in_.num_classes; c += kMembers) {
      A g = keeps_ ? static_cast<A>(widen(staged_[c * kRows])) : logit(c);
      others.template replace<1>(c, &g);
      if (sizeof(A) == 4) {
        if (c == gradient.first) g = gradient.at_first();
        if (c == gradient.second) g -= gradient.second_weight;
      }
      // Through a variable: the emulator's compiler does not record the store of what a call
      // returns.
      const T single = narrow<T>(g);
      out_[c * stride] = single;
    }
  }

  const CrossEntropyInput& in_;
  const bool keeps_;
  T* const staged_;  // [C, kRows], of which this thread's column
  const T* x_;
  T* out_;
};

}  // namespace cuda
}  // namespace dynprune
