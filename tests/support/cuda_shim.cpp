// Runs kernels on the host, one block after the other. Each thread is a fiber: it runs until it has
// to wait for others, and whoever does not wait leaves its stack to the next thread.
#include "cuda_shim.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace edgeadapt {
namespace host {

Index thread_index, block_index, block_extent, grid_extent;
uint64_t block_serial = 0;

namespace {

// Saves what a function must leave as it was, then goes on where `load` was saved.
extern "C" void ea_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
  .text
  .type ea_switch, @function
ea_switch:
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
  .size ea_switch, .-ea_switch
)");
constexpr int saved_words = 8, return_word = 6;
#elif defined(__aarch64__)
asm(R"(
  .text
  .type ea_switch, @function
ea_switch:
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
  mov x2, sp
  str x2, [x0]
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
  .size ea_switch, .-ea_switch
)");
constexpr int saved_words = 20, return_word = 11;
#else
#error "a fiber needs ea_switch() for this CPU"
#endif

constexpr size_t stack_bytes = 256 * 1024;  // touched pages only take memory

struct Stack {
  char* bottom;
  void* pointer;  // of the fiber while it is not running
};

enum class State { ready, in_block, in_warp, ended };

struct Thread {
  Stack* stack;
  State state;
  const char* file;  // where it waits
  int line;
};

struct Warp {
  int waiting;
  int turn;        // which of the two sets of slots is being filled
  Slot slots[2][32];  // two: a thread may come back before all have read
};

Kernel* kernels = nullptr;
SharedMemory* shared = nullptr;

const Kernel* kernel;
const void* arguments;
std::vector<Thread> threads;
std::vector<Warp> warps;

struct Copy {
  void* to;
  const void* from;
  bool real;   // else zeros
  int groups;  // that ended since: its own is the first
};

std::vector<std::vector<Copy>> copies;  // of each thread, under way
std::vector<Stack*> idle;
int current;          // the thread that runs
int waiting;          // of the block, at a barrier
void* scheduler;      // its stack pointer
char message[1024];   // empty while all is well

void fail(const char* text, const char* file, int line) {
  if (message[0] == 0) {
    snprintf(message, sizeof message, "%s: block (%u, %u, %u), thread %d: %s at %s:%d", kernel->name,
             block_index.x, block_index.y, block_index.z, current, text, file, line);
  }
}

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_bottom;
size_t scheduler_size;
void leaves(void** fake, const void* bottom, size_t size) {
  __sanitizer_start_switch_fiber(fake, bottom, size);
}
void arrives(void* fake, const void** bottom, size_t* size) {
  __sanitizer_finish_switch_fiber(fake, bottom, size);
}
#else
void* scheduler_bottom;
size_t scheduler_size;
void leaves(void**, const void*, size_t) {}
template <class... Any>
void arrives(Any...) {}
#endif

// From the current thread to the scheduler, and back when it may go on.
void pause() {
  void* fake = nullptr;
  leaves(&fake, scheduler_bottom, scheduler_size);
  ea_switch(&threads[current].stack->pointer, scheduler);
  arrives(fake, &scheduler_bottom, &scheduler_size);
}

// A stack's first and only function: thread after thread.
void live() {
  arrives(nullptr, &scheduler_bottom, &scheduler_size);
  for (;;) {
    kernel->run(arguments);
    threads[current].state = State::ended;
    pause();
  }
}

Stack* new_stack() {
  void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, 4096, PROT_NONE) != 0) abort();
  char* bottom = static_cast<char*>(memory);
  void** top = reinterpret_cast<void**>(bottom + stack_bytes);
  void** frame = top - saved_words;
  memset(frame, 0, saved_words * sizeof *frame);
  frame[return_word] = reinterpret_cast<void*>(&live);
  return new Stack{bottom, frame};
}

