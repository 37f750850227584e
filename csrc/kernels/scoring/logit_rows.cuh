// SPDX-License-Identifier: Apache-2.0
// A row of logits and the team of threads that shares it: 8 lanes, a warp, or the block. Rows are
// read and written in 16-byte vectors whatever their alignment: single elements up to the first
// 16-byte boundary, vectors, single elements behind the last.
#pragma once

#include <type_traits>

#include "device/block.h"
#include "device/device_errors.h"
#include "kernels/scoring/vector_math.cuh"

namespace dynprune {
namespace cuda {

constexpr int kThreads = 256;
constexpr int kSmallTeam = 8;
constexpr int64_t kMaxClassesPerSmallTeam = 32;
constexpr int64_t kMaxClassesPerWarp = 1024;
// Vectors that a thread loads at once. float64, in registers twice as long, is not for speed.
template <class T>
constexpr int kLoadsInFlight = sizeof(T) == 8 ? 1 : 4;

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
__device__ __forceinline__ int elements_past_boundary(const T* p) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(p) % 16 / sizeof(T));
}

// How a team divides a row whose first element lies at `start`, and the part of one member.
template <int kTeam, class T>
struct RowSplit {
  static constexpr int kSize = Vector<T>::kSize;
  const int member;
  int64_t head, tail;  // elements before the vectors, first element behind
  int mine;            // vectors of this member; few members have short rows, so an int will do

  __device__ __forceinline__ RowSplit(const T* start, int64_t classes, int team_member)
      : member(team_member) {
    const int past = elements_past_boundary(start);
    head = past == 0 ? 0 : kSize - past;
    if (head > classes) head = classes;
    const int64_t vectors = (classes - head) / kSize;
    tail = head + vectors * kSize;
    mine = static_cast<int>((vectors - member + kTeam - 1) / kTeam);
  }
  // The first element of this member's vector i.
  __device__ __forceinline__ int64_t element(int i) const {
    return head + (int64_t{i} * kTeam + member) * kSize;
  }
  // Which of this member's vectors holds element c, if any; else -1.
  __device__ __forceinline__ int holder(int64_t c) const {
    const int64_t vector = (c - head) / kSize;
    const bool here = c >= head && c < tail && vector % kTeam == member;
    return here ? static_cast<int>(vector / kTeam) : -1;
  }
};

// Reads x[0 .. classes) as this member's part: one(c, value), and group(i, loaded) for its vectors
// i .. i + kLoadsInFlight<T> - 1. A vector from split.mine on holds no_element.
template <int kTeam, class T, class One, class Group>
__device__ __forceinline__ void read_row(const T* x, const RowSplit<kTeam, T>& split,
                                         int64_t classes, T no_element, const One& one,
                                         const Group& group) {
  if (split.member < split.head) one(int64_t{split.member}, x[split.member]);
  const uint4* vectors = reinterpret_cast<const uint4*>(x + split.head) + split.member;
  for (int i = 0; i < split.mine; i += kLoadsInFlight<T>) {
    uint4 loaded[kLoadsInFlight<T>];
    if (i + kLoadsInFlight<T> <= split.mine) {
#pragma unroll
      for (int u = 0; u < kLoadsInFlight<T>; u++) loaded[u] = __ldg(vectors + u * kTeam);
    } else {
#pragma unroll
      for (int u = 0; u < kLoadsInFlight<T>; u++) {
        loaded[u] = Vector<T>::filled(no_element).raw();
        if (i + u < split.mine) loaded[u] = __ldg(vectors + u * kTeam);
      }
    }
    group(i, loaded);
    vectors += kLoadsInFlight<T> * kTeam;
  }
  const int64_t last = split.tail + split.member;
  if (last < classes) one(last, x[last]);
}

// Writes out[0 .. classes): value(c) for single elements, vector(i) for this member's vector i.
template <int kTeam, class T, class One, class Many>
__device__ __forceinline__ void write_row(T* out, const RowSplit<kTeam, T>& split, int64_t classes,
                                          const One& value, const Many& vector) {
  // Through a variable: the emulator's compiler does not record the store of what a call returns.
  const auto store = [&](int64_t c) {
    const T single = value(c);
    out[c] = single;
  };
  if (split.member < split.head) store(split.member);
  uint4* vectors = reinterpret_cast<uint4*>(out + split.head) + split.member;
  for (int i = 0; i < split.mine; i++) {
    __stcg(vectors, vector(i).raw());
    vectors += kTeam;
  }
  if (split.tail + split.member < classes) store(split.tail + split.member);
}

template <int kTeam, class T>
__device__ __forceinline__ void write_zeros(T* out, int64_t classes, int member) {
  const T zero = narrow<T>(compute_t<T>{0});
  write_row(
      out, RowSplit<kTeam, T>(out, classes, member), classes, [&](int64_t) { return zero; },
      [&](int) { return Vector<T>::from(uint4{0, 0, 0, 0}); });
}

