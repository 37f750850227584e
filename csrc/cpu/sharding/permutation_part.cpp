// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/permutation_part.h"

#include <algorithm>

#include "cpu/selection/shuffle.h"

namespace dynprune {
namespace cpu {

void permutation_part(int64_t n, const Shard& part, bool inverse, uint64_t seed, int64_t* out,
                      const Parallel& parallel) {
  const auto size = static_cast<uint64_t>(n);
  const Permutation permutation(size, seed, Stream::kPermutation);
  for_each_range(parallel, part.count, num_tasks(parallel, part.count, 8192), [&](int, Range r) {
    uint32_t x[kPermuteBlock];
    for (int64_t begin = r.begin; begin < r.end; begin += kPermuteBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kPermuteBlock, r.end - begin));
      for (int i = 0; i < count; i++) x[i] = static_cast<uint32_t>(part[begin + i]);
      if (inverse) {
        permute_block<true>(permutation, size, x, count);
      } else {
        permute_block<false>(permutation, size, x, count);
      }
      for (int i = 0; i < count; i++) out[begin + i] = x[i];
    }
  });
}

}  // namespace cpu
}  // namespace dynprune
