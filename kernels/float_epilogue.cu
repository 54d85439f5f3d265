// What follows a matrix product of the float twin: max pool, scale and shift, a residual net's shortcut, clip, and the next
// product's rows.
// The geometry (block, grid, macros) is stated by epilogue() in bnn_perception/backends/cuda/float_specs.py.
//
// Mapping  A thread makes VECTOR channels of one output pixel and writes them wherever one row of the next kernel reads
//          them: im2col as a scatter. Entries of the next matrix that lie in the padding are nobody's; they are 0 from
//          the start. A fully connected layer reads each pixel once: its taps are 1x1, its rows the pixels.
// Residual The values before the clip, (frames, height, width, padded channels) floats: read where SHORTCUT is stated,
//          the side of the window whose mean is added (1: the same pixel), and stored where RESIDUAL_STORED is, for the
//          shortcut of the next layer. Channel c gets c % SHORTCUT_CHANNELS; padding stays 0.
// Grid     (blocks of (pixel, tap_y, vector), 1, frames).
#include "float_values.cuh"

#if !defined(CONV_HEIGHT) || !defined(CONV_WIDTH) || !defined(CHANNELS) || !defined(POOL_SIZE) || \
    !defined(POOL_STRIDE) || !defined(OUT_HEIGHT) || !defined(OUT_WIDTH) || !defined(LOGITS) || !defined(THREADS)
#error "a layer's shape is not stated; see bnn_perception/backends/cuda/float_specs.py"
#endif
#if !LOGITS
#if !defined(NEXT_TAPS_Y) || !defined(NEXT_TAPS_X) || !defined(NEXT_STRIDE_Y) || !defined(NEXT_STRIDE_X) || \
    !defined(NEXT_PADDING_TOP) || !defined(NEXT_PADDING_LEFT) || !defined(NEXT_HEIGHT) || !defined(NEXT_WIDTH)
#error "the next layer's shape is not stated; see bnn_perception/backends/cuda/float_specs.py"
#endif
#define TAPS_Y NEXT_TAPS_Y
#else
#define TAPS_Y 1
#endif
#ifdef SHORTCUT
#if !defined(SHORTCUT_HEIGHT) || !defined(SHORTCUT_WIDTH) || !defined(SHORTCUT_CHANNELS) || !defined(SHORTCUT_PITCH) || \
    !defined(SHORTCUT_REPEATS)
#error "the shortcut's shape is not stated; see bnn_perception/backends/cuda/float_specs.py"
#endif

// What `frame`, the residual of the layer before, has for VECTOR channels of the output (y, x).
__device__ __forceinline__ void load_shortcut(float (&to)[VECTOR], const float* frame, int y, int x, int channel) {
  constexpr int features = SHORTCUT_CHANNELS * SHORTCUT_REPEATS;
  // Whether a vector of the output is one of the residual; else its channels begin anew in between, or end.
  constexpr bool whole = SHORTCUT_REPEATS == 1 || SHORTCUT_CHANNELS % VECTOR == 0;
  const float* pixel = frame + (y * SHORTCUT * SHORTCUT_WIDTH + x * SHORTCUT) * SHORTCUT_PITCH;
#pragma unroll
  for (int j = 0; j < VECTOR; ++j) to[j] = 0.0f;
  if (channel >= features) return;
#pragma unroll
  for (int i = 0; i < SHORTCUT * SHORTCUT; ++i) {
    const float* from = pixel + (i / SHORTCUT * SHORTCUT_WIDTH + i % SHORTCUT) * SHORTCUT_PITCH;
    float values[VECTOR];
    if (whole) {
      load_floats(values, from + channel % SHORTCUT_CHANNELS);
    } else {
#pragma unroll
      for (int j = 0; j < VECTOR; ++j) {
        values[j] = channel + j < features ? __ldg(from + (channel + j) % SHORTCUT_CHANNELS) : 0.0f;
      }
    }
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) to[j] += values[j];
  }
#pragma unroll
  for (int j = 0; j < VECTOR; ++j) to[j] *= 1.0f / (SHORTCUT * SHORTCUT);
}
#endif

