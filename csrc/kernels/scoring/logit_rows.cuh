// SPDX-License-Identifier: Apache-2.0
// A row of logits and the team of threads that shares it: 8 lanes, a warp, or the block. Rows are
// read and written in 16-byte vectors whatever their alignment: single elements up to the first
// 16-byte boundary, vectors, single elements behind the last.
#pragma once

#include <type_traits>

#include "device/block.h"
#include "device/device_errors.h"
#include "shared/cross_entropy_row.h"

namespace dynprune {
namespace cuda {

constexpr int kThreads = 256;
constexpr int kSmallTeam = 8;
constexpr int64_t kMaxClassesPerSmallTeam = 32;
constexpr int64_t kMaxClassesPerWarp = 1024;
constexpr int kLoadsInFlight = 4;  // vectors per thread

inline unsigned blocks_for(int64_t rows, int team) {
  const int rows_per_block = kThreads / team;
  return static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block);
}

// Calls f with the team size for a number of classes, as a constant: std::integral_constant.
template <class F>
auto with_team(int64_t classes, F&& f) {
  if (classes <= kMaxClassesPerSmallTeam) return f(std::integral_constant<int, kSmallTeam>{});
  if (classes <= kMaxClassesPerWarp) return f(std::integral_constant<int, kWarpSize>{});
  return f(std::integral_constant<int, kThreads>{});
}

template <int kTeam>
__device__ __forceinline__ int64_t row_of_team() {
  return int64_t{blockIdx.x} * (kThreads / kTeam) + threadIdx.x / kTeam;
}

template <class T>
struct Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T v[kSize];

  static __device__ __forceinline__ Vector from(uint4 raw) {
    Vector result;
    memcpy(result.v, &raw, 16);
    return result;
  }
  __device__ __forceinline__ uint4 raw() const {
    uint4 result;
    memcpy(&result, v, 16);
    return result;
  }
};

template <class T>
__device__ __forceinline__ int elements_past_boundary(const T* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
}

// How a team divides a row whose first element lies at `start`.
template <class T>
struct RowSplit {
  int64_t head, vectors, tail;  // elements before, vectors, first element behind

  __device__ __forceinline__ RowSplit(const T* start, int64_t classes) {
    constexpr int kSize = Vector<T>::kSize;
    const int past = elements_past_boundary(start);
    head = past == 0 ? 0 : kSize - past;
    if (head > classes) head = classes;
    vectors = (classes - head) / kSize;
    tail = head + vectors * kSize;
  }
};

// Reads x[0 .. classes): one(c, value) and many(c, vector) for the parts of this member.
template <int kTeam, class T, class One, class Many>
__device__ __forceinline__ void read_row(const T* x, int64_t classes, int member, const One& one,
                                         const Many& many) {
  const RowSplit<T> split(x, classes);
  if (member < split.head) one(int64_t{member}, x[member]);
  const uint4* vectors = reinterpret_cast<const uint4*>(x + split.head);
  for (int64_t first = member; first < split.vectors; first += kTeam * kLoadsInFlight) {
    uint4 loaded[kLoadsInFlight];
#pragma unroll
    for (int u = 0; u < kLoadsInFlight; u++) {
      if (first + u * kTeam < split.vectors) loaded[u] = __ldg(vectors + first + u * kTeam);
    }
#pragma unroll
    for (int u = 0; u < kLoadsInFlight; u++) {
      const int64_t v = first + u * kTeam;
      if (v < split.vectors) {
        many(split.head + v * Vector<T>::kSize, Vector<T>::from(loaded[u]));
      }
    }
  }
  if (split.tail + member < classes) one(split.tail + member, x[split.tail + member]);
}

