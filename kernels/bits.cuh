// Arithmetic that the kernels share. Bit 1 stands for +1 and bit 0 for -1, 32 channels a word; see bnn_perception/net/bits.py.
#pragma once

#define FULL_WARP 0xffffffffu
#define WARP 32

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

// Widest vector, in words, that is aligned at every offset made of multiples of the bits set in `steps`.
__host__ __device__ constexpr int vector_words(int steps) { return steps % 4 == 0 ? 4 : steps % 2 == 0 ? 2 : 1; }

// 32 full adders side by side: in every bit column a + b + c = sum + 2 * carry. Two LOP3.
__device__ __forceinline__ void carry_save(unsigned& carry, unsigned& sum, unsigned a, unsigned b, unsigned c) {
  const unsigned half = a ^ b;
  carry = (a & b) | (half & c);
  sum = half ^ c;
}

// Number of ones in N words.
//
// POPC runs at a quarter of the rate of LOP3 on every SM from 5.3 to 9.0 and at an eighth from 10.0. A carry-save tree
// trades POPCs for LOP3s: seven words become three, for four adders; five become three, for two; three become two, for one.
template <int N>
__device__ __forceinline__ int popcount(const unsigned (&x)[N]) {
  constexpr int sevens = N / 7 * 7;
  constexpr int fives = sevens + (N - sevens) / 5 * 5;
  constexpr int threes = fives + (N - fives) / 3 * 3;
  int count = 0;
#pragma unroll
  for (int i = 0; i < sevens; i += 7) {
    unsigned carry0, carry1, carry2, sum0, sum1, ones, twos, fours;
    carry_save(carry0, sum0, x[i], x[i + 1], x[i + 2]);
    carry_save(carry1, sum1, x[i + 3], x[i + 4], x[i + 5]);
    carry_save(carry2, ones, sum0, sum1, x[i + 6]);
    carry_save(fours, twos, carry0, carry1, carry2);
    count += __popc(ones) + 2 * __popc(twos) + 4 * __popc(fours);
  }
#pragma unroll
  for (int i = sevens; i < fives; i += 5) {
    unsigned carry0, carry1, sum, ones;
    carry_save(carry0, sum, x[i], x[i + 1], x[i + 2]);
    carry_save(carry1, ones, sum, x[i + 3], x[i + 4]);
    count += __popc(ones) + 2 * (__popc(carry0) + __popc(carry1));
  }
#pragma unroll
  for (int i = fives; i < threes; i += 3) {
    unsigned carry, sum;
    carry_save(carry, sum, x[i], x[i + 1], x[i + 2]);
    count += __popc(sum) + 2 * __popc(carry);
  }
#pragma unroll
  for (int i = threes; i < N; ++i) count += __popc(x[i]);
  return count;
}

// Hamming distance of N words of activations and N words of weights.
template <int N>
__device__ __forceinline__ int hamming_distance(const unsigned* a, const unsigned* w) {
  unsigned x[N];
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = a[i] ^ w[i];
  return popcount(x);
}

// sum + the dot product of four signed bytes with four signed bytes.
__device__ __forceinline__ int dot4(unsigned a, unsigned b, int sum) {
#if __CUDA_ARCH__ >= 610
  return __dp4a(static_cast<int>(a), static_cast<int>(b), sum);
#else
#pragma unroll
  for (int shift = 0; shift < 32; shift += 8) {
    sum += static_cast<signed char>(a >> shift) * static_cast<signed char>(b >> shift);
  }
  return sum;
#endif
}

// Copies N words to registers, VECTOR words an access; `from` is aligned to as many.
template <int N, int VECTOR>
__device__ __forceinline__ void load_words(unsigned (&to)[N], const unsigned* from) {
  constexpr int whole = N / VECTOR * VECTOR;
#pragma unroll
  for (int i = 0; i < whole; i += VECTOR) {
    if (VECTOR == 4) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + i);
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    } else if (VECTOR == 2) {
      const uint2 v = *reinterpret_cast<const uint2*>(from + i);
      to[i] = v.x, to[i + 1] = v.y;
    } else {
      to[i] = from[i];
    }
  }
#pragma unroll
  for (int i = whole; i < N; ++i) to[i] = from[i];
}
