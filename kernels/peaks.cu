// What a GPU reaches at best: the benchmark sets the kernels beside these.
//
// Each thread repeats one instruction on registers, `iterations` times UNROLL times CHAINS, the chains being independent
// of each other to hide the instruction's latency; the host counts. Results go to memory under a condition that never
// holds, which the compiler cannot see.
#if !defined(THREADS) || !defined(UNROLL) || !defined(CHAINS)
#error "THREADS, UNROLL or CHAINS is not stated; see benchmark/gpu/peaks.py"
#endif

// A value that differs from thread to thread.
__device__ __forceinline__ unsigned seed(unsigned chain) {
  return (blockIdx.x * THREADS + threadIdx.x) * 2654435761u + chain;
}

// UNROLL * CHAINS POPC an iteration and thread.
extern "C" __global__ void __launch_bounds__(THREADS) peak_popc(unsigned* sink, unsigned never, int iterations) {
  unsigned x[CHAINS];
#pragma unroll
  for (int c = 0; c < CHAINS; ++c) x[c] = seed(c);
#pragma unroll 1
  for (int i = 0; i < iterations; ++i) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
      for (int c = 0; c < CHAINS; ++c) x[c] = __popc(x[c]);
    }
  }
#pragma unroll
  for (int c = 0; c < CHAINS; ++c) {
    if (x[c] == never) sink[c] = x[c];
  }
}

// UNROLL * CHAINS LOP3 an iteration and thread: majorities of three. In PTX, for written in C++ some become two.
extern "C" __global__ void __launch_bounds__(THREADS) peak_lop3(unsigned* sink, unsigned never, int iterations) {
  unsigned x[CHAINS];
#pragma unroll
  for (int c = 0; c < CHAINS; ++c) x[c] = seed(c);
#pragma unroll 1
  for (int i = 0; i < iterations; ++i) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
      for (int c = 0; c < CHAINS; ++c) {
        asm volatile("lop3.b32 %0, %0, %1, %2, 0xe8;" : "+r"(x[c]) : "r"(x[(c + 3) % CHAINS]), "r"(x[(c + 5) % CHAINS]));
      }
    }
  }
#pragma unroll
  for (int c = 0; c < CHAINS; ++c) {
    if (x[c] == never) sink[c] = x[c];
  }
}

// Reads and writes `count` times 16 bytes.
extern "C" __global__ void __launch_bounds__(THREADS)
    peak_copy(const uint4* __restrict__ from, uint4* __restrict__ to, unsigned count) {
  for (unsigned i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS) to[i] = from[i];
}

// Products of the binary tensor cores. Where the SM has none, the wrappers trap: compiled to nothing, they would seem
// infinitely fast.
struct Xor256 {
  static constexpr int sums = 4;
  __device__ __forceinline__ static void multiply(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.xor.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
  }
};

struct And256 {
  static constexpr int sums = 4;
  __device__ __forceinline__ static void multiply(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();
#endif
  }
};

struct Xor128 {
  static constexpr int sums = 2;
  __device__ __forceinline__ static void multiply(int (&d)[2], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 750
    asm volatile("mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(d[0]), "+r"(d[1])
                 : "r"(a[0]), "r"(b[0]));
#else
    __trap();
#endif
  }
};

// UNROLL * CHAINS products an iteration and warp.
template <class Product>
__device__ __forceinline__ void repeat_product(unsigned* sink, unsigned never, int iterations) {
  const unsigned a[4] = {seed(0), seed(1), seed(2), seed(3)}, b[2] = {seed(4), seed(5)};
  int d[CHAINS][Product::sums] = {};
#pragma unroll 1
  for (int i = 0; i < iterations; ++i) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
      for (int c = 0; c < CHAINS; ++c) Product::multiply(d[c], a, b);
    }
  }
#pragma unroll
  for (int c = 0; c < CHAINS; ++c) {
    if (static_cast<unsigned>(d[c][0]) == never) sink[c] = never;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) peak_mma_xor_256(unsigned* sink, unsigned never, int iterations) {
  repeat_product<Xor256>(sink, never, iterations);
}

extern "C" __global__ void __launch_bounds__(THREADS) peak_mma_and_256(unsigned* sink, unsigned never, int iterations) {
  repeat_product<And256>(sink, never, iterations);
}

extern "C" __global__ void __launch_bounds__(THREADS) peak_mma_xor_128(unsigned* sink, unsigned never, int iterations) {
  repeat_product<Xor128>(sink, never, iterations);
}
