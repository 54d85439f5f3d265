// Runs the threads of a block as fibers. Never compiled with a sanitizer itself: it only tells the sanitizer of the
// kernel's code (SHIM_ASAN, SHIM_TSAN) about the fibers, and about the order that barriers and warp operations make.
#include "cuda_shim.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#if defined(SHIM_ASAN)
#include <sanitizer/common_interface_defs.h>
#elif defined(SHIM_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {
namespace {

// ------------------------------------------------------------------------------------------------- context switch

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};
// Saves what the System V ABI lets a function keep, and goes on where `to` stopped.
asm(R"(
.text
.type shim_switch, @function
shim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq (%rsi), %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
extern "C" void shim_switch(Context* from, Context* to);

void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes) - 2;  // entry finds the stack as after a call: 8 off 16 bytes
  *top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
#else
#include <ucontext.h>
struct Context {
  ucontext_t context;
};
void shim_switch(Context* from, Context* to) { swapcontext(&from->context, &to->context); }
void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = bytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
#endif

// ------------------------------------------------------------------------------------------------- state

enum State : uint8_t { READY, AT_BARRIER, AT_WARP_OPERATION, DONE };

constexpr size_t STACK_BYTES = 64 << 10;
constexpr int WARP = 32, MAX_THREADS = 1024;

struct Fiber {
  Context context;
  char* stack = nullptr;
  uint3 index;
  State state = DONE;
  Operation operation;
  unsigned mask, value;
  int source;
  const Fragments* fragments;
#if defined(SHIM_ASAN)
  void* fake_stack = nullptr;
#elif defined(SHIM_TSAN)
  void* tsan = nullptr;
#endif
};

// What TSan is told: who arrives releases the tag, who goes on acquires it. Two tags take turns, so that a thread that
// is late to leave one barrier does not also acquire what is released at the next.
struct Meeting {
  char tags[2] = {};
  unsigned turn = 0;
};

std::vector<Fiber> fibers;  // MAX_THREADS, made at the first launch
Context scheduler;
int current, threads, live, waiting;
unsigned warp_waiting[MAX_THREADS / WARP], warp_gone[MAX_THREADS / WARP];
Meeting block_meeting, warp_meeting[MAX_THREADS / WARP];
const char* error;
void (*thread_body)(void**);
void** thread_args;
std::vector<char> dynamic;

#if defined(SHIM_ASAN)
void* scheduler_fake_stack;
const void* scheduler_stack;
size_t scheduler_stack_bytes;
#elif defined(SHIM_TSAN)
void* scheduler_tsan;
#endif

void release([[maybe_unused]] Meeting& meeting) {
#if defined(SHIM_TSAN)
  __tsan_release(&meeting.tags[meeting.turn & 1]);
#endif
}
void acquire([[maybe_unused]] Meeting& meeting, [[maybe_unused]] unsigned turn) {
#if defined(SHIM_TSAN)
  __tsan_acquire(&meeting.tags[turn & 1]);
#endif
}

void to_scheduler([[maybe_unused]] bool for_good) {
  Fiber& fiber = fibers[current];
#if defined(SHIM_ASAN)
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_bytes);
#elif defined(SHIM_TSAN)
  __tsan_switch_to_fiber(scheduler_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  shim_switch(&fiber.context, &scheduler);
#if defined(SHIM_ASAN)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void to_fiber(int index) {
  Fiber& fiber = fibers[index];
  current = index;
  threadIdx = fiber.index;
#if defined(SHIM_ASAN)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, STACK_BYTES);
#elif defined(SHIM_TSAN)
  __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  shim_switch(&scheduler, &fiber.context);
#if defined(SHIM_ASAN)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void fiber_entry() {
#if defined(SHIM_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  thread_body(thread_args);
  fibers[current].state = DONE;
  warp_gone[current / WARP] |= 1u << current % WARP;
  --live;
  to_scheduler(true);
  __builtin_unreachable();
}

