// SPDX-License-Identifier: Apache-2.0
#include "cpu/scoring/update_scores.h"

#include <vector>

#include "shared/hash.h"

namespace dynprune {
namespace cpu {
namespace {

constexpr int64_t kMinRowsPerTask = 4096;

// A set of sample ids: open addressing, at most half full.
class IdSet {
 public:
  explicit IdSet(int64_t capacity) {
    size_t slots = 64;
    while (static_cast<int64_t>(slots) < 2 * capacity) slots *= 2;
    slots_.assign(slots, kNoSample);
  }
  // False if the id was there already.
  bool insert(int64_t id) {
    const size_t mask = slots_.size() - 1;
    size_t s = mix64(static_cast<uint64_t>(id)) & mask;
    while (slots_[s] != kNoSample) {
      if (slots_[s] == id) return false;
      s = (s + 1) & mask;
    }
    slots_[s] = id;
    return true;
  }

 private:
  std::vector<int64_t> slots_;
};

// From the last row to the first, the first sight of an id is its last occurrence. Each task owns
// the ids of one residue, so that no two write to one sample.
template <class Count>
void apply(const ScoreUpdate& u, const Parallel& parallel) {
  const int tasks = num_tasks(parallel, u.batch_size, kMinRowsPerTask);
  for_each_range(parallel, tasks, tasks, [&](int task, Range) {
    IdSet done(u.batch_size);
    for (int64_t row = u.batch_size - 1; row >= 0; row--) {
      const int64_t id = u.sample_ids[row];
      if (id == kNoSample || (tasks > 1 && id % tasks != task) || !done.insert(id)) continue;
      u.apply<Count>(row, id);
    }
  });
}

}  // namespace

DataStatus update_scores(const ScoreUpdate& u, const Parallel& parallel) {
  for (int64_t row = 0; row < u.batch_size; row++) {
    const int64_t id = u.sample_ids[row];
    if (!is_sample_or_none(id, u.num_samples)) return {false, DataError::kSampleId, row, id};
  }
  update_scores_unchecked(u, parallel);
  return DataStatus{};
}

void update_scores_unchecked(const ScoreUpdate& u, const Parallel& parallel) {
  if (u.count_type == IndexType::kInt32) {
    apply<int32_t>(u, parallel);
  } else {
    apply<int64_t>(u, parallel);
  }
}

}  // namespace cpu
}  // namespace dynprune
