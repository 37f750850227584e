// SPDX-License-Identifier: Apache-2.0
// Every schema on one page. Each op has one implementation for CPU and CUDA tensors, which branches
// inside: the checks and allocations are the same. seed: the 64-bit seed as a signed integer,
// unless seed_tensor (0-d int64 on the op's device) is given. Fake kernels and the autograd formula
// are registered in dynprune_cuda/_ops.py.
#include "bindings/common.h"

STABLE_TORCH_LIBRARY(dynprune_cuda, m) {
  // ranking: a RankingKind of shared/ranking_spec.h, whose names are _C.RANKINGS. values: scores,
  // means or weights [n]; second: variances or counts [n], for the rankings by a bound. float64
  // values are for the rankings by score and by weight. Returns k ids, int64, of which num_random
  // (of the ranking by score only) are drawn uniformly from the rest.
  m.def(
      "select_ranked(Tensor values, Tensor? second, int ranking, float c, float log_step, int k, "
      "int num_random, Tensor? seed_tensor, int seed, bool ascending) -> Tensor");
  // No tensor tells the device here: the result goes to the device of `like`, whose contents are
  // not read.
  m.def(
      "select_uniform(Tensor like, int num_samples, int k, Tensor? seed_tensor, int seed, "
      "bool ascending) -> Tensor");
  // Parts of a selection that many processes make together (shared/shard.h). A process holds the
  // samples first, first + stride, ...: as many as values. Their keys: int32 [n].
  m.def(
      "shard_keys(Tensor values, Tensor? second, int ranking, float c, float log_step, int first, "
      "int stride, Tensor? seed_tensor, int seed) -> Tensor");
  // state, greedy, random: int64 [2], how far a search has come: prefix or threshold, and how many
  // are still wanted. Returns how many samples fall into each bin of the round's digit, int64.
  m.def(
      "shard_digit_counts(Tensor keys, Tensor state, Tensor? greedy, bool explore, int round, "
      "int first, int stride, Tensor? seed_tensor, int seed) -> Tensor");
  // The positions of the first k samples that are selected, int64 [k]: there must be as many.
  m.def(
      "shard_positions(Tensor keys, Tensor? greedy, Tensor? random, int k, int first, int stride, "
      "Tensor? seed_tensor, int seed) -> Tensor");
  // The same in one read, on the CPU, also by the ranking "explore", of which the values are not
  // read. Composite keys, int64 [size], of draws from the num_samples of all processes, 0 where
  // this one does not hold what was drawn.
  m.def(
      "shard_sample(Tensor values, Tensor? second, int ranking, float c, float log_step, int "
      "num_samples, int size, int first, int stride, int seed) -> Tensor");
  // sample: the sum over all processes. Bits, 64 to an int64, [n / 64], also in excluded; composite
  // keys less the lower end of the bracket, and positions, of the candidates, int64 and int32
  // [capacity]; and int64 [4]: how many are above the bracket, how many candidates there are (if
  // more than capacity, nothing else counts), its ends.
  m.def(
      "shard_bracket(Tensor values, Tensor? second, int ranking, float c, float log_step, Tensor? "
      "sample, Tensor? excluded, int num_samples, int wanted, int capacity, int first, int stride, "
      "int seed) -> (Tensor bits, Tensor words, Tensor positions, Tensor bracket_info)");
  // As shard_digit_counts, of words and a digit of 1 to 11 bits.
  m.def("shard_candidate_counts(Tensor words, Tensor state, int shift, int bits) -> Tensor");
  m.def(
      "shard_add_candidates_(Tensor(a!) bits, Tensor words, Tensor positions, Tensor state) -> ()");
  // The ids of the samples whose bits are set, int64 [k]: there must be as many.
  m.def("shard_list(Tensor bits, int k, int count, int first, int stride) -> Tensor");
  // int64 [count]: the permutation that select_uniform draws, or its inverse, at the positions
  // first, first + stride, ...
  m.def(
      "permutation_part(Tensor like, int num_samples, int first, int stride, int count, bool "
      "inverse, Tensor? seed_tensor, int seed) -> Tensor");
  // second_target and lam ([B] or 0-d): both or none.
  m.def(
      "scored_cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, "
      "float label_smoothing, Tensor? second_target=None, Tensor? lam=None) -> (Tensor loss, "
      "Tensor el2n, Tensor entropy, Tensor margin, Tensor correct, Tensor saved)");
  m.def(
      "scored_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? "
      "weight, int ignore_index, float label_smoothing, Tensor saved, Tensor? second_target=None, "
      "Tensor? lam=None) -> Tensor");
  m.def(
      "update_scores_(Tensor(a!) mean, Tensor(b!) variance, Tensor(c!) count, Tensor sample_ids, "
      "Tensor values, float alpha, bool published_first_visit, Tensor(d!)? non_finite_count, "
      "Tensor(e!)? last_non_finite, Tensor? correct=None, Tensor(f!)? last_correct=None, "
      "Tensor(g!)? forget_count=None) -> ()");
  // score, reduction and gradient: the enums of shared/step_contract.h. ticket: int32 [1] on CUDA,
  // zero before and after. loss: [B], or 0-d for a reduction. scores: [5, B], a row per StepColumn.
  // For GradientTime::kLater 4 rows follow: saved, [B, 4], for scored_cross_entropy_backward.
  // grad_logits: [B, C] times grad_scale for kNow, else [0].
  m.def(
      "scored_cross_entropy_step_(Tensor logits, Tensor target, Tensor sample_ids, Tensor(a!) "
      "mean, Tensor(b!) variance, Tensor(c!) count, Tensor(d!)? non_finite_count, Tensor(e!)? "
      "last_non_finite, Tensor(f!)? last_correct, Tensor(g!)? forget_count, Tensor(h!)? ticket, "
      "float alpha, bool published_first_visit, int score, int reduction, Tensor? sample_weight, "
      "Tensor? weight, int ignore_index, float label_smoothing, Tensor? second_target, Tensor? "
      "lam, Tensor? grad_scale, int gradient) -> (Tensor loss, Tensor scores, Tensor correct, "
      "Tensor grad_logits)");
  // Times grad_loss (0-d or [B]) / grad_scale (0-d) in place; nothing is read or written where that
  // is 1.
  m.def("scale_gradient_(Tensor(a!) grad_logits, Tensor grad_loss, Tensor? grad_scale) -> ()");
  // (count, example) of the data errors that kernels recorded on the device of `like`: int64 [3,
  // 2], cleared.
  m.def("take_errors(Tensor like) -> Tensor");
}
