// SPDX-License-Identifier: Apache-2.0
#include "kernels/sharding/shard_search.h"

#include "device/compact.h"
#include "device/device_errors.h"
#include "device/digit_search.h"
#include "shared/permutation.h"
#include "shared/ranking.h"

namespace dynprune {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCountThreads = 1024;

// As many blocks as are resident at once, or fewer if there is less to do.
unsigned grid_for(int64_t n, int threads, int per_multiprocessor) {
  const int64_t blocks = (n + threads - 1) / threads;
  const int64_t resident = int64_t{multiprocessor_count()} * per_multiprocessor;
  return static_cast<unsigned>(blocks < resident ? blocks : resident);
}

// out[i] = f(i)
template <class F, class Out>
__global__ void __launch_bounds__(kThreads) fill_kernel(F f, int64_t n, Out* out) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += stride) out[i] = f(i);
}

template <class F, class Out>
cudaError_t fill(const F& f, int64_t n, Out* out, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  DYNPRUNE_LAUNCH((fill_kernel<F, Out>), grid_for(n, kThreads, 8), kThreads, 0, stream, f, n, out);
  return cudaGetLastError();
}

template <class Ranking>
struct KeyOf {
  Ranking ranking;
  __device__ uint32_t operator()(int64_t i) const { return ranking.key(i, 0); }
};

template <class T>
struct WeightKeyOf {
  const T* weights;
  Shard shard;
  Seed seed;
  ErrorRecord* errors;

  __device__ uint32_t operator()(int64_t i) const {
    const float w = widen(weights[i]);
    if (!(w >= 0)) record_error(errors, DataError::kWeight, shard[i]);
    return WeightRanking<T>::key_of(w, shard[i], seed.get());
  }
};

template <bool kInverse>
struct PermutationAt {
  uint64_t n;
  Shard part;
  Seed seed;

  __device__ int64_t operator()(int64_t i) const {
    const Permutation permutation(n, seed.get(), Stream::kPermutation);
    const auto x = static_cast<uint64_t>(part[i]);
    return static_cast<int64_t>(kInverse ? permutation.position_of(x) : permutation(x));
  }
};

__global__ void __launch_bounds__(kCountThreads)
    digit_counts_kernel(ShardWords words, const SearchState* state, Digit digit, Seed seed,
                        unsigned long long* counts) {
  DYNPRUNE_SHARED(unsigned, bins, [kNumBins]);
  const uint64_t prefix = state->prefix, seed_value = seed.get();
  if (state->wanted == 0) return;
  const IdHash tie_hash(seed_value, Stream::kTie), explore_hash(seed_value, Stream::kExplore);
  for (int b = threadIdx.x; b < digit.num_bins(); b += kCountThreads) bins[b] = 0;
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * kCountThreads;
  for (int64_t begin = int64_t{blockIdx.x} * kCountThreads; begin < words.shard.count;
       begin += stride) {
    const int64_t i = begin + threadIdx.x;
    const bool valid = i < words.shard.count;
    count_bin(bins, valid ? words.bin(i, digit, prefix, tie_hash, explore_hash) : -1);
  }
  __syncthreads();
  for (int b = threadIdx.x; b < digit.num_bins(); b += kCountThreads) {
    if (bins[b] != 0) atomicAdd(&counts[b], 0ull + bins[b]);
  }
}

// One block per tile.
__global__ void __launch_bounds__(kListThreads)
    list_shard_kernel(ShardSelected selected, Seed seed, int64_t k, CompactState* compact,
                      int64_t* positions) {
  DYNPRUNE_SHARED(ListShared, shared, );
  const int64_t tile = take_tile(compact, &shared);
  const int lane = threadIdx.x % kWarpSize;
  const uint64_t seed_value = seed.get();
  const IdHash tie_hash(seed_value, Stream::kTie), explore_hash(seed_value, Stream::kExplore);
  for (int w = threadIdx.x / kWarpSize; w < kWordsPerTile; w += kListThreads / kWarpSize) {
    const int64_t i = tile * kTile + w * kWarpSize + lane;
    const bool keep = i < selected.words.shard.count && selected(i, tie_hash, explore_hash);
    const unsigned word = __ballot_sync(kFullWarp, keep);
    if (lane == 0) shared.words[w] = word;
  }
  count_tile(tile, compact, &shared);
  write_tile(tile, &shared, k, positions);
}

}  // namespace

