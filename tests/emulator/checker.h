// SPDX-License-Identifier: Apache-2.0
// What the runtime tells the checker. Only check builds (EMULATOR_CHECK) have one; elsewhere these
// are empty.
#pragma once

#include "runtime.h"

namespace emulator {

enum class MemoryKind : uint8_t { kGlobal, kShared };

#if defined(EMULATOR_CHECK)
void checker_begin_launch();
void checker_begin_block(Block& block);
void checker_end_block(Block& block);
void checker_barrier(Block& block);  // complete; its threads still wait
void checker_syncwarp(Block& block, unsigned warp, unsigned mask);
void checker_fence(Fiber& fiber, bool device_scope);
void checker_add_range(const void* address, size_t bytes, const char* name, MemoryKind kind);
void checker_remove_range(const void* address);
void checker_mark_initialised(const void* address, size_t bytes, bool initialised);
void checker_memset(const void* address, size_t bytes);
#else
inline void checker_begin_launch() {}
inline void checker_begin_block(Block&) {}
inline void checker_end_block(Block&) {}
inline void checker_barrier(Block&) {}
inline void checker_syncwarp(Block&, unsigned, unsigned) {}
inline void checker_fence(Fiber&, bool) {}
inline void checker_add_range(const void*, size_t, const char*, MemoryKind) {}
inline void checker_remove_range(const void*) {}
inline void checker_mark_initialised(const void*, size_t, bool) {}
inline void checker_memset(const void*, size_t) {}
#endif

}  // namespace emulator
