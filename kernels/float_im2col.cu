// The float twin's input: pixels -> p / 255, gathered into the rows of the first convolution's matrix product.
// The geometry (block, grid, macros) is stated by im2col() in bnn_perception/backends/cuda/float_specs.py.
//
// Mapping  A thread writes 16 bytes of a row: VECTOR of its (tap_y, tap_x, channel). Grid: (blocks of rows, 1, frames).
#include "float_values.cuh"

#if !defined(IN_HEIGHT) || !defined(IN_WIDTH) || !defined(CHANNELS) || !defined(TAPS_Y) || !defined(TAPS_X) || \
    !defined(STRIDE_Y) || !defined(STRIDE_X) || !defined(PADDING_TOP) || !defined(PADDING_LEFT) || \
    !defined(CONV_HEIGHT) || !defined(CONV_WIDTH) || !defined(COLUMNS) || !defined(THREADS)
#error "a layer's shape is not stated; see bnn_perception/backends/cuda/float_specs.py"
#endif

// input   (frames, IN_HEIGHT, IN_WIDTH): one word a pixel, as preprocess.cu writes it
// output  (frames, CONV_HEIGHT, CONV_WIDTH, COLUMNS) elements; columns past the last tap are 0
extern "C" __global__ void __launch_bounds__(THREADS)
    float_im2col(const unsigned* __restrict__ input, Element* __restrict__ output) {
  constexpr int vectors = COLUMNS / VECTOR;
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= CONV_HEIGHT * CONV_WIDTH * vectors) return;
  const int first = i % vectors * VECTOR, pixel = i / vectors;
  const int top = pixel / CONV_WIDTH * STRIDE_Y - PADDING_TOP, left = pixel % CONV_WIDTH * STRIDE_X - PADDING_LEFT;
  const unsigned* frame = input + static_cast<size_t>(blockIdx.z) * (IN_HEIGHT * IN_WIDTH);
  float values[VECTOR];
#pragma unroll
  for (int j = 0; j < VECTOR; ++j) {
    const int tap = (first + j) / CHANNELS, channel = (first + j) % CHANNELS;
    const int row = top + tap / TAPS_X, column = left + tap % TAPS_X;
    const bool inside = tap < TAPS_Y * TAPS_X && row >= 0 && row < IN_HEIGHT && column >= 0 && column < IN_WIDTH;
    const unsigned word = inside ? __ldg(frame + row * IN_WIDTH + column) : 0;
    values[j] = static_cast<float>(word >> 8 * channel & 0xff) * (1.0f / 255.0f);
  }
  store_vector(output + (static_cast<size_t>(blockIdx.z) * (CONV_HEIGHT * CONV_WIDTH) + pixel) * COLUMNS + first, values);
}
