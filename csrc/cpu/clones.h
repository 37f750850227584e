// SPDX-License-Identifier: Apache-2.0
// Marks a function whose inner loop is worth a wider vector unit: it is compiled for AVX2 with FMA
// too, and the loader takes what the machine has. Fused and unfused arithmetic never differ: see
// primitives/portable.h.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define DYNPRUNE_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
// With AVX-512 too, for exponentials: half as many operations wait for each other.
#define DYNPRUNE_WIDE_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DYNPRUNE_CLONES
#define DYNPRUNE_WIDE_CLONES
#endif
