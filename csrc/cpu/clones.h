// SPDX-License-Identifier: Apache-2.0
// Code that is worth a wider vector unit is compiled for several, and this machine's is taken.
// Fused and unfused arithmetic never differ: see shared/portable.h.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define DYNPRUNE_X86_CLONES 1
// Marks a function with an inner loop that the compiler makes vectors of: AVX2 with FMA, or not.
#define DYNPRUNE_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define DYNPRUNE_CLONES
#endif
#define DYNPRUNE_INLINE inline __attribute__((always_inline))

namespace dynprune {
namespace cpu {

#if defined(DYNPRUNE_X86_CLONES)
template <class Body, class... Args>
__attribute__((target("arch=x86-64-v4"))) void run_with_avx512(Args... args) {
  Body::template run<64>(args...);
}
template <class Body, class... Args>
__attribute__((target("arch=x86-64-v3"))) void run_with_avx2(Args... args) {
  Body::template run<32>(args...);
}
#endif

// Calls Body::run<kBytes>(args...), compiled for vectors of kBytes: the widest that there are.
// `run` and all that it calls must be DYNPRUNE_INLINE.
template <class Body, class... Args>
void run_widest(Args... args) {
#if defined(DYNPRUNE_X86_CLONES)
  static const int bytes = __builtin_cpu_supports("x86-64-v4")   ? 64
                           : __builtin_cpu_supports("x86-64-v3") ? 32
                                                                 : 16;
  if (bytes == 64) return run_with_avx512<Body>(args...);
  if (bytes == 32) return run_with_avx2<Body>(args...);
#endif
  Body::template run<16>(args...);
}

}  // namespace cpu
}  // namespace dynprune
