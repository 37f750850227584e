// SPDX-License-Identifier: Apache-2.0
// Which accesses a thread may rely on: a vector clock, sparse because grids are large. It travels
// from a release to the acquire that reads from it, so it is immutable and shared.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace emulator {

// key -> clock, sorted by key; a key that is absent has clock 0.
class ClockMap {
  using Entry = std::pair<uint32_t, uint32_t>;

  template <class Entries>
  static auto position(Entries& entries, uint32_t key) {
    return std::lower_bound(entries.begin(), entries.end(), key,
                            [](const Entry& entry, uint32_t k) { return entry.first < k; });
  }

 public:
  uint32_t get(uint32_t key) const {
    const auto found = position(entries_, key);
    return found != entries_.end() && found->first == key ? found->second : 0;
  }

  void raise(uint32_t key, uint32_t clock) {
    const auto found = position(entries_, key);
    if (found != entries_.end() && found->first == key) {
      found->second = std::max(found->second, clock);
    } else {
      entries_.insert(found, {key, clock});
    }
  }

  // Does this say at least what `other` says?
  bool covers(const ClockMap& other) const {
    auto own = entries_.begin();
    for (const auto& [key, clock] : other.entries_) {
      while (own != entries_.end() && own->first < key) ++own;
      if (own == entries_.end() || own->first != key || own->second < clock) return false;
    }
    return true;
  }

  void merge(const ClockMap& other) {
    std::vector<Entry> merged;
    merged.reserve(entries_.size() + other.entries_.size());
    auto a = entries_.begin();
    auto b = other.entries_.begin();
    while (a != entries_.end() || b != other.entries_.end()) {
      if (b == other.entries_.end() || (a != entries_.end() && a->first < b->first)) {
        merged.push_back(*a++);
      } else if (a == entries_.end() || b->first < a->first) {
        merged.push_back(*b++);
      } else {
        merged.push_back({a->first, std::max(a->second, b->second)});
        ++a, ++b;
      }
    }
    entries_ = std::move(merged);
  }

 private:
  std::vector<Entry> entries_;
};

struct Knowledge {
  ClockMap blocks;   // accesses of this block before its n-th barrier are known
  ClockMap threads;  // accesses of this thread with a smaller clock are known

  bool covers(const Knowledge& other) const {
    return blocks.covers(other.blocks) && threads.covers(other.threads);
  }
};

using KnowledgePtr = std::shared_ptr<const Knowledge>;  // null: nothing

inline KnowledgePtr join(const KnowledgePtr& a, const KnowledgePtr& b) {
  if (b == nullptr || a == b) return a;
  if (a == nullptr || b->covers(*a)) return b;
  if (a->covers(*b)) return a;
  auto joined = std::make_shared<Knowledge>(*a);
  joined->blocks.merge(b->blocks);
  joined->threads.merge(b->threads);
  return joined;
}

}  // namespace emulator
