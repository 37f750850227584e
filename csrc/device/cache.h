// SPDX-License-Identifier: Apache-2.0
// A table of the driver's answers that stay the same (driver.h, grid.h). Host only.
#pragma once

#include <map>
#include <mutex>

namespace dynprune {

// Answers by what was asked. Any thread may ask.
template <class Key>
class AnswerCache {
 public:
  // ask() is called until it returns an answer that is not negative: an error is not remembered.
  template <class Ask>
  int get(const Key& key, const Ask& ask) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = answers_.find(key);
    if (found != answers_.end()) return found->second;
    const int answer = ask();
    if (answer >= 0) answers_.emplace(key, answer);
    return answer;
  }

 private:
  std::mutex mutex_;
  std::map<Key, int> answers_;
};

}  // namespace dynprune
