// SPDX-License-Identifier: Apache-2.0
// Parts of csrc/device apart from the kernels that use them.
#include <cstddef>

#include "device/cache.h"
#include "kernels/selection/select_plan.h"

using namespace dynprune;

namespace {

// One block. out: low and bits of both intervals, then the passes over the words of both searches
// together, and of one after the other.
__global__ void __launch_bounds__(kSearchThreads)
    search_kernel(const uint64_t* words, int n, unsigned long long first_wanted,
                  unsigned long long second_wanted, unsigned long long enough, uint64_t* out) {
  DYNPRUNE_SHARED(SearchShared, shared, [2]);
  unsigned passes = 0;
  const auto items = [&](const auto& visit) {
    passes++;
    for (int begin = 0; begin < n; begin += kSearchThreads) {
      const int i = begin + static_cast<int>(threadIdx.x);
      visit(i < n, i < n ? words[i] : 0);
    }
  };
  DigitSearch first(&shared[0], nullptr), second(&shared[1], nullptr);
  auto a = Interval<uint64_t>::whole(), b = a;
  DigitSearch::narrow_both(&first, &a, first_wanted, &second, &b, second_wanted, enough, items);
  const unsigned together = passes;
  auto c = Interval<uint64_t>::whole(), d = c;
  first.narrow(&c, first_wanted, enough, items);
  first.narrow(&d, second_wanted, enough, items);
  if (threadIdx.x != 0) return;
  const uint64_t results[] = {a.low,    static_cast<uint64_t>(a.bits),
                              b.low,    static_cast<uint64_t>(b.bits),
                              c.low,    static_cast<uint64_t>(c.bits),
                              d.low,    static_cast<uint64_t>(d.bits),
                              together, passes - together};
  for (int i = 0; i < 10; i++) out[i] = results[i];
}

}  // namespace

extern "C" int search_twice(const uint64_t* words, int n, uint64_t first_wanted,
                            uint64_t second_wanted, uint64_t enough, uint64_t* out) {
  DYNPRUNE_LAUNCH((search_kernel), 1, kSearchThreads, 0, nullptr, words, n, 0ull + first_wanted,
                  0ull + second_wanted, 0ull + enough, out);
  return cudaGetLastError();
}

// Asks a cache that answers `answer` where it has to ask. Returns the answer; *asked: how often it
// had to ask so far.
extern "C" int ask_cache(int key, int answer, int* asked) {
  static AnswerCache<int> cache;
  static int count = 0;
  const int got = cache.get(key, [&] {
    count++;
    return answer;
  });
  *asked = count;
  return got;
}

// The cache lines of a SelectState's members: first what every block reads, then what every block
// adds to.
extern "C" int select_state_lines(int* lines) {
  using cuda::SelectState;
  const size_t offsets[] = {
      offsetof(SelectState, low),           offsetof(SelectState, high),
      offsetof(SelectState, missed),        offsetof(SelectState, num_in),
      offsetof(SelectState, num_in_random), offsetof(SelectState, num_candidates),
      offsetof(SelectState, bracket_ticket)};
  int count = 0;
  for (const size_t offset : offsets) lines[count++] = static_cast<int>(offset / kCacheLine);
  return count;
}