// Everything before happens before everything after, for the scheduler and all threads.
void order_all() {
#if defined(SHIM_TSAN)
  for (int i = 0; i < threads; ++i) {
    __tsan_switch_to_fiber(fibers[i].tsan, 0);
    __tsan_switch_to_fiber(scheduler_tsan, 0);
  }
#endif
}

// d += popcount(a & b), from the layout of the fragments in kernels/bmma.cuh: the matrices are put together, multiplied
// as matrices, and dealt out.
void multiply(const Fiber* lanes) {
  unsigned a[16][8], b[8][8];  // (row, word), (column, word)
  for (int lane = 0; lane < WARP; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const Fragments& own = *lanes[lane].fragments;
    a[g][t] = own.a[0], a[g + 8][t] = own.a[1], a[g][t + 4] = own.a[2], a[g + 8][t + 4] = own.a[3];
    b[g][t] = own.b[0], b[g][t + 4] = own.b[1];
  }
  int d[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int word = 0; word < 8; ++word) d[row][column] += __builtin_popcount(a[row][word] & b[column][word]);
    }
  }
  for (int lane = 0; lane < WARP; ++lane) {
    const int g = lane / 4, t = lane % 4;
    int* own = lanes[lane].fragments->d;
    own[0] += d[g][2 * t], own[1] += d[g][2 * t + 1], own[2] += d[g + 8][2 * t], own[3] += d[g + 8][2 * t + 1];
  }
}

void complete_warp_operation(int first, unsigned mask, Operation operation) {
  if (operation == MMA) multiply(&fibers[first]);
  unsigned results[WARP] = {}, ballot = 0;
  for (int lane = 0; lane < WARP; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Fiber& fiber = fibers[first + lane];
    ballot |= (fiber.value & 1u) << lane;
    results[lane] = fibers[first + fiber.source].value;
  }
  for (int lane = 0; lane < WARP; ++lane) {
    if (!(mask >> lane & 1)) continue;
    Fiber& fiber = fibers[first + lane];
    fiber.value = operation == BALLOT ? ballot : results[lane];
    fiber.state = READY;
  }
}

void run_block(char* shared_begin, char* shared_end, const Launch& launch, std::mt19937& random, std::vector<int>& order) {
  order_all();
  for (volatile char* p = shared_begin; p < shared_end; ++p) *p = static_cast<char>(launch.poison);
  dynamic.assign(launch.dynamic_bytes, static_cast<char>(launch.poison));
  dynamic.shrink_to_fit();
  for (int i = 0; i < threads; ++i) {
    prepare(fibers[i].context, fibers[i].stack, STACK_BYTES, fiber_entry);
    fibers[i].state = READY;
  }
  for (int warp = 0; warp * WARP < threads; ++warp) {
    const int lanes = threads - warp * WARP;
    warp_waiting[warp] = 0;
    warp_gone[warp] = lanes >= WARP ? 0 : ~0u << lanes;
  }
  live = threads;
  waiting = 0;
  order_all();
  while (live > 0 && !error) {
    bool any = false;
    if (launch.seed > 1) std::shuffle(order.begin(), order.end(), random);
    for (int i : order) {
      if (fibers[i].state != READY) continue;
      to_fiber(i);
      any = true;
      if (error) break;
    }
    if (!any) error = "deadlock: threads wait at different barriers or warp operations";
  }
}

}  // namespace

// ------------------------------------------------------------------------------------------------- called by kernels

void fail(const char* message) {
  error = message;
  to_scheduler(true);
  __builtin_unreachable();
}

int lane() { return current % WARP; }

void* dynamic_shared() { return dynamic.data(); }

