// SPDX-License-Identifier: Apache-2.0
#include "cpu/sharding/bracket_search.h"

#include <tuple>

#include "bindings/ranking.h"
#include "bindings/shard_checks.h"

namespace dynprune {
namespace bindings {
namespace {

void check_total(int64_t num_samples) {
  check(num_samples >= 1 && num_samples <= kMaxSamples, "num_samples must be in [1, 2^32], got ",
        num_samples);
}

int64_t num_words(int64_t num_bits) { return (num_bits + 63) / 64; }

// Of an int64 vector of bits or composite keys.
const uint64_t* checked_words(const Tensor& t, const char* name, int64_t length) {
  check_dtype(t, name, Dtype::Long, "int64");
  check_vector(t, name, length);
  check(t.is_contiguous(), name, " must be contiguous");
  return static_cast<const uint64_t*>(t.const_data_ptr());
}

cpu::ShardTask checked_task(const CheckedRanking& ranked, int64_t first, int64_t stride,
                            int64_t seed) {
  return {ranked.spec, checked_shard(ranked.values.numel(), first, stride, kMaxSamples),
          static_cast<uint64_t>(seed)};
}

// int64 [4]: see library.cpp.
Tensor bracket_info(const Tensor& like, const cpu::Bracketed& out) {
  Tensor info = allocate(like, {4}, Dtype::Long);
  auto* numbers = static_cast<int64_t*>(info.mutable_data_ptr());
  numbers[0] = out.num_above;
  numbers[1] = out.num_candidates;
  numbers[2] = static_cast<int64_t>(out.low);
  numbers[3] = static_cast<int64_t>(out.high);
  return info;
}

}  // namespace

Tensor shard_sample(const Tensor& values, std::optional<Tensor> second, int64_t ranking, double c,
                    double log_step, int64_t num_samples, int64_t size, int64_t first,
                    int64_t stride, int64_t seed) {
  const CheckedRanking ranked =
      checked_ranking(RankingUse::kSearch, values, second, ranking, c, log_step);
  check(ranked.spec.kind != RankingKind::kExplore, "hashes need no sample");
  const cpu::ShardTask task = checked_task(ranked, first, stride, seed);
  check_total(num_samples);
  check(size >= 0 && size <= kMaxSamples, "size must be in [0, 2^32], got ", size);
  const Tensor sample = allocate(values, {size}, Dtype::Long);
  auto* out = static_cast<uint64_t*>(sample.mutable_data_ptr());
  raise_if_bad(cpu::shard_sample(task, num_samples, size, out, torch_threads()), task.shard.count);
  return sample;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> shard_bracket(
    const Tensor& values, std::optional<Tensor> second, int64_t ranking, double c, double log_step,
    std::optional<Tensor> sample, std::optional<Tensor> excluded, int64_t num_samples,
    int64_t wanted, int64_t capacity, int64_t first, int64_t stride, int64_t seed) {
  const CheckedRanking ranked =
      checked_ranking(RankingUse::kSearch, values, second, ranking, c, log_step);
  const cpu::ShardTask task = checked_task(ranked, first, stride, seed);
  const int64_t count = task.shard.count, bitmap_words = num_words(count);
  check(sample.has_value() == (ranked.spec.kind != RankingKind::kExplore),
        "sample is for all rankings but hashes");
  check_total(num_samples);
  check(wanted >= 1 && wanted <= num_samples, "wanted must be in [1, ", num_samples, "], got ",
        wanted);
  check(capacity >= 0 && capacity <= count, "capacity must be in [0, ", count, "], got ", capacity);
  cpu::SearchRange range{num_samples, wanted, nullptr, 0, nullptr};
  if (sample.has_value()) {
    range.sample_size = sample->numel();
    range.sample = checked_words(*sample, "sample", range.sample_size);
  }
  if (excluded.has_value()) range.excluded = checked_words(*excluded, "excluded", bitmap_words);
  const Tensor bits = allocate(values, {bitmap_words}, Dtype::Long);
  const Tensor words = allocate(values, {capacity}, Dtype::Long);
  const Tensor positions = allocate(values, {capacity}, Dtype::Int);
  cpu::Bracketed out{};
  out.bits = static_cast<uint64_t*>(bits.mutable_data_ptr());
  out.words = static_cast<uint64_t*>(words.mutable_data_ptr());
  out.positions = static_cast<uint32_t*>(positions.mutable_data_ptr());
  out.capacity = capacity;
  cpu::shard_bracket(task, range, &out, torch_threads());
  return {bits, words, positions, bracket_info(values, out)};
}

Tensor shard_candidate_counts(const Tensor& words, const Tensor& state, int64_t shift,
                              int64_t bits) {
  const int64_t count = words.numel();
  const uint64_t* data = checked_words(words, "words", count);
  check(bits >= 1 && bits <= 11, "bits must be in [1, 11], got ", bits);
  check(shift >= 0 && shift <= 64 - bits, "shift must be in [0, ", 64 - bits, "], got ", shift);
  const Digit digit = {static_cast<int>(shift), static_cast<int>(bits)};
  const auto* from = reinterpret_cast<const SearchState*>(checked_state(state, "state", words));
  const Tensor counts = allocate(words, {digit.num_bins()}, Dtype::Long);
  cpu::shard_candidate_counts(data, count, *from, digit,
                              static_cast<int64_t*>(counts.mutable_data_ptr()), torch_threads());
  return counts;
}

void shard_add_candidates_(const Tensor& bits, const Tensor& words, const Tensor& positions,
                           const Tensor& state) {
  const int64_t count = words.numel(), bitmap_words = bits.numel();
  checked_words(bits, "bits", bitmap_words);
  const uint64_t* data = checked_words(words, "words", count);
  check_dtype(positions, "positions", Dtype::Int, "int32");
  check_vector(positions, "positions", count);
  check(positions.is_contiguous(), "positions must be contiguous");
  const auto* from = reinterpret_cast<const SearchState*>(checked_state(state, "state", words));
  const bool inside = cpu::shard_add_candidates(
      data, static_cast<const uint32_t*>(positions.const_data_ptr()), count, from->prefix,
      static_cast<uint64_t*>(bits.mutable_data_ptr()), bitmap_words * 64);
  check(inside, "positions must have a bit each");
}

Tensor shard_list(const Tensor& bits, int64_t k, int64_t count, int64_t first, int64_t stride) {
  const Shard shard = checked_shard(count, first, stride, kMaxSamples);
  const uint64_t* bitmap = checked_words(bits, "bits", num_words(count));
  check(k >= 0 && k <= count, "k must be in [0, ", count, "], got ", k);
  const Tensor ids = allocate(bits, {k}, Dtype::Long);
  const int64_t found = cpu::shard_list(
      bitmap, shard, k, static_cast<int64_t*>(ids.mutable_data_ptr()), torch_threads());
  check(found == k, "k must be the number of set bits, ", found, ", got ", k);
  return ids;
}

STABLE_TORCH_LIBRARY_IMPL(dynprune_cuda, CPU, m) {
  m.impl("shard_sample", TORCH_BOX(&shard_sample));
  m.impl("shard_bracket", TORCH_BOX(&shard_bracket));
  m.impl("shard_candidate_counts", TORCH_BOX(&shard_candidate_counts));
  m.impl("shard_add_candidates_", TORCH_BOX(&shard_add_candidates_));
  m.impl("shard_list", TORCH_BOX(&shard_list));
}

}  // namespace bindings
}  // namespace dynprune
