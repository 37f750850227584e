// SPDX-License-Identifier: Apache-2.0
// What the kernels of one selection are told, and what makes a sample a member of the subset.
#pragma once

#include "device/launch.h"
#include "kernels/selection/select_plan.h"
#include "shared/error_flags.h"

namespace dynprune {
namespace cuda {

// Epsilon-greedy ranks by the score; no other ranking has a random part, or no greedy one.
template <class Ranking>
constexpr bool kMayBeRandom = false;
template <class T>
constexpr bool kMayBeRandom<ScoreRanking<T>> = true;

// What every kernel of one selection is told.
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

// Is a sample in the subset, now that the thresholds are known?
template <class Ranking>
class Selected {
 public:
  using Key = typename Ranking::Key;

  __device__ Selected(bool has_greedy, bool has_random, uint64_t seed, Threshold<Key> greedy,
                      uint32_t random)
      : has_greedy_(has_greedy),
        has_random_(has_random),
        greedy_(greedy),
        random_(random),
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
