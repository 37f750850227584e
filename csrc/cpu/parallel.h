// SPDX-License-Identifier: Apache-2.0
// How the CPU launchers use several threads without knowing whose pool it is: the bindings hand in
// torch's.
#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace dynprune {
namespace cpu {

struct Parallel {
  int num_threads;
  // Runs task(context, i) for 0 <= i < num_tasks, in any order, and returns when all are done.
  void (*run)(int num_tasks, void (*task)(void* context, int i), void* context);
};

// While it lives, this thread keeps subnormal numbers: torch.set_flush_denormal must not change a
// subset, least of all in some threads only.
class KeepSubnormals {
 public:
#if defined(__SSE__)
  KeepSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ & ~kFlushBits); }
  ~KeepSubnormals() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kFlushBits = 0x8040;  // flush to zero, and denormals are zero
  unsigned saved_;
#else
  KeepSubnormals() {}
#endif
};

// A half-open range of indices.
struct Range {
  int64_t begin, end;
};

// Splits [0, n) into num_tasks nearly equal ranges and calls body(task, range) for each.
template <class Body>
void for_each_range(const Parallel& parallel, int64_t n, int num_tasks, const Body& body) {
  struct Context {
    const Body* body;
    int64_t n;
    int num_tasks;
  } context{&body, n, num_tasks};
  const auto task = [](void* opaque, int i) {
    const KeepSubnormals keep_subnormals;
    const Context& c = *static_cast<Context*>(opaque);
    const int64_t each = c.n / c.num_tasks, rest = c.n % c.num_tasks;
    const int64_t begin = i * each + (i < rest ? i : rest);
    (*c.body)(i, Range{begin, begin + each + (i < rest ? 1 : 0)});
  };
  if (num_tasks == 1) {
    task(&context, 0);
  } else {
    parallel.run(num_tasks, task, &context);
  }
}

// One task per thread, but none with fewer than min_per_task indices.
inline int num_tasks(const Parallel& parallel, int64_t n, int64_t min_per_task) {
  const int64_t most = n / min_per_task;
  return static_cast<int>(most < 1 ? 1
                                   : (most < parallel.num_threads ? most : parallel.num_threads));
}

}  // namespace cpu
}  // namespace dynprune
