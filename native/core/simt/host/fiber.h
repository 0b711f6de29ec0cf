#pragma once

#include <cstddef>

#if !defined(VARLEN_SIMT_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define VARLEN_SIMT_UCONTEXT
#endif
#ifdef VARLEN_SIMT_UCONTEXT
#include <ucontext.h>
#endif

namespace varlen::simt {

// A stack of its own and the place where its code stands. One GPU thread each. Switching saves the
// callee-saved registers and the stack pointer only: 7 to 8 times faster than ucontext, which also
// saves the signal mask by a system call and remains as the fallback.
class Fiber {
 public:
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next Resume() calls entry(argument) on this stack. `entry` must end with Finish().
  // Starting again abandons whatever stood on the stack.
  void Start(char* stack, size_t bytes, void (*entry)(void*), void* argument);
  // Runs the fiber until it suspends or finishes.
  void Resume();
  // Inside the fiber: back to the caller of Resume().
  void Suspend();
  [[noreturn]] void Finish();

 private:
  static void Enter(Fiber* self);
  friend void EnterFiber(Fiber* self);
  void SwitchBack(bool last);

#ifdef VARLEN_SIMT_UCONTEXT
  ucontext_t own_;
  ucontext_t caller_;
#else
  void* own_ = nullptr;  // stack pointers
  void* caller_ = nullptr;
#endif
  char* stack_ = nullptr;
  size_t bytes_ = 0;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  // What the sanitizers want to know about the two stacks.
  void* own_shadow_ = nullptr;
  void* caller_shadow_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_bytes_ = 0;
};

// Stacks for `count` fibers, each with a guard page below it.
class FiberStacks {
 public:
  explicit FiberStacks(int count);
  ~FiberStacks();
  FiberStacks(const FiberStacks&) = delete;
  FiberStacks& operator=(const FiberStacks&) = delete;

  char* stack(int index) const;
  static size_t bytes();

 private:
  char* memory_;
  size_t total_;
};

}  // namespace varlen::simt