void barrier() {
  if (live < threads) fail("__syncthreads after a thread of the block has ended");
  const unsigned turn = block_meeting.turn;
  release(block_meeting);
  if (++waiting == threads) {
    waiting = 0;
    ++block_meeting.turn;
    for (int i = 0; i < threads; ++i) {
      if (fibers[i].state == AT_BARRIER) fibers[i].state = READY;
    }
  } else {
    fibers[current].state = AT_BARRIER;
    to_scheduler(false);
  }
  acquire(block_meeting, turn);
}

unsigned warp_operation(Operation operation, unsigned mask, unsigned value, int source, const Fragments* fragments) {
  const int warp = current / WARP, lane = current % WARP, first = warp * WARP;
  if (!(mask >> lane & 1)) fail("warp operation: the calling lane is not in the mask");
  if (!(mask >> source & 1)) fail("shuffle: the source lane is not in the mask");
  if (mask & warp_gone[warp]) fail("warp operation: a lane of the mask has ended or never was");
  Fiber& fiber = fibers[current];
  fiber.operation = operation, fiber.mask = mask, fiber.value = value, fiber.source = source;
  fiber.fragments = fragments;
  warp_waiting[warp] |= 1u << lane;
  const unsigned turn = warp_meeting[warp].turn;
  release(warp_meeting[warp]);
  if ((warp_waiting[warp] & mask) == mask) {
    for (int i = 0; i < WARP; ++i) {
      if ((mask >> i & 1) && (fibers[first + i].operation != operation || fibers[first + i].mask != mask)) {
        fail("warp operation: the lanes differ in operation or mask");
      }
    }
    warp_waiting[warp] &= ~mask;
    ++warp_meeting[warp].turn;
    complete_warp_operation(first, mask, operation);
  } else {
    fiber.state = AT_WARP_OPERATION;
    to_scheduler(false);
  }
  acquire(warp_meeting[warp], turn);
  return fiber.value;
}

const char* run(const Launch& launch, void (*thread)(void**), char* shared_begin, char* shared_end) {
  const unsigned *grid = launch.grid, *block = launch.block;
  const size_t block_threads = static_cast<size_t>(block[0]) * block[1] * block[2];
  const size_t blocks = static_cast<size_t>(grid[0]) * grid[1] * grid[2];
  if (block_threads < 1 || block_threads > MAX_THREADS || block[2] > 64) return "invalid block";
  if (blocks < 1 || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535) return "invalid grid";
  threads = static_cast<int>(block_threads);
  gridDim = {{grid[0], grid[1], grid[2]}};
  blockDim = {{block[0], block[1], block[2]}};
  thread_body = thread;
  thread_args = launch.args;
  error = nullptr;
#if defined(SHIM_TSAN)
  scheduler_tsan = __tsan_get_current_fiber();
#endif
  if (fibers.empty()) fibers.resize(MAX_THREADS);
  for (unsigned i = 0; i < block_threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.index = {i % block[0], i / block[0] % block[1], i / (block[0] * block[1])};
    if (fiber.stack) continue;
    fiber.stack = static_cast<char*>(aligned_alloc(64, STACK_BYTES));
#if defined(SHIM_TSAN)
    fiber.tsan = __tsan_create_fiber(0);
#endif
  }
  std::mt19937 random(launch.seed);
  std::vector<int> order(threads);
  std::vector<size_t> block_order(blocks);
  for (int i = 0; i < threads; ++i) order[i] = launch.seed == 1 ? threads - 1 - i : i;
  for (size_t i = 0; i < blocks; ++i) block_order[i] = launch.seed == 1 ? blocks - 1 - i : i;
  if (launch.seed > 1) std::shuffle(block_order.begin(), block_order.end(), random);
  for (size_t id : block_order) {
    const unsigned at = static_cast<unsigned>(id);
    blockIdx = {at % grid[0], at / grid[0] % grid[1], at / (grid[0] * grid[1])};
    run_block(shared_begin, shared_end, launch, random, order);
    if (error) break;
  }
  order_all();
  return error;
}

}  // namespace shim
