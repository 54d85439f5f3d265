// Convolution of 8-bit pixels with +-1 weights, four products a DP4A.
// The geometry (block, grid, shared memory, macros) is stated by conv2d() in bnn_perception/backends/cuda/specs.py.
//
// A word of the tile is four signed bytes: red, green, blue and nothing of one pixel, or four grey pixels side by side
// (then TAP_STEP is 4). Levels in 0..255 are staged less 128 so that they fit a signed byte; 128 times the sum of a
// filter's weights is missing from its sums and has been taken from its threshold, or is added where a signal follows.
#include "conv2d.cuh"

#if !defined(CHANNELS) || !defined(LEVEL_OFFSET) || !defined(IDENTITY_LEVELS)
#error "CHANNELS, LEVEL_OFFSET or IDENTITY_LEVELS is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#define OUTSIDE static_cast<unsigned>(-(LEVEL_OFFSET) & 0xff)  // the byte that stands for level 0

struct Pixels {
  const unsigned char* levels;  // 256 staged bytes; read only where IDENTITY_LEVELS is 0

  // The staged byte of a pixel's level.
  __device__ __forceinline__ unsigned level(unsigned pixel) const {
#if IDENTITY_LEVELS
    return (pixel - LEVEL_OFFSET) & 0xff;
#else
    return __ldg(levels + (pixel & 0xff));
#endif
  }

  __device__ __forceinline__ unsigned load(const unsigned* frame, int row, int column, int) const {
    const bool row_inside = row >= 0 && row < IN_HEIGHT;
#if CHANNELS == 3
    if (!row_inside || column < 0 || column >= IN_WIDTH) return OUTSIDE * 0x010101u;
    const unsigned pixel = __ldg(frame + row * IN_WIDTH + column);
    return level(pixel) | level(pixel >> 8) << 8 | level(pixel >> 16) << 16;
#else
    unsigned word = 0;
#pragma unroll
    for (int i = 0; i < TAP_STEP; ++i) {
      const bool inside = row_inside && column + i >= 0 && column + i < IN_WIDTH;
      word |= (inside ? level(__ldg(frame + row * IN_WIDTH + column + i)) : OUTSIDE) << 8 * i;
    }
    return word;
#endif
  }

  template <int N>
  __device__ __forceinline__ int products(const unsigned* line, const unsigned* weight) const {
    int sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) sum = dot4(line[i * TAP_STEP], weight[i], sum);
    return sum;
  }

  __device__ __forceinline__ int dot(int sum, int, int, int) const { return sum; }
};

// input      (frames, IN_HEIGHT, IN_WIDTH): one word a pixel, as preprocess.cu writes it
// weights    (OUT_WORDS, TAPS_Y, TAPS_X, 32): four signed bytes each, +1, -1, or 0 where there is no tap
// threshold  (OUT_WORDS * 32); flip (OUT_WORDS)
// output     (frames, OUT_HEIGHT, OUT_WIDTH, OUT_WORDS); where a signal follows: epilogue.cuh
extern "C" __global__ void __launch_bounds__(THREADS)
    input_conv2d(const unsigned* __restrict__ input, const unsigned* __restrict__ weights, const int* __restrict__ threshold,
                 const unsigned* __restrict__ flip, const unsigned char* __restrict__ levels EPILOGUE_PARAMETERS) {
  CONV2D_SHARED;
  const Pixels element{levels};
  const Epilogue epilogue EPILOGUE_VALUES;
  conv2d(element, epilogue, tile, staged_weights, input + static_cast<size_t>(blockIdx.z) * (IN_HEIGHT * IN_WIDTH), weights,
         threshold, flip, BITS_OF_FRAME);
}
