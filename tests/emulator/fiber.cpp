// SPDX-License-Identifier: Apache-2.0
// Fibers: a pooled stack and a context switch each. The hand-written switch costs a few nanoseconds
// where swapcontext, which enters the kernel to save the signal mask, costs hundreds; it is the
// fallback.
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#include "runtime.h"

#if !defined(__x86_64__)
#define EMULATOR_UCONTEXT
#endif
#if defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

constexpr size_t kStacksPerMapping = 64;
constexpr uint64_t kCanary = 0x51317ca9a51317ca;

std::vector<char*> free_stacks;

// ASan must be told about every change of stack.
#if defined(__SANITIZE_ADDRESS__)
void* scheduler_fake_stack;
const void* scheduler_stack;
size_t scheduler_stack_bytes;

void before_resume(Fiber& fiber) {
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, kStackBytes);
}
void after_resume() { __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr); }
void before_suspend(Fiber& fiber) {
  const bool last_time = fiber.state == FiberState::kDone;
  __sanitizer_start_switch_fiber(last_time ? nullptr : &fiber.asan_fake_stack, scheduler_stack,
                                 scheduler_stack_bytes);
}
void after_suspend(Fiber& fiber) {
  __sanitizer_finish_switch_fiber(fiber.asan_fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}
void clean_stack(char* stack) { __asan_unpoison_memory_region(stack, kStackBytes); }
#else
void before_resume(Fiber&) {}
void after_resume() {}
void before_suspend(Fiber&) {}
void after_suspend(Fiber&) {}
void clean_stack(char*) {}
#endif

char* take_stack() {
  if (free_stacks.empty()) {  // pages are committed when first touched
    void* mapping = mmap(nullptr, kStackBytes * kStacksPerMapping, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    for (size_t i = kStacksPerMapping; i-- > 0;) {
      free_stacks.push_back(static_cast<char*>(mapping) + i * kStackBytes);
    }
  }
  char* stack = free_stacks.back();
  free_stacks.pop_back();
  clean_stack(stack);
  *reinterpret_cast<uint64_t*>(stack) = kCanary;
  return stack;
}

void fiber_main() {
  Fiber& self = *current_fiber();
  after_suspend(self);  // this first entry ends the switch that the scheduler began
  runtime.launch.kernel(runtime.launch.arguments);
  finish_current_thread();
  suspend_current_fiber();
  abort();  // a finished fiber is never resumed
}

#if defined(EMULATOR_UCONTEXT)

ucontext_t scheduler_context;

ucontext_t* context_of(Fiber& fiber) { return static_cast<ucontext_t*>(fiber.stack_pointer); }

void prepare_entry(Fiber& fiber) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, fiber_main, 0);
  fiber.stack_pointer = context;
}
void release_entry(Fiber& fiber) { delete context_of(fiber); }
void switch_to(Fiber& fiber) { swapcontext(&scheduler_context, context_of(fiber)); }
void switch_to_scheduler(Fiber& fiber) { swapcontext(context_of(fiber), &scheduler_context); }

#else

void* scheduler_stack_pointer;

// Saves the registers that a call preserves, changes stacks, restores.
extern "C" void emulator_switch_stack(void** save, void* to);
asm(R"(
.text
.globl emulator_switch_stack
.hidden emulator_switch_stack
.type emulator_switch_stack, @function
emulator_switch_stack:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulator_switch_stack, .-emulator_switch_stack
)");

void prepare_entry(Fiber& fiber) {
  constexpr int kSavedRegisters = 6;
  // Tops at different offsets, or all fibers' frames would compete for the same sets of the L1
  // cache.
  const size_t colour = fiber.index % 16 * 192;
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - colour);
  *--top = nullptr;  // where fiber_main would return to; also aligns its frame
  *--top = reinterpret_cast<void*>(fiber_main);
  for (int i = 0; i < kSavedRegisters; i++) *--top = nullptr;
  fiber.stack_pointer = top;
}
void release_entry(Fiber&) {}
void switch_to(Fiber& fiber) {
  emulator_switch_stack(&scheduler_stack_pointer, fiber.stack_pointer);
}
void switch_to_scheduler(Fiber& fiber) {
  emulator_switch_stack(&fiber.stack_pointer, scheduler_stack_pointer);
}

#endif

}  // namespace

void prepare_fiber(Fiber& fiber) {
  fiber.stack = take_stack();
  fiber.asan_fake_stack = nullptr;
  prepare_entry(fiber);
}

void release_fiber(Fiber& fiber) {
  if (*reinterpret_cast<uint64_t*>(fiber.stack) != kCanary && !runtime.aborted) {
    report("a thread of block %u used more than %zu bytes of stack", fiber.block->linear_index,
           kStackBytes);
  }
  release_entry(fiber);
  free_stacks.push_back(fiber.stack);
}

void resume_fiber(Fiber& fiber) {
  runtime.statistics.switches++;
  emulator_current_thread = &fiber;
  before_resume(fiber);
  switch_to(fiber);
  after_resume();
  emulator_current_thread = nullptr;
}

void suspend_current_fiber() {
  Fiber& self = *current_fiber();
  before_suspend(self);
  switch_to_scheduler(self);
  after_suspend(self);
}

}  // namespace emulator