cudaError_t launch_keys_by_score(const void* scores, ScalarType type, int64_t n, uint32_t* keys,
                                 cudaStream_t stream) {
  return dispatch(type, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (std::is_same<T, double>::value) {
      return cudaErrorInvalidValue;
    } else {
      const ScoreRanking<T> ranking{static_cast<const T*>(scores)};
      return fill(KeyOf<ScoreRanking<T>>{ranking}, n, keys, stream);
    }
  });
}

cudaError_t launch_keys_by_ucb(const void* mean, const void* variance, ScalarType type, float c,
                               bool sqrt_bonus, int64_t n, uint32_t* keys, cudaStream_t stream) {
  return dispatch(type, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (std::is_same<T, double>::value) {
      return cudaErrorInvalidValue;
    } else {
      const UcbRanking<T> ranking{static_cast<const T*>(mean), static_cast<const T*>(variance), c,
                                  sqrt_bonus};
      return fill(KeyOf<UcbRanking<T>>{ranking}, n, keys, stream);
    }
  });
}

cudaError_t launch_keys_by_ucb1(const float* mean, const void* count, IndexType count_type, float c,
                                float log_step, int64_t n, uint32_t* keys, cudaStream_t stream) {
  const auto launch = [&](auto tag) {
    using Count = decltype(tag);
    const Ucb1Ranking<Count> ranking{mean, static_cast<const Count*>(count), c, log_step};
    return fill(KeyOf<Ucb1Ranking<Count>>{ranking}, n, keys, stream);
  };
  return count_type == IndexType::kInt32 ? launch(int32_t{}) : launch(int64_t{});
}

cudaError_t launch_keys_by_weight(const void* weights, ScalarType type, const Shard& shard,
                                  Seed seed, uint32_t* keys, ErrorRecord* errors,
                                  cudaStream_t stream) {
  return dispatch(type, [&](auto tag) {
    using T = decltype(tag);
    if constexpr (std::is_same<T, double>::value) {
      return cudaErrorInvalidValue;
    } else {
      const WeightKeyOf<T> key{static_cast<const T*>(weights), shard, seed, errors};
      return fill(key, shard.count, keys, stream);
    }
  });
}

cudaError_t launch_digit_counts(const ShardWords& words, const SearchState* state, int round,
                                Seed seed, int64_t* counts, cudaStream_t stream) {
  const Digit digit = Digit::of_round(round);
  const cudaError_t error =
      cudaMemsetAsync(counts, 0, static_cast<size_t>(digit.num_bins()) * sizeof(int64_t), stream);
  if (error != cudaSuccess || words.shard.count == 0) return error;
  DYNPRUNE_LAUNCH((digit_counts_kernel), grid_for(words.shard.count, kCountThreads, 2),
                  kCountThreads, 0, stream, words, state, digit, seed,
                  reinterpret_cast<unsigned long long*>(counts));
  return cudaGetLastError();
}

size_t list_shard_workspace_bytes(int64_t n) { return CompactState::bytes(n); }

cudaError_t launch_list_shard(const ShardSelected& selected, Seed seed, int64_t k,
                              int64_t* positions, void* workspace, cudaStream_t stream) {
  const int64_t n = selected.words.shard.count;
  if (k == 0 || n == 0) return cudaSuccess;
  const cudaError_t error = cudaMemsetAsync(workspace, 0, list_shard_workspace_bytes(n), stream);
  if (error != cudaSuccess) return error;
  DYNPRUNE_LAUNCH((list_shard_kernel), static_cast<unsigned>(num_tiles(n)), kListThreads, 0, stream,
                  selected, seed, k, static_cast<CompactState*>(workspace), positions);
  return cudaGetLastError();
}

cudaError_t launch_permutation_part(int64_t n, const Shard& part, bool inverse, Seed seed,
                                    int64_t* out, cudaStream_t stream) {
  const auto size = static_cast<uint64_t>(n);
  return inverse ? fill(PermutationAt<true>{size, part, seed}, part.count, out, stream)
                 : fill(PermutationAt<false>{size, part, seed}, part.count, out, stream);
}

}  // namespace cuda
}  // namespace dynprune
