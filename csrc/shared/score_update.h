// SPDX-License-Identifier: Apache-2.0
// The moving averages of one sample, by the rule of the UCB baseline that the InfoBatch authors
// released. The variance takes the new value's distance to the old mean. alpha is the weight of the
// new value.
#pragma once

#include "shared/row_reduction.h"
#include "shared/scalar_types.h"

namespace dynprune {

// Variance after the first visit. kZero: 0, since nothing is known of the spread yet. kPublished:
// alpha * value^2, as in the published code, whose mean starts at 0.
enum class FirstVisit { kZero, kPublished };

// The greatest float instead of infinity, which no later value would ever lower.
DYNPRUNE_HD float saturate(float x) { return x < 3.402823466e38f ? x : 3.402823466e38f; }
DYNPRUNE_HD float square(float x) { return saturate(mul_rn(x, x)); }

// The score table's columns, one element per sample. All but the first three may be null.
template <class Count>
struct ScoreColumns {
  float* mean;
  float* variance;
  Count* count;
  int32_t* non_finite_count;
  bool* last_non_finite;
  bool* last_correct;
  int32_t* forget_count;

  // A non-finite value changes no average; it is counted, and the sample is marked until a finite
  // one comes.
  DYNPRUNE_HD void update(int64_t id, float new_value, float alpha, FirstVisit first_visit) const {
    const float value = add_rn(new_value, 0.0f);  // no -0: a sum of rows has none
    const bool finite = value - value == 0.0f;
    if (last_non_finite != nullptr) last_non_finite[id] = !finite;
    if (!finite) {
      if (non_finite_count != nullptr) non_finite_count[id] += 1;
      return;
    }
    if (count[id] == 0) {
      mean[id] = value;
      variance[id] = first_visit == FirstVisit::kZero ? 0.0f : mul_rn(alpha, square(value));
    } else {
      const float old_mean = mean[id];
      const float distance = sub_rn(value, old_mean);
      const float beta = sub_rn(1.0f, alpha);
      mean[id] = add_rn(mul_rn(beta, old_mean), mul_rn(alpha, value));
      variance[id] = saturate(add_rn(mul_rn(beta, variance[id]), mul_rn(alpha, square(distance))));
    }
    count[id] += 1;
  }

  // A forgetting event: classified correctly at the last visit, and not at this one.
  DYNPRUNE_HD void update_correct(int64_t id, bool correct) const {
    if (forget_count != nullptr && last_correct[id] && !correct) forget_count[id] += 1;
    last_correct[id] = correct;
  }
};

// The id of a row that belongs to no sample (an ignored target, padding): skipped without an error.
constexpr int64_t kNoSample = -1;

// A call of update_scores_, as its launchers take it.
struct ScoreUpdate {
  float* mean;      // [N]
  float* variance;  // [N]
  void* count;      // [N] of count_type (int32 or int64)
  IndexType count_type;
  int32_t* non_finite_count;   // [N] or null
  bool* last_non_finite;       // [N] or null
  int64_t num_samples;         // N
  const int64_t* sample_ids;   // [B]; kNoSample is skipped; an id may occur any number of times
  const float* values;         // [B]
  int64_t batch_size;          // B < 2^31
  int64_t max_ids;             // elements of sample_ids: at most so many different ids
  RowReduction row_reduction;  // of the values of an id; one visit
  float alpha;
  FirstVisit first_visit;
  // [B], or null: the next two are left alone. A sample is correct if all of its rows are.
  const bool* correct;
  bool* last_correct;     // [N], or null with correct
  int32_t* forget_count;  // [N] or null

  // A visit of a sample. is_correct is read only if `correct` is given.
  template <class Count>
  DYNPRUNE_HD void apply(int64_t id, float value, bool is_correct) const {
    const ScoreColumns<Count> columns{
        mean,         variance,    static_cast<Count*>(count), non_finite_count, last_non_finite,
        last_correct, forget_count};
    columns.update(id, value, alpha, first_visit);
    if (correct != nullptr) columns.update_correct(id, is_correct);
  }
};

}  // namespace dynprune
