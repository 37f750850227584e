// SPDX-License-Identifier: Apache-2.0
// The numbers that scored_cross_entropy_step_ takes and returns, and their names. The compiled
// module exports the names. dynprune_cuda/_ops/contract.py mirrors them, and a test compares both.
#pragma once

namespace dynprune {

// Each list of names is in the order of its enum.

enum class Score : int { kLoss = 0, kEl2n, kEntropy, kMargin };  // kMargin: its negative
constexpr char kScoreNames[] = "loss el2n entropy margin";

enum class Reduction : int { kNone = 0, kMean, kSum };
constexpr char kReductionNames[] = "none mean sum";

// How the rows of one sample in a batch become its value. By rows that count.
enum class RowReduction : int { kMean = 0, kSum, kMax };
constexpr char kRowReductionNames[] = "mean sum max";

// When the gradient is computed: not at all, by the step, or by scored_cross_entropy_backward.
enum class GradientTime : int { kNever = 0, kNow, kLater };
constexpr char kGradientTimeNames[] = "never now later";

// The rows of the step's result `scores`, [kNumStepColumns, B]. kLoss is unweighted. kRowWeight is
// the derivative of the sum of the step's `loss` by kLoss.
enum class StepColumn : int { kLoss = 0, kEl2n, kEntropy, kMargin, kRowWeight };
constexpr char kStepColumnNames[] = "loss el2n entropy margin row_weight";

// The members of SavedRow in shared/cross_entropy_row.h, which backward reads.
enum class SavedColumn : int { kMax = 0, kLogNormaliser, kMiss, kSumWeight };
constexpr char kSavedColumnNames[] = "max log_normaliser miss sum_weight";

constexpr int count_names(const char* names) {
  int count = 1;
  for (; *names != '\0'; names++) count += *names == ' ';
  return count;
}
constexpr int kNumScores = count_names(kScoreNames);
constexpr int kNumReductions = count_names(kReductionNames);
constexpr int kNumRowReductions = count_names(kRowReductionNames);
constexpr int kNumGradientTimes = count_names(kGradientTimeNames);
constexpr int kNumStepColumns = count_names(kStepColumnNames);
constexpr int kNumSavedColumns = count_names(kSavedColumnNames);

static_assert(kNumScores == static_cast<int>(Score::kMargin) + 1, "a name per score");
static_assert(kNumReductions == static_cast<int>(Reduction::kSum) + 1, "a name per reduction");
static_assert(kNumRowReductions == static_cast<int>(RowReduction::kMax) + 1, "a name per kind");
static_assert(kNumGradientTimes == static_cast<int>(GradientTime::kLater) + 1, "a name per time");
static_assert(kNumStepColumns == static_cast<int>(StepColumn::kRowWeight) + 1, "a name per column");
static_assert(kNumSavedColumns == static_cast<int>(SavedColumn::kSumWeight) + 1,
              "a name per column");

}  // namespace dynprune
