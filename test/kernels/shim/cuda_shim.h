// CUDA C++ for the host: lets g++ compile an unmodified kernel. Every CUDA thread is a fiber of shim/runtime.cpp, which
// is compiled once for all kernels; this header holds what has to be seen by each of them and is kept small for that.
//
// What is modelled: blocks one after the other, in any order; the threads of a block in any order between barriers and
// warp operations; warp operations as of sm_70 (a mask, all of whose lanes must come); static and dynamic shared memory,
// holding garbage when a block starts. What is not: time, blocks side by side, and inline PTX.
#pragma once
#include <cstddef>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__ static __attribute__((section("cuda_shared")))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 870
#endif

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace shim {

struct Launch {
  unsigned grid[3], block[3];
  size_t dynamic_bytes;
  void** args;
  unsigned seed;    // order of blocks and threads: 0 ascending, 1 descending, else shuffled
  unsigned poison;  // byte that fills shared memory when a block starts
};

enum Operation { SYNC, SHUFFLE, BALLOT, MMA };

// The registers of a lane in mma.m16n8k256.
struct Fragments {
  const unsigned *a, *b;
  int* d;
};

// Suspends the thread until every lane of `mask` has come; then each gets the `value` of lane `source`, or the ballot.
unsigned warp_operation(Operation operation, unsigned mask, unsigned value, int source, const Fragments* fragments = nullptr);
void barrier();
[[noreturn]] void fail(const char* message);  // ends the launch
void* dynamic_shared();
int lane();

const char* run(const Launch& launch, void (*thread)(void** args), char* shared_begin, char* shared_end);

template <class... Args, size_t... I>
void call(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<Args>*>(args[I])...);
}
template <class... Args>
void call(void (*kernel)(Args...), void** args) {
  call(kernel, args, std::index_sequence_for<Args...>());
}

template <class T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) == 4, "32-bit shuffles");
  unsigned word;
  memcpy(&word, &value, 4);
  word = warp_operation(SHUFFLE, mask, word, source);
  memcpy(&value, &word, 4);
  return value;
}

}  // namespace shim

// The bounds of this file's shared memory, from the linker; absent where it has none.
extern "C" char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));

#define SHIM_ENTRY(kernel)                                                                                    \
  extern "C" const char* kernel##__launch(const shim::Launch* launch) {                                       \
    return shim::run(*launch, [](void** args) { shim::call(kernel, args); }, __start_cuda_shared, __stop_cuda_shared); \
  }

inline void __syncthreads() { shim::barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { shim::warp_operation(shim::SYNC, mask, 0, shim::lane()); }
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return shim::warp_operation(shim::BALLOT, mask, predicate != 0, shim::lane());
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return shim::shuffle(mask, value, (shim::lane() & -width) | (source & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = shim::lane(), source = lane + static_cast<int>(delta);
  return shim::shuffle(mask, value, source < (lane & -width) + width ? source : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = shim::lane(), source = lane - static_cast<int>(delta);
  return shim::shuffle(mask, value, source >= (lane & -width) ? source : lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = shim::lane(), source = lane ^ lane_mask;
  return shim::shuffle(mask, value, source < (lane & -width) + width ? source : lane);
}
inline int __reduce_add_sync(unsigned mask, int value) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) value += __shfl_xor_sync(mask, value, lane_mask);
  return value;
}

// The twin of kernels/bmma.cuh.
inline void mma_and_popc(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  const shim::Fragments fragments{a, b, d};
  shim::warp_operation(shim::MMA, ~0u, 0, shim::lane(), &fragments);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __dp4a(int a, int b, int c) {
  const auto product = [a, b](int i) { return static_cast<signed char>(a >> 8 * i) * static_cast<signed char>(b >> 8 * i); };
  return c + product(0) + product(1) + product(2) + product(3);
}
// Built with -ffp-contract=off: every operation is rounded by itself, as the intrinsics promise.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline float __ll2float_rn(long long a) { return static_cast<float>(a); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T atomicAdd(T* p, T value) {
  return __atomic_fetch_add(p, value, __ATOMIC_RELAXED);
}
inline void __trap() { shim::fail("__trap"); }

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