template <int kTeam, bool kWeighted, class T>
__device__ __forceinline__ void write_gradient(const T* x, T* out, int64_t first, int64_t classes,
                                               int member,
                                               const RowGradient<compute_t<T>>& gradient) {
  using A = compute_t<T>;
  constexpr int kSize = Vector<T>::kSize;
  const bool same_alignment = elements_past_boundary(x) == elements_past_boundary(out);
  const OtherClasses<A, kWeighted> others(gradient);
  const RowSplit<kTeam, T> split(out, classes, member);
  const T* mine = x + split.element(0);
  const int64_t y_first = gradient.first - first, y_second = gradient.second - first;
  const int with_first = split.holder(y_first), with_second = split.holder(y_second);
  write_row(
      out, split, classes,
      [&](int64_t c) { return narrow<T>(gradient.at(first + c, static_cast<A>(widen(x[c])))); },
      [&](int i) {
        const T* from = mine + int64_t{i} * kTeam * kSize;
        uint4 raw;
        if (same_alignment) {
          raw = *reinterpret_cast<const uint4*>(from);
        } else {
          Vector<T> v;
#pragma unroll
          for (int k = 0; k < kSize; k++) v.v[k] = from[k];
          raw = v.raw();
        }
        A g[kSize];
        Vector<T>::from(raw).widen_to(g);
        others.template replace<kSize>(first + split.element(i), g);
        if (sizeof(A) == 4 && (i == with_first || i == with_second)) {
#pragma unroll
          for (int k = 0; k < kSize; k++) {
            const int64_t c = split.element(i) + k;
            if (c == y_first) g[k] = gradient.at_first();
            if (c == y_second) g[k] -= gradient.second_weight;
          }
        }
        return Vector<T>::narrowed(g);
      });
}

// The gradient of `classes` classes from `first` on to out[0 .. classes), from their logits
// x[0 .. classes) in global or shared memory.
template <int kTeam, class T>
__device__ __forceinline__ void write_gradient(const T* x, T* out, int64_t first, int64_t classes,
                                               int member,
                                               const RowGradient<compute_t<T>>& gradient) {
  constexpr bool kOneForBoth = std::is_same<T, double>::value;
  if (kOneForBoth || (gradient.uniform_weight != 0 && gradient.class_weight != nullptr)) {
    write_gradient<kTeam, true>(x, out, first, classes, member, gradient);
  } else {
    write_gradient<kTeam, false>(x, out, first, classes, member, gradient);
  }
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
__device__ __forceinline__ void stage(T* to, const uint4& vector) {
  *reinterpret_cast<uint4*>(to) = vector;
}

// What a row's sums need for label smoothing: nothing without, else weights of one or by class.
// With kAny each logit finds out: float64 has one loop for all.
enum class Smoothing { kNone, kUniform, kByClass, kAny };

template <int kTeam, Smoothing kSmoothing, class T, class Keep>
__device__ __forceinline__ void add_row(const T* x, int64_t first, int64_t classes, int member,
                                        int64_t target, const LossOptions<compute_t<T>>& options,
                                        RowSums<compute_t<T>>* sums, const Keep& keep) {
  using A = compute_t<T>;
  constexpr int kSize = Vector<T>::kSize;
  constexpr bool kSmooth = kSmoothing != Smoothing::kNone;
  const A x_y = kSmooth && classes > 0 ? static_cast<A>(widen(x[target])) : A{0};
  const auto weigh = [&](int64_t c, A v) {
    if (kSmoothing == Smoothing::kAny && !(options.label_smoothing > 0)) return;
    const A w = kSmoothing == Smoothing::kUniform ? A{1} : options.weight_of(c);
    sums->weight += w;
    sums->distance += w * (v - x_y);
  };
  const RowSplit<kTeam, T> split(x + first, classes, member);
  const int with_target = split.holder(target - first);
  read_row(
      x + first, split, classes, narrow<T>(-Limits<A>::infinity()),
      [&](int64_t c, T value) {
        c += first;
        keep(c, value);
        const A v = widen(value);
        if (c != target) sums->stats.add(v);
        if constexpr (kSmooth) weigh(c, v);
      },
      [&](int i, const uint4* loaded) {
        A v[kLoadsInFlight<T> * kSize];
#pragma unroll
        for (int u = 0; u < kLoadsInFlight<T>; u++) {
          const int64_t c = first + split.element(i + u);
          if (i + u < split.mine) keep(c, loaded[u]);
          Vector<T>::from(loaded[u]).widen_to(v + u * kSize);
          if constexpr (kSmooth) {
            if (i + u < split.mine) {
#pragma unroll
              for (int k = 0; k < kSize; k++) weigh(c + k, v[u * kSize + k]);
            }
          }
        }
        if (with_target >= i && with_target < i + kLoadsInFlight<T>) {
          const int place =
              (with_target - i) * kSize + static_cast<int>((target - first - split.head) % kSize);
#pragma unroll
          for (int k = 0; k < kLoadsInFlight<T> * kSize; k++) {
            if (k == place) v[k] = -Limits<A>::infinity();
          }
        }
        add_all<kLoadsInFlight<T> * kSize>(&sums->stats, v);
      });
}

// Adds this member's part of `classes` classes from `first` on of the row x. keep(c, value) and
// keep(c, raw vector) see every logit once.
template <int kTeam, class T, class Keep>
__device__ __forceinline__ void add_row(const T* x, int64_t first, int64_t classes, int member,
                                        int64_t target, const LossOptions<compute_t<T>>& options,
                                        RowSums<compute_t<T>>* sums, const Keep& keep) {
  const auto add = [&](auto smoothing) {
    add_row<kTeam, decltype(smoothing)::value>(x, first, classes, member, target, options, sums,
                                               keep);
  };
  if constexpr (std::is_same<T, double>::value) {
    add(std::integral_constant<Smoothing, Smoothing::kAny>{});
  } else if (!(options.label_smoothing > 0)) {
    add(std::integral_constant<Smoothing, Smoothing::kNone>{});
  } else if (options.class_weight == nullptr) {
    add(std::integral_constant<Smoothing, Smoothing::kUniform>{});
  } else {
    add(std::integral_constant<Smoothing, Smoothing::kByClass>{});
  }
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