void resume(int number) {
  Thread& thread = threads[number];
  if (thread.stack == nullptr) {
    if (idle.empty()) idle.push_back(new_stack());
    thread.stack = idle.back();
    idle.pop_back();
  }
  current = number;
  const unsigned x = block_extent.x, y = block_extent.y;
  thread_index = {number % x, number / x % y, number / (x * y)};
  void* fake = nullptr;
  leaves(&fake, thread.stack->bottom, stack_bytes);
  ea_switch(&scheduler, thread.stack->pointer);
  arrives(fake, nullptr, nullptr);
  if (thread.state == State::ended) {
    idle.push_back(thread.stack);
    thread.stack = nullptr;
  }
}

// Lets the threads from `first` go on that wait as the current one does, if all of them do.
void release(State state, int first, int count) {
  const Thread& mine = threads[current];
  for (int i = first; i < first + count; ++i) {
    if (threads[i].line != mine.line || strcmp(threads[i].file, mine.file) != 0) {
      char text[256];
      snprintf(text, sizeof text, "waits while thread %d waits at %s:%d, itself", i,
               threads[i].file, threads[i].line);
      fail(text, mine.file, mine.line);
    }
  }
  for (int i = first; i < first + count; ++i) {
    if (threads[i].state == state) threads[i].state = State::ready;
  }
}

void wait(State state, int& arrived, int first, int count, const char* file, int line) {
  Thread& thread = threads[current];
  thread.state = state;
  thread.file = file;
  thread.line = line;
  if (++arrived < count) {
    pause();
  } else {
    arrived = 0;
    release(state, first, count);
  }
  if (message[0] != 0) {
    for (;;) pause();  // the launch has failed: this thread does nothing more
  }
}

void report_who_waits(int count) {
  int ended = 0;
  for (const Thread& thread : threads) ended += thread.state == State::ended;
  for (int i = 0; i < count; ++i) {
    if (threads[i].state == State::ended) continue;
    char text[128];
    snprintf(text, sizeof text, "waits in vain, %d of %d threads have ended, others elsewhere,",
             ended, count);
    current = i;
    return fail(text, threads[i].file, threads[i].line);
  }
}

// Runs one warp as far as it gets without the others: what they still have to read, it may write.
// Returns how many of its threads ended; `any` tells whether one ran.
int run_warp(int first, int count, bool backward, bool& any) {
  int ended = 0;
  for (bool more = true; more && message[0] == 0;) {
    more = false;
    for (int step = 0; step < count && message[0] == 0; ++step) {
      const int i = first + (backward ? count - 1 - step : step);
      if (threads[i].state != State::ready) continue;
      more = any = true;
      resume(i);
      ended += threads[i].state == State::ended;
    }
  }
  return ended;
}

void run_threads(int count, bool backward) {
  threads.assign(count, Thread{nullptr, State::ready, "", 0});
  warps.assign((count + 31) / 32, Warp{});
  waiting = 0;
  for (int left = count; left > 0 && message[0] == 0;) {
    bool any = false;
    const int all = static_cast<int>(warps.size());
    for (int step = 0; step < all && message[0] == 0; ++step) {
      const int first = 32 * (backward ? all - 1 - step : step);
      left -= run_warp(first, first + 32 < count ? 32 : count - first, backward, any);
    }
    if (!any) report_who_waits(count);
  }
}

void run_block(int count, bool backward) {
  ++block_serial;
  shared = nullptr;
  copies.assign(count, {});
  run_threads(count, backward);
  for (const std::vector<Copy>& own : copies) {
    if (!own.empty()) fail("does not wait for what it copies", kernel->name, 0);
  }
  for (const SharedMemory* one = shared; one != nullptr; one = one->next) {
    if (one->intact()) continue;
    char text[128];
    snprintf(text, sizeof text, "wrote outside of the shared memory '%s'", one->name());
    fail(text, kernel->name, 0);
  }
}

}  // namespace

Kernel::Kernel(const char* name, int64_t argument_bytes, int64_t threads, void (*run)(const void*))
    : name(name), argument_bytes(argument_bytes), threads(threads), run(run), next(kernels) {
  kernels = this;
}

SharedMemory::SharedMemory(const char* name, uint8_t* memory, size_t bytes)
    : name_(name), memory_(memory), bytes_(bytes) {}

