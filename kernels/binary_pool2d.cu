// OR of the words of windows of bits; words outside the input are 0.
// The geometry (block, grid, macros) is stated by binary_pool2d() in bnn_perception/backends/cuda/specs.py.
//
// Mapping  A thread makes a word of the output. Grid: (blocks of WARPS * 32 words, 1, frames).
#include "bits.cuh"

#if !defined(IN_HEIGHT) || !defined(IN_WIDTH) || !defined(OUT_HEIGHT) || !defined(OUT_WIDTH) || !defined(OUT_WORDS) || \
    !defined(KERNEL_Y) || !defined(KERNEL_X) || !defined(STRIDE_Y) || !defined(STRIDE_X) || !defined(PADDING_Y) || \
    !defined(PADDING_X) || !defined(WARPS)
#error "a pool's shape is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#define THREADS (WARPS * WARP)

// input   (frames, IN_HEIGHT, IN_WIDTH, OUT_WORDS)
// output  (frames, OUT_HEIGHT, OUT_WIDTH, OUT_WORDS)
extern "C" __global__ void __launch_bounds__(THREADS)
    binary_pool2d(const unsigned* __restrict__ input, unsigned* __restrict__ output) {
  const int number = blockIdx.x * THREADS + threadIdx.x;
  if (number >= OUT_HEIGHT * OUT_WIDTH * OUT_WORDS) return;
  const int word = number % OUT_WORDS, x = number / OUT_WORDS % OUT_WIDTH, y = number / OUT_WORDS / OUT_WIDTH;
  const unsigned* frame = input + static_cast<size_t>(blockIdx.z) * (IN_HEIGHT * IN_WIDTH * OUT_WORDS) + word;
  const int top = y * STRIDE_Y - PADDING_Y, left = x * STRIDE_X - PADDING_X;
  unsigned bits = 0;
  for (int row = max(top, 0); row < min(top + KERNEL_Y, IN_HEIGHT); ++row) {
    for (int column = max(left, 0); column < min(left + KERNEL_X, IN_WIDTH); ++column) {
      bits |= __ldg(frame + (row * IN_WIDTH + column) * OUT_WORDS);
    }
  }
  output[static_cast<size_t>(blockIdx.z) * (OUT_HEIGHT * OUT_WIDTH * OUT_WORDS) + number] = bits;
}
