// One-bit matrix multiplication on tensor cores, and where a lane finds its part of the matrices.
//
// m16n8k256: 16 rows of A by 8 columns of B, 256 bits deep. Lane l, with g = l / 4 and t = l % 4, holds (PTX ISA, "Matrix
// fragments for mma.m16n8k256", one register being 32 bits along k):
//     a[0] row g,     word t        a[2] row g,     word 4 + t        b[0] column g, word t
//     a[1] row g + 8, word t        a[3] row g + 8, word 4 + t        b[1] column g, word 4 + t
//     d[0], d[1] row g, columns 2t and 2t + 1;   d[2], d[3] row g + 8, the same columns
// test/kernels/shim emulates the instruction from this table.
#pragma once

#if defined(__CUDACC__)
// d += popcount(a & b) over k. One instruction on SM 8.0 to 9.0, where XOR is not one on 9.0.
__device__ __forceinline__ void mma_and_popc(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // an SM without the instruction must not answer at all
#endif
}
#endif
