#include "fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef STANDIN_USE_UCONTEXT
// Saves what a called function must keep, exchanges the stacks, takes up what the other one saved. The processor
// predicts that `ret` goes where this was called from. That is right: the threads of a block wait at the same calls.
extern "C" void standin_switch(void** save_stack_pointer, void* next_stack_pointer);
asm(R"(
.text
.p2align 4
.globl standin_switch
.hidden standin_switch
.type standin_switch, @function
standin_switch:
  push %rbx
  push %rbp
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
  pop %rbp
  pop %rbx
  ret
.size standin_switch, . - standin_switch
)");
#endif

namespace standin {

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t STACK_BYTES = 512 << 10;
#else
constexpr size_t STACK_BYTES = 128 << 10;
#endif
constexpr size_t CACHE_LINE = 64;
constexpr unsigned STAGGER = 61;

// All stacks begin at a page: without a stagger their busiest lines would all fall into one cache set.
size_t stagger(unsigned number) { return number % STAGGER * CACHE_LINE; }

}  // namespace

void allocate_stack(Fiber& fiber, unsigned number) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory =
      mmap(nullptr, page + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) {
    perror("the stand-in for the CUDA driver: no memory for the stack of a thread");
    abort();
  }
  fiber.stack = static_cast<char*>(memory) + page;
  fiber.stack_bytes = STACK_BYTES - stagger(number);
}

void begin(Fiber& fiber, void (*body)()) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
  fiber.fake_stack = nullptr;
#endif
#ifdef STANDIN_USE_UCONTEXT
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = const_cast<void*>(fiber.stack);
  fiber.context.uc_stack.ss_size = fiber.stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, body, 0);
#else
  const uintptr_t top = (reinterpret_cast<uintptr_t>(fiber.stack) + fiber.stack_bytes) & ~uintptr_t{15};
  void** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;  // where `body` would return to; it also aligns the stack as a call does
  *--slot = reinterpret_cast<void*>(body);
  for (int saved = 0; saved < 6; ++saved) *--slot = nullptr;
  fiber.stack_pointer = slot;
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#ifdef STANDIN_USE_UCONTEXT
  swapcontext(&from.context, &to.context);
#else
  standin_switch(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void entered() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void adopt_thread([[maybe_unused]] Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
  static thread_local Fiber here;
  if (here.stack == nullptr) {
    pthread_attr_t attributes;
    void* stack = nullptr;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &here.stack_bytes);
    pthread_attr_destroy(&attributes);
    here.stack = stack;
  }
  fiber = here;
#endif
}

}  // namespace standin