// Writes out[0 .. classes): value(c) for single elements, vector(c) for Vector<T>::kSize from c on.
template <int kTeam, class T, class One, class Many>
__device__ __forceinline__ void write_row(T* out, int64_t classes, int member, const One& value,
                                          const Many& vector) {
  const RowSplit<T> split(out, classes);
  // Through a variable: the emulator's compiler does not record the store of what a call returns.
  const auto store = [&](int64_t c) {
    const T single = value(c);
    out[c] = single;
  };
  if (member < split.head) store(member);
  uint4* vectors = reinterpret_cast<uint4*>(out + split.head);
  for (int64_t v = member; v < split.vectors; v += kTeam) {
    __stcg(vectors + v, vector(split.head + v * Vector<T>::kSize).raw());
  }
  if (split.tail + member < classes) store(split.tail + member);
}

template <int kTeam, class T>
__device__ __forceinline__ void write_zeros(T* out, int64_t classes, int member) {
  const T zero = narrow<T>(compute_t<T>{0});
  write_row<kTeam>(
      out, classes, member, [&](int64_t) { return zero; },
      [&](int64_t) { return Vector<T>::from(uint4{0, 0, 0, 0}); });
}

// The gradient of `classes` classes from `first` on to out[0 .. classes), from their logits
// x[0 .. classes) in global or shared memory.
template <int kTeam, class T>
__device__ __forceinline__ void write_gradient(const T* x, T* out, int64_t first, int64_t classes,
                                               int member,
                                               const RowGradient<compute_t<T>>& gradient) {
  using A = compute_t<T>;
  constexpr int kSize = Vector<T>::kSize;
  const bool same_alignment = elements_past_boundary(x) == elements_past_boundary(out);
  write_row<kTeam>(
      out, classes, member,
      [&](int64_t c) { return narrow<T>(gradient.at(first + c, static_cast<A>(widen(x[c])))); },
      [&](int64_t c) {
        Vector<T> v;
        if (same_alignment) {
          v = Vector<T>::from(*reinterpret_cast<const uint4*>(x + c));
        } else {
#pragma unroll
          for (int k = 0; k < kSize; k++) v.v[k] = x[c + k];
        }
        c += first;
        const bool has_target = static_cast<uint64_t>(gradient.first - c) < kSize ||
                                static_cast<uint64_t>(gradient.second - c) < kSize;
#pragma unroll
        for (int k = 0; k < kSize; k++) {
          const A logit = widen(v.v[k]);
          v.v[k] =
              narrow<T>(has_target ? gradient.at(c + k, logit) : gradient.at_other(c + k, logit));
        }
        return v;
      });
}

// ---- the sums of a row that its team shares

template <class A>
struct RowSums {
  RowStats<A> stats;
  A weight;    // sum_j w_j
  A distance;  // sum_j w_j (x_j - x_y)

  static __device__ RowSums none() { return {RowStats<A>::none(), 0, 0}; }
  __device__ void merge(const RowSums& other) {
    stats.merge(other.stats);
    weight += other.weight;
    distance += other.distance;
  }
};

// Keeps what add_row reads, in shared memory that lies as far past a 16-byte boundary.
template <class T>
__device__ __forceinline__ void stage(T* to, T value) {
  *to = value;
}
template <class T>
__device__ __forceinline__ void stage(T* to, const Vector<T>& value) {
  *reinterpret_cast<uint4*>(to) = value.raw();
}

