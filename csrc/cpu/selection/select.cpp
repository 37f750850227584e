// SPDX-License-Identifier: Apache-2.0
#include "cpu/selection/select.h"

#include "cpu/selection/first_bad_weight.h"
#include "cpu/selection/select_ranked.h"

namespace dynprune {
namespace cpu {

DataStatus select(const RankingSpec& spec, const Selection& selection, const Parallel& parallel) {
  return with_ranking<RankingUse::kSelect>(spec, [&](const auto& ranking) {
    const int64_t n = selection.num_samples;
    const int64_t bad = first_bad_weight(ranking, n, parallel);
    if (bad < n) return DataStatus{false, DataError::kWeight, bad, bad};
    select_ranked(ranking, selection, parallel);
    return DataStatus{};
  });
}

void select_uniform(const Selection& s, const Parallel& parallel) {
  if (s.k() == 0) return;
  const int64_t n = s.num_samples;
  const uint64_t seed = s.seed.get();
  if (s.order == Order::kRandom) {
    shuffle(nullptr, n, s.k(), seed, Stream::kPermutation, s.ids, parallel);
    return;
  }
  const Permutation permutation(static_cast<uint64_t>(n), seed, Stream::kPermutation);
  Bitmap chosen(n);
  const int64_t num_blocks = (n + kPermuteBlock - 1) / kPermuteBlock;
  for_each_range(parallel, num_blocks, num_tasks(parallel, num_blocks, 8), [&](int, Range blocks) {
    uint32_t x[kPermuteBlock];
    for (int64_t first = blocks.begin * kPermuteBlock;
         first < blocks.end * kPermuteBlock && first < n; first += kPermuteBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kPermuteBlock, n - first));
      for (int i = 0; i < count; i++) x[i] = static_cast<uint32_t>(first + i);
      permute_block<true>(permutation, static_cast<uint64_t>(n), x, count);
      uint64_t* words = chosen.words() + first / kWordBits;
      std::fill_n(words, (count + kWordBits - 1) / kWordBits, uint64_t{0});
      for (int i = 0; i < count; i++) {
        words[i / kWordBits] |= static_cast<uint64_t>(x[i] < s.k()) << i % kWordBits;
      }
    }
  });
  chosen.list(s.ids, parallel);
}

}  // namespace cpu
}  // namespace dynprune
