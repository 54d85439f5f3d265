// Convolution of 8-bit pixels with 24-bit weights: exact sums in integers, then one scale and offset in float32.
// The geometry (block, grid, macros) is stated by real_input_conv2d() in bnn_perception/backends/cuda/specs.py.
//
// A weight is d0 + 256 * d1 + 65536 * d2 of signed bytes, and a pixel p counts as p - 128, a signed byte as well: the sums of
// each digit are DP4As. What that lacks, 128 times the sum of a filter's weights, is the same for all windows, since a tap
// outside counts as a pixel of 0, -128 here. What a tap outside counts as in the net is part of the offset of its window.
#include "signal_step.cuh"

#if !defined(IN_HEIGHT) || !defined(IN_WIDTH) || !defined(KERNEL_Y) || !defined(KERNEL_X) || !defined(STRIDE_Y) || \
    !defined(STRIDE_X) || !defined(PADDING_Y) || !defined(PADDING_X) || !defined(OFFSET_COLUMNS)
#error "a convolution's shape is not stated; see bnn_perception/backends/cuda/specs.py"
#endif

struct PixelSums {
  const unsigned* frame;
  const unsigned* weights;       // (KERNEL_Y, KERNEL_X, 3 digits, OUT_WORDS * 32) four signed bytes each
  const long long* lacking;      // (OUT_WORDS * 32)
  const float* scale;            // (OUT_WORDS * 32)
  const int* patterns;           // (OUT_HEIGHT + OUT_WIDTH) row and column of the table for each row and column of the output
  const float* offsets;          // (rows, OFFSET_COLUMNS, OUT_WORDS * 32)

  __device__ __forceinline__ void operator()(int y, int x, int channel, float (&to)[PATCH]) const {
    int sums[3][PATCH] = {};
#pragma unroll 1
    for (int tap_y = 0; tap_y < KERNEL_Y; ++tap_y) {
      const int row = y * STRIDE_Y - PADDING_Y + tap_y;
#pragma unroll 1
      for (int tap_x = 0; tap_x < KERNEL_X; ++tap_x) {
        const unsigned* digit = weights + (tap_y * KERNEL_X + tap_x) * 3 * LANES + channel;
        const unsigned w0 = __ldg(digit), w1 = __ldg(digit + LANES), w2 = __ldg(digit + 2 * LANES);
#pragma unroll
        for (int i = 0; i < PATCH; ++i) {
          const int column = (x + i) * STRIDE_X - PADDING_X + tap_x;
          const bool inside = row >= 0 && row < IN_HEIGHT && column >= 0 && column < IN_WIDTH;
          // Less 128 in each byte: the highest bit turned over.
          const unsigned pixel = (inside ? __ldg(frame + row * IN_WIDTH + column) : 0u) ^ 0x80808080u;
          sums[0][i] = dot4(pixel, w0, sums[0][i]);
          sums[1][i] = dot4(pixel, w1, sums[1][i]);
          sums[2][i] = dot4(pixel, w2, sums[2][i]);
        }
      }
    }
    const float factor = __ldg(scale + channel);
    const long long missing = __ldg(lacking + channel);
#pragma unroll
    for (int i = 0; i < PATCH; ++i) {
      if (x + i >= OUT_WIDTH) continue;
      const long long sum = missing + sums[0][i] + 256ll * sums[1][i] + 65536ll * sums[2][i];
      const int place = __ldg(patterns + y) * OFFSET_COLUMNS + __ldg(patterns + OUT_HEIGHT + x + i);
      to[i] = __fadd_rn(__fmul_rn(factor, __ll2float_rn(sum)), __ldg(offsets + place * LANES + channel));
    }
  }
};

// input   (frames, IN_HEIGHT, IN_WIDTH): one word a pixel, as preprocess.cu writes it; the others: epilogue.cuh
extern "C" __global__ void __launch_bounds__(THREADS)
    real_input_conv2d(const unsigned* __restrict__ input, const unsigned* __restrict__ weights,
                      const long long* __restrict__ lacking, const float* __restrict__ scale, const int* __restrict__ patterns,
                      const float* __restrict__ offsets EPILOGUE_PARAMETERS) {
  const Epilogue epilogue EPILOGUE_VALUES;
  const unsigned* frame = input + static_cast<size_t>(blockIdx.z) * (IN_HEIGHT * IN_WIDTH);
  signal_step(PixelSums{frame, weights, lacking, scale, patterns, offsets}, epilogue);
}
