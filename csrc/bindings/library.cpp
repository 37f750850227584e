// SPDX-License-Identifier: Apache-2.0
// Every schema on one page. Each op has one implementation for CPU and CUDA tensors, because the
// checks and allocations are the same. seed: the 64-bit seed as a signed integer. It is not used if
// seed_tensor (0-d int64 on the op's device) is given. Fake kernels and the autograd formula are
// registered in dynprune_cuda/_ops/.
#include "bindings/common.h"

STABLE_TORCH_LIBRARY(dynprune_cuda, m) {
  // ranking: a RankingKind of shared/ranking_spec.h; _C.RANKINGS has the names in order.
  // values: [n], scores, means or weights. float64 only for the rankings by score and by weight.
  // second: [n], variances or counts, only for the rankings by a bound.
  // c: of a bound, the bonus's weight; of draws by weights, the starting point in [0, 1).
  // num_random: of the k ids, drawn uniformly from the rest; only for the ranking by score.
  // Returns int64 [k]. The ranking "explore" is refused.
  m.def(
      "select_ranked(Tensor values, Tensor? second, int ranking, float c, float log_step, int k, "
      "int num_random, Tensor? seed_tensor, int seed, bool ascending) -> Tensor");
  // The result is on the device of `like`, whose contents are not read.
  m.def(
      "select_uniform(Tensor like, int num_samples, int k, Tensor? seed_tensor, int seed, "
      "bool ascending) -> Tensor");
  // The ops of a selection that many processes make together (shared/shard.h). A process holds n
  // samples: first, first + stride, ...

  // Returns the keys of these samples, int32 [n]. float64 and the ranking "explore" are refused.
  m.def(
      "shard_keys(Tensor values, Tensor? second, int ranking, float c, float log_step, int first, "
      "int stride, Tensor? seed_tensor, int seed) -> Tensor");
  // state, greedy, random: int64 [2], a SearchState of shared/shard.h. Returns how many samples
  // fall into each bin of the round's digit, int64 [bins].
  m.def(
      "shard_digit_counts(Tensor keys, Tensor state, Tensor? greedy, bool explore, int round, "
      "int first, int stride, Tensor? seed_tensor, int seed) -> Tensor");
  // Returns the positions of the k selected samples, int64 [k]. k must be their number.
  m.def(
      "shard_positions(Tensor keys, Tensor? greedy, Tensor? random, int k, int first, int stride, "
      "Tensor? seed_tensor, int seed) -> Tensor");
  // The ops of the search that reads the values once. They are for the CPU.

  // Returns the composite keys of `size` random samples of all num_samples, int64 [size]: 0 where
  // another process holds the sample. float64 and the ranking "explore" are refused.
  m.def(
      "shard_sample(Tensor values, Tensor? second, int ranking, float c, float log_step, int "
      "num_samples, int size, int first, int stride, int seed) -> Tensor");
  // sample: the sum over all processes of shard_sample; none for the ranking "explore", of which
  // the values are not read. excluded: bits of samples that do not take part. Returns, of this
  // process's samples:
  // - bits: int64 [ceil(n / 64)], which are above the bracket;
  // - words: int64 [capacity], composite keys of the candidates less the bracket's lower end;
  // - positions: int32 [capacity], where the candidates are;
  // - bracket_info: int64 [4], the number above, the number of candidates, the bracket's two ends.
  // With more candidates than capacity, only bracket_info is valid.
  m.def(
      "shard_bracket(Tensor values, Tensor? second, int ranking, float c, float log_step, Tensor? "
      "sample, Tensor? excluded, int num_samples, int wanted, int capacity, int first, int stride, "
      "int seed) -> (Tensor bits, Tensor words, Tensor positions, Tensor bracket_info)");
  // As shard_digit_counts, for words and a digit of 1 to 11 bits.
  m.def("shard_candidate_counts(Tensor words, Tensor state, int shift, int bits) -> Tensor");
  // Sets the bits of the candidates whose words are at or above the prefix of the state.
  m.def(
      "shard_add_candidates_(Tensor(a!) bits, Tensor words, Tensor positions, Tensor state) -> ()");
  // Returns the ids of the samples whose bits are set, int64 [k]. k must be their number.
  m.def("shard_list(Tensor bits, int k, int count, int first, int stride) -> Tensor");
  // Returns the permutation that select_uniform draws, or its inverse, at the positions first,
  // first
  // + stride, ...; int64 [count].
  m.def(
      "permutation_part(Tensor like, int num_samples, int first, int stride, int count, bool "
      "inverse, Tensor? seed_tensor, int seed) -> Tensor");
  // logits: [B, C], or [G, D, C] for B = G D rows; the gradient is then [G, D, C], or [G, C, D] if
  // the logits have C apart and D not. second_target and lam ([B] or 0-d): both or none.
  m.def(
      "scored_cross_entropy(Tensor logits, Tensor target, Tensor? weight, int ignore_index, "
      "float label_smoothing, Tensor? second_target=None, Tensor? lam=None) -> (Tensor loss, "
      "Tensor el2n, Tensor entropy, Tensor margin, Tensor correct, Tensor saved)");
  m.def(
      "scored_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? "
      "weight, int ignore_index, float label_smoothing, Tensor saved, Tensor? second_target=None, "
      "Tensor? lam=None) -> Tensor");
  // Both without second targets: the gradient replaces the logits, which are contiguous. On the CPU
  // they may also be [B, D, C] whose memory is [B, C, D]. For logits that nothing else reads: no
  // version counter is raised.
  m.def(
      "scored_cross_entropy_with_gradient_(Tensor grad_loss, Tensor(a!) logits, Tensor target, "
      "Tensor? weight, int ignore_index, float label_smoothing) -> (Tensor loss, Tensor el2n, "
      "Tensor entropy, Tensor margin, Tensor correct, Tensor saved)");
  m.def(
      "update_scores_(Tensor(a!) mean, Tensor(b!) variance, Tensor(c!) count, Tensor sample_ids, "
      "Tensor values, float alpha, bool published_first_visit, Tensor(d!)? non_finite_count, "
      "Tensor(e!)? last_non_finite, Tensor? correct=None, Tensor(f!)? last_correct=None, "
      "Tensor(g!)? forget_count=None, int row_reduction=0) -> ()");
  // score, row_reduction, reduction and gradient: the enums of shared/step_contract.h. sample_ids:
  // [B / rows_per_id], each of rows that follow each other; sample_weight too. token_weight: [B].
  // divisor: 0-d, what a mean divides by. ticket: int32 [1] on CUDA,
  // zero before and after. loss: [B], or 0-d for a reduction. scores: [5, B], a row per StepColumn.
  // For GradientTime::kLater 4 rows follow: saved, [B, 4], for scored_cross_entropy_backward.
  // grad_logits: as for scored_cross_entropy, times grad_scale, for kNow, else [0].
  m.def(
      "scored_cross_entropy_step_(Tensor logits, Tensor target, Tensor sample_ids, Tensor(a!) "
      "mean, Tensor(b!) variance, Tensor(c!) count, Tensor(d!)? non_finite_count, Tensor(e!)? "
      "last_non_finite, Tensor(f!)? last_correct, Tensor(g!)? forget_count, Tensor(h!)? ticket, "
      "float alpha, bool published_first_visit, int score, int row_reduction, int rows_per_id, "
      "int reduction, Tensor? sample_weight, Tensor? token_weight, Tensor? divisor, Tensor? "
      "weight, "
      "int ignore_index, float label_smoothing, Tensor? second_target, Tensor? lam, Tensor? "
      "grad_scale, int gradient) -> (Tensor loss, Tensor scores, Tensor correct, Tensor "
      "grad_logits)");
  // The same with probabilities as targets: target [B, C], of the dtype of the logits [B, C] or of
  // the loss.
  m.def(
      "soft_cross_entropy(Tensor logits, Tensor target, Tensor? weight, float label_smoothing) -> "
      "(Tensor loss, Tensor el2n, Tensor entropy, Tensor margin, Tensor correct, Tensor saved)");
  m.def(
      "soft_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor? weight, "
      "float label_smoothing, Tensor saved) -> Tensor");
  m.def(
      "soft_cross_entropy_step_(Tensor logits, Tensor target, Tensor sample_ids, Tensor(a!) mean, "
      "Tensor(b!) variance, Tensor(c!) count, Tensor(d!)? non_finite_count, Tensor(e!)? "
      "last_non_finite, Tensor(f!)? last_correct, Tensor(g!)? forget_count, Tensor(h!)? ticket, "
      "float alpha, bool published_first_visit, int score, int row_reduction, int rows_per_id, "
      "int reduction, Tensor? sample_weight, Tensor? token_weight, Tensor? divisor, Tensor? "
      "weight, float label_smoothing, Tensor? grad_scale, int gradient) -> (Tensor loss, Tensor "
      "scores, Tensor correct, Tensor grad_logits)");
  // Times grad_loss (0-d or [B]) / grad_scale (0-d) in place; nothing is read or written where that
  // is 1.
  m.def("scale_gradient_(Tensor(a!) grad_logits, Tensor grad_loss, Tensor? grad_scale) -> ()");
  // Binary cross-entropy of several labels. logits: [B, L]; target: [B, L] of any float dtype, or
  // bool; weight: [L] or [B, L]; pos_weight: [L]. loss: [B], the mean over the labels.
  m.def(
      "scored_binary_cross_entropy(Tensor logits, Tensor target, Tensor? weight, Tensor? "
      "pos_weight) -> (Tensor loss, Tensor el2n, Tensor entropy, Tensor margin, Tensor correct)");
  m.def(
      "scored_binary_cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, "
      "Tensor? weight, Tensor? pos_weight) -> Tensor");
  // As scored_cross_entropy_step_, of rows that are samples. A sum is over all labels.
  m.def(
      "scored_binary_cross_entropy_step_(Tensor logits, Tensor target, Tensor sample_ids, "
      "Tensor(a!) mean, Tensor(b!) variance, Tensor(c!) count, Tensor(d!)? non_finite_count, "
      "Tensor(e!)? last_non_finite, Tensor(f!)? last_correct, Tensor(g!)? forget_count, "
      "Tensor(h!)? ticket, float alpha, bool published_first_visit, int score, int "
      "row_reduction, int reduction, Tensor? sample_weight, Tensor? divisor, Tensor? weight, "
      "Tensor? pos_weight, Tensor? grad_scale, int gradient) -> (Tensor loss, Tensor scores, "
      "Tensor correct, Tensor grad_logits)");
  // Returns and clears the data errors that kernels recorded on the device of `like`: int64 [4, 2],
  // of each a count and an example. The last example is the bits of a float64.
  m.def("take_errors(Tensor like) -> Tensor");
}
