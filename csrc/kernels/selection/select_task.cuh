// SPDX-License-Identifier: Apache-2.0
// The arguments that all kernels of a selection take, and the test for membership in the subset.
#pragma once

#include "device/launch.h"
#include "kernels/selection/select_plan.h"
#include "shared/error_flags.h"

namespace dynprune {
namespace cuda {

// Only the ranking by score (epsilon-greedy) may have a random part, or no greedy part.
template <class Ranking>
constexpr bool kMayBeRandom = false;
template <class T>
constexpr bool kMayBeRandom<ScoreRanking<T>> = true;

template <class Ranking>
struct SelectTask {
  Ranking ranking;
  int64_t num_samples, num_greedy, num_random;
  Seed seed;
  HashBracket hash;  // of the random part
  SelectState* state;
  ErrorRecord* errors;  // [kNumDataErrors], used if the ranking is checked

  __device__ bool has_greedy() const { return !kMayBeRandom<Ranking> || num_greedy > 0; }
  __device__ bool has_random() const { return kMayBeRandom<Ranking> && num_random > 0; }
};

// The lowest composite key of the greedy part, and the lowest hash of the random part.
template <class Key>
struct Thresholds {
  Threshold<Key> greedy;
  uint32_t random;
};

// Whether a sample is in the subset, once the thresholds are known.
template <class Ranking>
class Selected {
 public:
  using Key = typename Ranking::Key;

  __device__ Selected(const SelectTask<Ranking>& task, uint64_t seed,
                      const Thresholds<Key>& thresholds)
      : has_greedy_(task.has_greedy()),
        has_random_(task.has_random()),
        greedy_(thresholds.greedy),
        random_(thresholds.random),
        tie_hash_(seed, Stream::kTie),
        explore_hash_(seed, Stream::kExplore) {}

  __device__ bool operator()(Key key, int64_t id) const {
    return (has_greedy_ && greedy_.admits(key, id, tie_hash_)) ||
           (has_random_ && explore_hash_(id) >= random_);
  }

 private:
  bool has_greedy_, has_random_;
  Threshold<Key> greedy_;
  uint32_t random_;
  IdHash tie_hash_, explore_hash_;
};

}  // namespace cuda
}  // namespace dynprune