// product  (frames, CONV_HEIGHT, CONV_WIDTH, CHANNELS) elements; CHANNELS is a multiple of VECTOR
// scale    (CHANNELS); shift (CHANNELS); low and high bound the result
// output   (frames, NEXT_HEIGHT, NEXT_WIDTH, NEXT_TAPS_Y, NEXT_TAPS_X, CHANNELS) elements    where LOGITS is 0
//          (frames, LOGITS) floats                                                            where it is their number
// before   (frames, SHORTCUT_HEIGHT, SHORTCUT_WIDTH, SHORTCUT_PITCH): the residual of the layer before
// after    (frames, OUT_HEIGHT, OUT_WIDTH, CHANNELS): this layer's
extern "C" __global__ void __launch_bounds__(THREADS)
    float_epilogue(const Element* __restrict__ product, const float* __restrict__ scale, const float* __restrict__ shift,
                   float low, float high,
#if LOGITS
                   float* __restrict__ output
#else
                   Element* __restrict__ output
#endif
#ifdef SHORTCUT
                   , const float* __restrict__ before
#endif
#ifdef RESIDUAL_STORED
                   , float* __restrict__ after
#endif
    ) {
  constexpr int vectors = CHANNELS / VECTOR;
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if (i >= OUT_HEIGHT * OUT_WIDTH * TAPS_Y * vectors) return;
  const int channel = i % vectors * VECTOR, pixel = i / vectors / TAPS_Y;
  const int y = pixel / OUT_WIDTH, x = pixel % OUT_WIDTH;

#if !LOGITS
  // Row `next_y` of the next convolution reads this pixel's row by its tap `tap_y`.
  const int tap_y = i / vectors % TAPS_Y;
  const int next_y = (y + NEXT_PADDING_TOP - tap_y) / NEXT_STRIDE_Y;
  const bool is_read = y + NEXT_PADDING_TOP - tap_y == next_y * NEXT_STRIDE_Y && next_y >= 0 && next_y < NEXT_HEIGHT;
#ifdef RESIDUAL_STORED
  // One of the threads of a pixel stores its residual: the one that has a row to write anyway where the stride is 1.
  const bool stores = tap_y == NEXT_PADDING_TOP;
  if (!is_read && !stores) return;
#else
  if (!is_read) return;
#endif
#endif

  const Element* window = product + ((static_cast<size_t>(blockIdx.z) * CONV_HEIGHT + y * POOL_STRIDE) * CONV_WIDTH +
                                     x * POOL_STRIDE) * CHANNELS + channel;
  float best[VECTOR];
  load_vector(best, window);
#pragma unroll
  for (int position = 1; position < POOL_SIZE * POOL_SIZE; ++position) {
    float values[VECTOR];
    load_vector(values, window + (position / POOL_SIZE * CONV_WIDTH + position % POOL_SIZE) * CHANNELS);
#pragma unroll
    for (int j = 0; j < VECTOR; ++j) best[j] = fmaxf(best[j], values[j]);
  }
#ifdef SHORTCUT
  float added[VECTOR];
  load_shortcut(added, before + static_cast<size_t>(blockIdx.z) * (SHORTCUT_HEIGHT * SHORTCUT_WIDTH * SHORTCUT_PITCH), y, x,
                channel);
#endif
#ifdef RESIDUAL_STORED
  float residual[VECTOR];
#endif
#pragma unroll
  for (int j = 0; j < VECTOR; ++j) {
    float value = fmaf(best[j], __ldg(scale + channel + j), __ldg(shift + channel + j));
#ifdef SHORTCUT
    value += added[j];
#endif
#ifdef RESIDUAL_STORED
    residual[j] = value;
#endif
    best[j] = fminf(fmaxf(value, low), high);
  }
#ifdef RESIDUAL_STORED
  if (stores) {
    store_floats(after + (static_cast<size_t>(blockIdx.z) * (OUT_HEIGHT * OUT_WIDTH) + pixel) * CHANNELS + channel, residual);
  }
  if (!is_read) return;
#endif

#if LOGITS
#pragma unroll
  for (int j = 0; j < VECTOR; ++j) {
    if (channel + j < LOGITS) output[static_cast<size_t>(blockIdx.z) * LOGITS + channel + j] = best[j];
  }
#else
  Element* rows = output + (static_cast<size_t>(blockIdx.z) * NEXT_HEIGHT + next_y) * NEXT_WIDTH *
                               (NEXT_TAPS_Y * NEXT_TAPS_X * CHANNELS) + tap_y * NEXT_TAPS_X * CHANNELS + channel;
#pragma unroll
  for (int tap_x = 0; tap_x < NEXT_TAPS_X; ++tap_x) {
    const int next_x = (x + NEXT_PADDING_LEFT - tap_x) / NEXT_STRIDE_X;
    if (x + NEXT_PADDING_LEFT - tap_x == next_x * NEXT_STRIDE_X && next_x >= 0 && next_x < NEXT_WIDTH) {
      store_vector(rows + static_cast<size_t>(next_x) * (NEXT_TAPS_Y * NEXT_TAPS_X * CHANNELS) + tap_x * CHANNELS, best);
    }
  }
#endif
}
