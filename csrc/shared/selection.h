// SPDX-License-Identifier: Apache-2.0
// What every selection op shares in its contract, on the GPU and on the CPU.
#pragma once

#include "shared/hash.h"

namespace dynprune {

enum class Order { kRandom, kAscending };

// A request for k = num_greedy + num_random distinct ids, 0 <= id < num_samples: the first
// num_greedy of the total order, and num_random drawn uniformly from the rest. num_samples <=
// kMaxSamples, and k <= num_samples.
struct Selection {
  int64_t num_samples;
  int64_t num_greedy;
  int64_t num_random;
  Seed seed;
  Order order;
  int64_t* ids;  // [k] out

  int64_t k() const { return num_greedy + num_random; }
};

}  // namespace dynprune
