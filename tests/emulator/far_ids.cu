// SPDX-License-Identifier: Apache-2.0
// Selection kernels at the far end of 2^32 samples, where no memory here holds what comes before:
// the grid starts at its last blocks, and scores are computed from the id.
#include <vector>

#include "kernels/selection/select_streaming.cuh"

using namespace dynprune;
using namespace dynprune::cuda;

namespace {

// Key 3 is above the bracket [1, 2], 2 is selected, 1 is a candidate that is not, 0 is out.
struct FarRanking {
  using Key = uint32_t;
  struct Raw {};
  using Hash = NoHash;
  static constexpr bool kChecked = false;

  __device__ Raw load(int64_t) const { return {}; }
  __device__ Key key_of(Raw, int64_t id, const Hash&) const {
    if (id % 3 == 0) return 3;
    if (id % 5 == 0) return id % 2 == 0 ? 2 : 1;
    return 0;
  }
};

void run_from(unsigned block) {
  EmulatorConfig config = {0, 64, 0, 0, 1, 4, 227 * 1024, static_cast<int32_t>(block)};
  emulator_configure(&config);
}

}  // namespace

// Classifies and lists the last two tiles, as if `before` ids had been selected in the tiles
// before. Returns how many ids it found, and the ids in out[8192].
extern "C" int list_last_tiles(int ascending, int64_t before, int64_t* out) {
  constexpr int64_t kN = int64_t{1} << 32, kCapacity = 8192;
  constexpr unsigned kTiles = 1u << 20, kFirst = kTiles - 2;
  SelectState state = {};
  state.low = {1, 0};
  state.high = {2, 0xffffffffu};
  state.greedy = {2, 0};
  const SelectTask<FarRanking> task = {{}, kN, kN, 0, {7, nullptr}, {0, 0}, &state, nullptr};

  // Zero pages cost nothing until they are written.
  const auto zeros = [](size_t bytes) { return calloc(bytes, 1); };
  auto* bitmap = static_cast<uint32_t*>(zeros(size_t{kTiles} * kWordsPerTile * 4));
  auto* tiles = static_cast<TileCandidates*>(zeros(size_t{kTiles} * sizeof(TileCandidates)));
  auto* compact = static_cast<CompactState*>(zeros(CompactState::bytes(kN)));
  std::vector<uint32_t> keys(kCapacity), ids(kCapacity);
  run_from(kFirst);
  DYNPRUNE_LAUNCH((classify_kernel<FarRanking>), kTiles, kClassifyThreads, 0, nullptr, task,
                  kCapacity, bitmap, tiles, keys.data(), ids.data());

  compact->ticket = kFirst;
  // The tiles just before have been counted, each differently; the look-back needs three windows of
  // 32 to reach one that knows its prefix.
  constexpr unsigned kCounted = 70;
  int64_t counted = 0;
  for (unsigned t = kFirst - kCounted; t < kFirst; t++) {
    compact->tiles()[t] = kTileCounted | (t % 97);
    counted += t % 97;
  }
  for (unsigned t = kFirst - kCounted - kWarpSize; t < kFirst - kCounted; t++) {
    compact->tiles()[t] = kTilePrefixed | static_cast<unsigned long long>(before - counted);
  }
  RankDirectory directory = {};
  directory.bitmap = bitmap;
  directory.num_groups = int64_t{kTiles} * kGroupsPerTile;
  directory.before = static_cast<uint32_t*>(zeros(static_cast<size_t>(directory.num_groups) * 4));
  directory.samples = static_cast<uint32_t*>(zeros(static_cast<size_t>(kN / kGroup) * 4));
  DYNPRUNE_LAUNCH((list_kernel<FarRanking>), kTiles, kListThreads, 0, nullptr, task, compact,
                  bitmap, tiles, keys.data(), ids.data(), directory,
                  ascending != 0 ? out - before : nullptr);
  run_from(0);
  const unsigned long long all = compact->tiles()[kTiles - 1] & kTileCount;
  const int count = static_cast<int>(static_cast<int64_t>(all) - before);
  if (ascending == 0) {
    directory.k = before + count;
    // The first ranks lie in a sample that began before the first of these tiles.
    directory.samples[before / kGroup] = kFirst * kGroupsPerTile;
    for (int i = 0; i < count; i++) out[i] = directory(static_cast<uint64_t>(before + i));
  }
  free(bitmap), free(tiles), free(compact), free(directory.before), free(directory.samples);
  return count;
}
