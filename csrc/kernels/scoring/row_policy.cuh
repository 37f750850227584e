// SPDX-License-Identifier: Apache-2.0
// How threads share a row of logits: the policy that the cross-entropy kernels take as a template
// parameter. A policy is one thread's view of a row. Its members:
//   index, target, scored()   the row, its target, and whether it has a loss
//   exists         false behind the last row, where a team takes part in reductions only
//   has_gradient   whether the gradient is wanted
//   logit(c)       read from global memory
//   has_sums()     whether this thread holds the row's sums after exchange()
//   leads()        whether this thread writes the row's scores
// Its operations, in the order of a step. All threads of the row call them together:
//   load           returns the sums of this thread's logits; may keep the logits in shared memory
//   reduce         adds up the sums of the threads that share the row within a block
//   exchange       adds up the sums of the blocks that share the row
//   share          returns to all threads what a thread with has_sums() passes
//   write_gradient, write_zeros   write this thread's part of the gradient
// Its constants kForwardBlocksPerSm and kStepBlocksPerSm are the resident blocks that these kernels
// aim at. Left to itself, ptxas aims at more than the registers allow on some architectures, and
// spills.
// TeamRow and StagedTeamRow: a row within a block. SlicedRow (step_wide.cuh): a row of many blocks.
// ColumnRow (column_rows.cuh): a row whose classes lie apart.
#pragma once

#include "kernels/scoring/logit_rows.cuh"

namespace dynprune {
namespace cuda {

// A row that kTeam threads of a block share. Its logits are read from global memory each time. For
// the ops that compute loss and gradient apart: no share().
template <class T, int kTeam>
class TeamRow {
 public:
  using Element = T;
  using A = compute_t<T>;
  static constexpr int kRows = kThreads / kTeam;  // of a block
  static constexpr int kForwardBlocksPerSm = std::is_same<T, float>::value ? 4 : 3;

  const int member;  // this thread's place in the team
  const int64_t index;
  const bool exists;  // a team behind the last row takes part in reductions only
  const bool has_gradient;
  RowTarget<A> target;

  // grad_logits: [B, C], or null.
  __device__ __forceinline__ TeamRow(const CrossEntropyInput& in, T* grad_logits)
      : member(threadIdx.x % kTeam),
        index(row_of_team<kTeam>()),
        exists(index < in.batch_size),
        has_gradient(exists && grad_logits != nullptr),
        in_(in),
        num_classes_(in.num_classes),
        grad_logits_(grad_logits) {
    target.kind = RowKind::kIgnored;
    if (exists) target = RowTarget<A>(in, index);
    x_ = static_cast<const T*>(in.logits) + (scored() ? in.row_offset(index) : 0);
    classes_ = scored() ? num_classes_ : 0;
  }

  __device__ __forceinline__ bool scored() const { return target.kind == RowKind::kScored; }
  __device__ __forceinline__ bool leads() const { return member == 0; }
  // In a block, thread 0 alone holds them.
  __device__ __forceinline__ bool has_sums() const { return kTeam <= kWarpSize || member == 0; }
  __device__ __forceinline__ A logit(int64_t c) const { return widen(x_[c]); }

  __device__ __forceinline__ RowSums<A> load(const LossOptions<A>& options) const {
    return load(options, [](int64_t, const auto&) {});
  }
  __device__ __forceinline__ void reduce(RowSums<A>* sums, bool smooth) const {
    team_merge<kTeam>(sums, smooth);
  }
  __device__ __forceinline__ void exchange(RowSums<A>*, bool) const {}
  __device__ __forceinline__ void write_gradient(const RowGradient<A>& gradient) const {
    // Not x_: a row with a gradient is scored, so its pointer needs no test.
    const T* x = static_cast<const T*>(in_.logits) + in_.row_offset(index);
    write_gradient(x, gradient);
  }
  __device__ __forceinline__ void write_zeros() const {
    cuda::write_zeros<kTeam>(grad_logits_ + index * num_classes_, num_classes_, member);
  }

 protected:
  // keep(c, value) and keep(c, vector) see every logit once.
  template <class Keep>
  __device__ __forceinline__ RowSums<A> load(const LossOptions<A>& options,
                                             const Keep& keep) const {
    RowSums<A> sums = RowSums<A>::none();
    add_row<kTeam>(x_, 0, classes_, member, target.first, options, &sums, keep);
    return sums;
  }
  // x: the row's logits in global or shared memory.
  __device__ __forceinline__ void write_gradient(const T* x, const RowGradient<A>& gradient) const {
    cuda::write_gradient<kTeam>(x, grad_logits_ + index * num_classes_, 0, num_classes_, member,
                                gradient);
  }

  const CrossEntropyInput& in_;
  const int64_t num_classes_;
  T* const grad_logits_;
  const T* x_;
  int64_t classes_;  // to read: a row that is skipped has none
};

// The same for the step: keeps the row in shared memory from load() to write_gradient().
template <class T, int kTeam>
class StagedTeamRow : public TeamRow<T, kTeam> {
  using Base = TeamRow<T, kTeam>;

 public:
  using A = typename Base::A;
  static constexpr int kStepBlocksPerSm = std::is_same<T, float>::value ? 3 : 2;

  // staged_rows: staged_bytes for each team of the block. With 0, the row is read again.
  __device__ __forceinline__ StagedTeamRow(const CrossEntropyInput& in, T* grad_logits,
                                           unsigned char* staged_rows, int64_t staged_bytes)
      : Base(in, grad_logits),
        keeps_(staged_bytes > 0),
        // As far past a 16-byte boundary as the row itself, so that vectors stay vectors.
        staged_(reinterpret_cast<T*>(staged_rows + threadIdx.x / kTeam * staged_bytes) +
                elements_past_boundary(this->x_)) {}

  __device__ __forceinline__ RowSums<A> load(const LossOptions<A>& options) const {
    return Base::load(options, [&](int64_t c, const auto& value) {
      if (keeps_) stage(staged_ + c, value);
    });
  }
  // Its barrier is the staged row's, too.
  __device__ __forceinline__ SavedRow<A> share(const SavedRow<A>& saved) const {
    if constexpr (kTeam > kWarpSize) {
      DYNPRUNE_SHARED(SavedRow<A>, shared_saved, );
      if (this->member == 0) shared_saved = saved;
      __syncthreads();
      return shared_saved;
    } else {
      __syncwarp();
      return saved;
    }
  }
  __device__ __forceinline__ void write_gradient(const RowGradient<A>& gradient) const {
    Base::write_gradient(keeps_ ? static_cast<const T*>(staged_) : this->x_, gradient);
  }

 private:
  const bool keeps_;
  T* const staged_;
};

}  // namespace cuda
}  // namespace dynprune
