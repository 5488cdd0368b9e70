// Fibers: stacks between which one operating system thread switches. A block's threads run on them.
#pragma once

#include <cstddef>
#if !defined(__x86_64__) || defined(STANDIN_UCONTEXT)
#define STANDIN_USE_UCONTEXT 1
#include <ucontext.h>
#endif

namespace standin {

// Where a fiber (or the thread that runs fibers) goes on when it is switched to.
struct Fiber {
#ifdef STANDIN_USE_UCONTEXT
  ucontext_t context;
#else
  void* stack_pointer;
#endif
  const void* stack = nullptr;  // lowest address
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// Gives a fiber a stack of its own, with a page below it that faults. Stacks are kept for the life of the process.
void allocate_stack(Fiber& fiber, unsigned number);

// Makes a fiber begin `body` when it is switched to next; what ran on its stack is forgotten. `body` first calls
// `entered` and never returns.
void begin(Fiber& fiber, void (*body)());
void entered();

// Makes `fiber` stand for the operating system thread that calls, so that it can be switched from.
void adopt_thread(Fiber& fiber);

// Goes on with `to`; returns when something switches back to `from`.
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace standin
