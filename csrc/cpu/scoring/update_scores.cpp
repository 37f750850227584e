// SPDX-License-Identifier: Apache-2.0
#include "cpu/scoring/update_scores.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "shared/hash.h"

namespace dynprune {
namespace cpu {
namespace {

constexpr int64_t kMinRowsPerTask = 4096;

// The samples of a batch by id: open addressing, at most half full. Slot: with `id`, kNoSample at
// first.
template <class Slot>
class SampleSet {
 public:
  explicit SampleSet(int64_t max_ids) {
    size_t slots = 64;
    while (static_cast<int64_t>(slots) < 2 * max_ids) slots *= 2;
    slots_.resize(slots);
  }
  int64_t num_slots() const { return static_cast<int64_t>(slots_.size()); }
  Slot& operator[](int64_t s) { return slots_[s]; }

  // The sample's slot, or the free one in which it belongs.
  int64_t find(int64_t id) const {
    const int64_t mask = num_slots() - 1;
    int64_t s = static_cast<int64_t>(mix64(static_cast<uint64_t>(id))) & mask;
    while (slots_[s].id != kNoSample && slots_[s].id != id) s = (s + 1) & mask;
    return s;
  }

 private:
  std::vector<Slot> slots_;
};

struct SeenId {
  int64_t id = kNoSample;
};

struct SampleSlot {
  int64_t id = kNoSample;
  size_t place = 0;  // among the samples in order
};

struct Sample {
  int64_t id;
  RowTotal total;
};

// Whether a sample of a task has several rows. The usual batch has none. By hash, a row overwrites
// what was there: most samples have an entry to themselves, and only the others need a set.
bool has_repeats(const ScoreUpdate& u, int task, int tasks) {
  const int64_t* ids = u.sample_ids;
  const int64_t rows = u.batch_size;
  const auto counts = [&](int64_t id) {
    return id != kNoSample && (tasks == 1 || id % tasks == task);
  };
  int bits = 6;
  while (int64_t{1} << bits < 8 * u.max_ids) bits++;
  const auto entry = [&](int64_t id) {
    return static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15ull >> (64 - bits);
  };
  // Not initialised: only what was written is read.
  const std::unique_ptr<int32_t[]> last(new int32_t[size_t{1} << bits]);
  int64_t before = kNoSample;
  for (int64_t row = 0; row < rows; row++) {
    const int64_t id = ids[row];
    if (!counts(id)) continue;
    if (id == before) return true;  // as tokens and pixels are
    last[entry(id)] = static_cast<int32_t>(row);
    before = id;
  }
  std::vector<int64_t> crowded;
  crowded.reserve(static_cast<size_t>(u.max_ids / 8));
  for (int64_t row = 0; row < rows; row++) {
    const int64_t id = ids[row];
    if (!counts(id)) continue;
    const int32_t other = last[entry(id)];
    if (other == row) continue;
    if (ids[other] == id) return true;
    crowded.push_back(id);
  }
  if (crowded.size() < 2) return false;
  SampleSet<SeenId> seen(static_cast<int64_t>(crowded.size()));
  for (const int64_t id : crowded) {
    SeenId& slot = seen[seen.find(id)];
    if (slot.id == id) return true;
    slot.id = id;
  }
  return false;
}

// Enters the samples of one residue: each task has its own samples, so that no two write to one.
template <class Count>
void apply_samples(const ScoreUpdate& u, int task, int tasks) {
  // Rows of one sample that follow each other, as tokens and pixels do, are looked up once.
  const auto for_each_run = [&](const auto& body) {
    for (int64_t begin = 0, end = 0; begin < u.batch_size; begin = end) {
      const int64_t id = u.sample_ids[begin];
      for (end = begin + 1; end < u.batch_size && u.sample_ids[end] == id;) end++;
      if (id != kNoSample && (tasks == 1 || id % tasks == task)) body(Range{begin, end}, id);
    }
  };
  const auto is_correct = [&](int64_t row) { return u.correct != nullptr && u.correct[row]; };
  if (!has_repeats(u, task, tasks)) {
    const ScoreUpdate update = u;  // in registers, since no write to the table can change it
    for (int64_t row = 0; row < update.batch_size; row++) {
      const int64_t id = update.sample_ids[row];
      if (id == kNoSample || (tasks > 1 && id % tasks != task)) continue;
      update.apply<Count>(id, update.values[row], is_correct(row));
    }
    return;
  }
  SampleSet<SampleSlot> samples(u.max_ids);
  std::vector<Sample> in_order;  // of their first rows
  for_each_run([&](Range rows, int64_t id) {
    SampleSlot& slot = samples[samples.find(id)];
    if (slot.id == kNoSample) {
      slot = {id, in_order.size()};
      in_order.push_back({id, RowTotal{}});
    }
    RowTotal& total = in_order[slot.place].total;
    for (int64_t row = rows.begin; row < rows.end; row++) {
      total.add(u.row_reduction, u.values[row], is_correct(row));
    }
  });
  for (const Sample& sample : in_order) {
    u.apply<Count>(sample.id, sample.total.value(u.row_reduction), sample.total.wrong == 0);
  }
}

template <class Count>
void apply(const ScoreUpdate& u, const Parallel& parallel) {
  const int tasks = num_tasks(parallel, u.batch_size, kMinRowsPerTask);
  for_each_range(parallel, tasks, tasks,
                 [&](int task, Range) { apply_samples<Count>(u, task, tasks); });
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