// Adds this member's part of `classes` classes from `first` on of the row x. keep(c, value) and
// keep(c, vector) see every logit once.
template <int kTeam, class T, class Keep>
__device__ __forceinline__ void add_row(const T* x, int64_t first, int64_t classes, int member,
                                        int64_t target, const LossOptions<compute_t<T>>& options,
                                        RowSums<compute_t<T>>* sums, const Keep& keep) {
  using A = compute_t<T>;
  constexpr int kSize = Vector<T>::kSize;
  const bool smooth = options.label_smoothing > 0;
  const A x_y = smooth && classes > 0 ? static_cast<A>(widen(x[target])) : A{0};
  const auto weigh = [&](int64_t c, A v) {
    const A w = options.weight_of(c);
    sums->weight += w;
    sums->distance += w * (v - x_y);
  };
  read_row<kTeam>(
      x + first, classes, member,
      [&](int64_t c, T value) {
        c += first;
        keep(c, value);
        const A v = widen(value);
        if (c != target) sums->stats.add(v);
        if (smooth) weigh(c, v);
      },
      [&](int64_t c, const Vector<T>& vector) {
        c += first;
        keep(c, vector);
        A v[kSize];
#pragma unroll
        for (int k = 0; k < kSize; k++) v[k] = widen(vector.v[k]);
        if (smooth) {
#pragma unroll
          for (int k = 0; k < kSize; k++) weigh(c + k, v[k]);
        }
        if (static_cast<uint64_t>(target - c) < kSize) {
#pragma unroll
          for (int k = 0; k < kSize; k++) {
            if (c + k == target) v[k] = -Limits<A>::infinity();
          }
        }
        sums->stats.template add_all<kSize>(v);
      });
}

// Groups of kLanes neighbours end with the sums of their group; whole warps call.
template <int kLanes, class A>
__device__ __forceinline__ void lanes_merge(RowSums<A>* sums, bool smooth) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) {
    RowSums<A> other = RowSums<A>::none();
    other.stats.m = __shfl_xor_sync(kFullWarp, sums->stats.m, d);
    other.stats.s = __shfl_xor_sync(kFullWarp, sums->stats.s, d);
    other.stats.q = __shfl_xor_sync(kFullWarp, sums->stats.q, d);
    other.stats.t = __shfl_xor_sync(kFullWarp, sums->stats.t, d);
    if (smooth) {
      other.weight = __shfl_xor_sync(kFullWarp, sums->weight, d);
      other.distance = __shfl_xor_sync(kFullWarp, sums->distance, d);
    }
    sums->merge(other);
  }
}

// Every member of a small team or a warp, and thread 0 of a block, ends with the row's sums. All
// threads of the block must call.
template <int kTeam, class A>
__device__ __forceinline__ void team_merge(RowSums<A>* sums, bool smooth) {
  constexpr int kLanes = kTeam < kWarpSize ? kTeam : kWarpSize;
  lanes_merge<kLanes>(sums, smooth);
  if constexpr (kTeam > kWarpSize) {
    DYNPRUNE_SHARED(RowSums<A>, by_warp, [kThreads / kWarpSize]);
    if (threadIdx.x % kWarpSize == 0) by_warp[threadIdx.x / kWarpSize] = *sums;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kThreads / kWarpSize; w++) sums->merge(by_warp[w]);
    }
  }
}

template <class A>
struct Outputs {
  A *loss, *el2n, *entropy, *margin;
  bool* correct;
  SavedRow<A>* saved;  // may be null

  explicit Outputs(const CrossEntropyOutput& o)
      : loss(static_cast<A*>(o.loss)),
        el2n(static_cast<A*>(o.el2n)),
        entropy(static_cast<A*>(o.entropy)),
        margin(static_cast<A*>(o.margin)),
        correct(o.correct),
        saved(static_cast<SavedRow<A>*>(o.saved)) {}

  __device__ void write(int64_t row, A row_loss, const RowResult<A>& r, A sum_weight) const {
    loss[row] = row_loss;
    el2n[row] = r.el2n;
    entropy[row] = r.entropy;
    margin[row] = r.margin;
    correct[row] = r.margin > 0;
    if (saved != nullptr) saved[row] = {r.max, r.log_normaliser, r.miss, sum_weight};
  }

  // A row that is ignored: 0. A target out of range: NaN, and a record.
  __device__ void write_skipped(int64_t row, const TargetPair& y, ErrorRecord* errors) const {
    const bool bad = y.kind == RowKind::kOutOfRange;
    const A v = bad ? Limits<A>::nan() : A{0};
    write(row, v, {v, v, v, v, v, v, v}, v);
    if (bad) record_error(errors, DataError::kTarget, y.offender);
  }
};

}  // namespace cuda
}  // namespace dynprune