void SharedMemory::begin() {
  serial_ = block_serial;
  next = shared;
  shared = this;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(memory_, bytes_ + 2 * guard_bytes);
#endif
  memset(memory_, 0xff, bytes_ + 2 * guard_bytes);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(memory_, guard_bytes);
  ASAN_POISON_MEMORY_REGION(memory_ + guard_bytes + bytes_, guard_bytes);
#endif
}

#if defined(__SANITIZE_ADDRESS__)
bool SharedMemory::intact() const { return true; }  // else the process had ended
#else
bool SharedMemory::intact() const {
  for (int i = 0; i < guard_bytes; ++i) {
    if (memory_[i] != 0xff || memory_[guard_bytes + bytes_ + i] != 0xff) return false;
  }
  return true;
}
#endif

int lane() { return current % 32; }

void copy_ahead(void* to, const void* from, bool real, const char* file, int line) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    stop("copies 16 bytes that are not aligned", file, line);
  }
  copies[current].push_back({to, from, real, 0});
}

void end_group() {
  for (Copy& copy : copies[current]) ++copy.groups;
}

void await_groups(int pending) {
  size_t left = 0;
  std::vector<Copy>& own = copies[current];
  for (const Copy& copy : own) {
    if (copy.groups <= pending) {
      own[left++] = copy;
    } else if (copy.real) {
      memcpy(copy.to, copy.from, 16);
    } else {
      memset(copy.to, 0, 16);
    }
  }
  own.resize(left);
}

void stop(const char* text, const char* file, int line) {
  fail(text, file, line);
  for (;;) pause();
}

void wait_for_block(const char* file, int line) {
  wait(State::in_block, waiting, 0, static_cast<int>(threads.size()), file, line);
}

const Slot* exchange(unsigned mask, const void* mine, size_t bytes, const char* file, int line) {
  Warp& warp = warps[current / 32];
  const int first = current / 32 * 32;
  if (mask != 0xffffffff || first + 32 > static_cast<int>(threads.size())) {
    stop("calls a warp function without all 32 threads", file, line);
  }
  const Slot* slots = warp.slots[warp.turn];
  if (bytes != 0) memcpy(warp.slots[warp.turn][current % 32].bytes, mine, bytes);
  if (warp.waiting == 31) warp.turn = 1 - warp.turn;
  wait(State::in_warp, warp.waiting, first, 32, file, line);
  return slots;
}

}  // namespace host
}  // namespace edgeadapt

#define EA_EXPORT extern "C" __attribute__((visibility("default")))
using edgeadapt::host::Kernel;

// The kernels of this library, in any order; null after the last.
EA_EXPORT const Kernel* ea_host_kernel(int64_t number) {
  const Kernel* found = edgeadapt::host::kernels;
  while (found != nullptr && number-- > 0) found = found->next;
  return found;
}

// Empty if all went well, else what a GPU would not have said.
EA_EXPORT const char* ea_host_run(const Kernel* kernel, const int64_t* grid, const int64_t* block,
                                  const void* arguments, int64_t backward) {
  using namespace edgeadapt::host;
  message[0] = 0;
  edgeadapt::host::kernel = kernel;
  edgeadapt::host::arguments = arguments;
  grid_extent = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
  block_extent = {(unsigned)block[0], (unsigned)block[1], (unsigned)block[2]};
  const int64_t count = block[0] * block[1] * block[2];
  if (count > kernel->threads) {
    snprintf(message, sizeof message, "%s: a block has up to %d threads, got %d", kernel->name,
             (int)kernel->threads, (int)count);
    return message;
  }
  const int64_t blocks = grid[0] * grid[1] * grid[2];
  for (int64_t step = 0; step < blocks && message[0] == 0; ++step) {
    const int64_t i = backward ? blocks - 1 - step : step;
    block_index = {(unsigned)(i % grid[0]), (unsigned)(i / grid[0] % grid[1]),
                   (unsigned)(i / (grid[0] * grid[1]))};
    run_block(static_cast<int>(count), backward != 0);
  }
  return message;
}
