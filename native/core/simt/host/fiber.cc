#include "core/simt/host/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#ifndef VARLEN_SIMT_UCONTEXT
// Stores the callee-saved registers on the running stack, its pointer in *from, and goes on with
// the stack `to`. A fresh stack holds zeros for the registers and the address of the entry.
extern "C" void varlen_simt_switch(void** from, void* to);
extern "C" void varlen_simt_start();
#if defined(__x86_64__)
asm(R"(
.text
.globl varlen_simt_switch
.hidden varlen_simt_switch
.type varlen_simt_switch,@function
varlen_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size varlen_simt_switch,.-varlen_simt_switch
.globl varlen_simt_start
.hidden varlen_simt_start
.type varlen_simt_start,@function
varlen_simt_start:
  movq %r12, %rdi
  callq *%r13
  ud2
.size varlen_simt_start,.-varlen_simt_start
)");
#else
asm(R"(
.text
.globl varlen_simt_switch
.hidden varlen_simt_switch
.type varlen_simt_switch,%function
varlen_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size varlen_simt_switch,.-varlen_simt_switch
.globl varlen_simt_start
.hidden varlen_simt_start
.type varlen_simt_start,%function
varlen_simt_start:
  mov x0, x19
  blr x20
  brk #1
.size varlen_simt_start,.-varlen_simt_start
)");
#endif
#endif

namespace varlen::simt {

void EnterFiber(Fiber* self) { Fiber::Enter(self); }

Fiber::~Fiber() {
#if defined(__SANITIZE_THREAD__)
  if (own_shadow_ != nullptr) __tsan_destroy_fiber(own_shadow_);
#endif
}

void Fiber::Enter(Fiber* self) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self->caller_stack_, &self->caller_bytes_);
#endif
  self->entry_(self->argument_);
  std::abort();  // entry ends with Finish()
}

void Fiber::Start(char* stack, size_t bytes, void (*entry)(void*), void* argument) {
  stack_ = stack;
  bytes_ = bytes;
  entry_ = entry;
  argument_ = argument;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, bytes);  // the red zones of abandoned frames
#endif
#if defined(__SANITIZE_THREAD__)
  if (own_shadow_ == nullptr) own_shadow_ = __tsan_create_fiber(0);
#else
  own_shadow_ = nullptr;
#endif
#if defined(VARLEN_SIMT_UCONTEXT)
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack;
  own_.uc_stack.ss_size = bytes;
  own_.uc_link = nullptr;
  // makecontext passes ints only.
  const auto self = reinterpret_cast<uintptr_t>(this);
  makecontext(&own_, reinterpret_cast<void (*)()>(+[](unsigned high, unsigned low) {
    EnterFiber(reinterpret_cast<Fiber*>((uint64_t{high} << 32) | low));
  }),
              2, static_cast<unsigned>(uint64_t{self} >> 32), static_cast<unsigned>(self));
#else
  auto** top =
      reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
#if defined(__x86_64__)
  // From low to high: r15 r14 r13 r12 rbx rbp, return address, and two words that make the stack
  // 16-byte aligned before the call in varlen_simt_start.
  top -= 9;
  for (int i = 0; i < 9; ++i) top[i] = nullptr;
  top[2] = reinterpret_cast<void*>(&EnterFiber);         // r13
  top[3] = this;                                         // r12
  top[6] = reinterpret_cast<void*>(&varlen_simt_start);  // return address
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = nullptr;
  top[0] = this;                                          // x19
  top[1] = reinterpret_cast<void*>(&EnterFiber);          // x20
  top[11] = reinterpret_cast<void*>(&varlen_simt_start);  // x30
#endif
  own_ = top;
#endif
}

void Fiber::Resume() {
#if defined(__SANITIZE_ADDRESS__)
  void* shadow = nullptr;
  __sanitizer_start_switch_fiber(&shadow, stack_, bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
  caller_shadow_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(own_shadow_, 0);
#endif
#ifdef VARLEN_SIMT_UCONTEXT
  swapcontext(&caller_, &own_);
#else
  varlen_simt_switch(&caller_, own_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(shadow, nullptr, nullptr);
#endif
}

void Fiber::SwitchBack([[maybe_unused]] bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &own_shadow_, caller_stack_, caller_bytes_);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(caller_shadow_, 0);
#endif
#ifdef VARLEN_SIMT_UCONTEXT
  swapcontext(&own_, &caller_);
#else
  varlen_simt_switch(&own_, caller_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(own_shadow_, &caller_stack_, &caller_bytes_);
#endif
}

void Fiber::Suspend() { SwitchBack(false); }

void Fiber::Finish() {
  SwitchBack(true);
  std::abort();  // a finished fiber is never resumed
}

size_t FiberStacks::bytes() {
  // Sanitizers and unoptimised code widen every frame.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
  return 512 << 10;
#else
  return 64 << 10;
#endif
}

FiberStacks::FiberStacks(int count) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t stride = bytes() + page;
  total_ = stride * count;
  void* memory = mmap(nullptr, total_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  for (int i = 0; i < count; ++i) mprotect(memory_ + stride * i, page, PROT_NONE);
}

FiberStacks::~FiberStacks() { munmap(memory_, total_); }

char* FiberStacks::stack(int index) const {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return memory_ + (bytes() + page) * index + page;
}

}  // namespace varlen::simt
