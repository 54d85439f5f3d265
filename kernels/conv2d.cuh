// The part of a convolution that does not depend on what is multiplied: tiles, taps, pooling, threshold, packing.
//
// Layers   bit = (maxpool(conv(x)) >= threshold) ^ flip,   activations (frames, height, width, words);
//          what epilogue.cuh makes of maxpool(conv(x)) where a signal follows.
//
// Mapping  A lane is a filter: 32 filters make a warp, and the comparisons of its lanes, gathered by a ballot, are one
//          packed word of the output. A warp computes PATCH outputs of a row, and for them POSITIONS x COLUMNS sums of
//          the convolution that is pooled. A block has TILE_ROWS x TILE_PATCHES x TILE_FILTERS warps, one each of a row,
//          a patch of its columns, and 32 filters; all of them read the one tile of the input in shared memory.
// Grid     (tiles of the output, 32 * TILE_FILTERS filters, frames).
// Stages   The channels come in CHUNKS of CHUNK_WORDS. A stage brings STAGE_CHUNKS of them, and STAGE_ROWS rows of the
//          kernel, to shared memory. A layer of a small net takes one stage and one barrier.
// Pool     POSITIONS is POOL_SIZE where all of a pool window's sums fit in registers, or 1: then the positions of the
//          window are staged one after the other (large pools only).
//
// The pixel of the convolution at (y, x) is the sum over (tap_y, tap_x, word) of
//     input[y * STRIDE_Y - PADDING_Y + tap_y][x * STRIDE_X - PADDING_X + tap_x * TAP_STEP][word] . weights.
#pragma once
#include "bits.cuh"
#include "epilogue.cuh"

#if !defined(IN_HEIGHT) || !defined(IN_WIDTH) || !defined(TAPS_Y) || !defined(TAPS_X) || !defined(TAP_STEP) || \
    !defined(STRIDE_Y) || !defined(STRIDE_X) || !defined(PADDING_Y) || !defined(PADDING_X) || !defined(POOL_SIZE) || \
    !defined(POOL_STRIDE) || !defined(CONV_HEIGHT) || !defined(CONV_WIDTH) || !defined(OUT_HEIGHT) || \
    !defined(OUT_WIDTH) || !defined(OUT_WORDS)
#error "a layer's shape is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#if !defined(CHUNKS) || !defined(CHUNK_WORDS) || !defined(STAGE_CHUNKS) || !defined(STAGE_ROWS) || !defined(STEP_TAPS) || \
    !defined(POSITIONS) || !defined(PATCH) || !defined(TILE_ROWS) || !defined(TILE_PATCHES) || !defined(TILE_FILTERS)
#error "a layer's tile is not stated; see bnn_perception/backends/cuda/specs.py"
#endif

// Where the words of this block's frame go; an epilogue knows that by itself.
#if EPILOGUE
#define BITS_OF_FRAME nullptr
#else
#define BITS_OF_FRAME output + static_cast<size_t>(blockIdx.z) * (OUT_HEIGHT * OUT_WIDTH * OUT_WORDS)
#endif

#define WARPS (TILE_ROWS * TILE_PATCHES * TILE_FILTERS)
#define THREADS (WARPS * WARP)

// Sums of the convolution that a patch of outputs pools, side by side.
#define COLUMNS ((PATCH - 1) * POOL_STRIDE + POSITIONS)

// The input under a block's outputs.
#define TILE_IN_ROWS (((TILE_ROWS - 1) * POOL_STRIDE + POSITIONS - 1) * STRIDE_Y + TAPS_Y)
#define TILE_COLUMNS (TILE_PATCHES * PATCH)
#define TILE_IN_COLUMNS \
  (((TILE_COLUMNS - 1) * POOL_STRIDE + POSITIONS - 1) * STRIDE_X + (TAPS_X - 1) * TAP_STEP + 1)
#define TILE_PITCH (divide_up(TILE_IN_COLUMNS * CHUNK_WORDS, 4) * 4)  // words; rows stay aligned to 16 bytes
#define TILE_WORDS (TILE_IN_ROWS * TILE_PITCH)

#define ROW_WEIGHTS (TAPS_X * CHUNK_WORDS * WARP)  // words of 32 filters for one row of the kernel and one chunk
#define STAGE_WEIGHTS (STAGE_ROWS * ROW_WEIGHTS)

#define CONV2D_SHARED                                               \
  __shared__ __align__(16) unsigned tile[STAGE_CHUNKS * TILE_WORDS]; \
  __shared__ __align__(16) unsigned staged_weights[TILE_FILTERS * STAGE_CHUNKS * STAGE_WEIGHTS]

// One stage's part of the input. `top` and `left` are where the tile begins, and may lie outside.
template <class Element>
__device__ __forceinline__ void stage_tile(const Element& element, unsigned* tile, const unsigned* frame, int top,
                                           int left, int first_chunk) {
  constexpr int stage_words = STAGE_CHUNKS * CHUNK_WORDS;
  for (int i = threadIdx.x; i < TILE_IN_ROWS * TILE_IN_COLUMNS * stage_words; i += THREADS) {
    const int word = i % stage_words, column = i / stage_words % TILE_IN_COLUMNS, row = i / stage_words / TILE_IN_COLUMNS;
    tile[word / CHUNK_WORDS * TILE_WORDS + row * TILE_PITCH + column * CHUNK_WORDS + word % CHUNK_WORDS] =
        element.load(frame, top + row, left + column, first_chunk * CHUNK_WORDS + word);
  }
}

// One stage's weights, from (filter word, chunk, tap_y, tap_x, word, 32 filters) as cuda/packing.py lays them.
__device__ __forceinline__ void stage_weights(unsigned* staged, const unsigned* weights, int first_filter_word,
                                              int first_chunk, int first_row) {
  constexpr int vectors = STAGE_WEIGHTS / 4;
  for (int i = threadIdx.x; i < TILE_FILTERS * STAGE_CHUNKS * vectors; i += THREADS) {
    const int at = i % vectors, chunk = i / vectors % STAGE_CHUNKS, filter_word = i / vectors / STAGE_CHUNKS;
    const unsigned* from = weights + static_cast<size_t>((first_filter_word + filter_word) * CHUNKS + first_chunk + chunk) *
                                         (TAPS_Y * ROW_WEIGHTS) + first_row * ROW_WEIGHTS;
    reinterpret_cast<uint4*>(staged)[i] = __ldg(reinterpret_cast<const uint4*>(from) + at);
  }
}

// Adds what one stage contributes to the sums of a warp. `corner` is the tile's word at the first sum's first tap.
template <class Element>
__device__ __forceinline__ void accumulate_stage(const Element& element, int (&sums)[POSITIONS][COLUMNS],
                                                 const unsigned* corner, const unsigned* filter, int first_row) {
  constexpr int segment = ((COLUMNS - 1) * STRIDE_X + (STEP_TAPS - 1) * TAP_STEP + 1) * CHUNK_WORDS;
  constexpr int step = STEP_TAPS * TAP_STEP * CHUNK_WORDS;
  constexpr int vector = vector_words(PATCH * POOL_STRIDE * STRIDE_X * CHUNK_WORDS | (STEP_TAPS < TAPS_X ? step : 0));
#pragma unroll 1
  for (int chunk = 0; chunk < STAGE_CHUNKS; ++chunk) {
#pragma unroll 1
    for (int row = 0; row < STAGE_ROWS; ++row) {
#pragma unroll 1
      for (int tap = 0; tap < TAPS_X; tap += STEP_TAPS) {
        unsigned weight[STEP_TAPS * CHUNK_WORDS];
#pragma unroll
        for (int i = 0; i < STEP_TAPS * CHUNK_WORDS; ++i) {
          weight[i] = filter[chunk * STAGE_WEIGHTS + row * ROW_WEIGHTS + (tap * CHUNK_WORDS + i) * WARP];
        }
#pragma unroll
        for (int y = 0; y < POSITIONS; ++y) {
          unsigned line[segment];
          load_words<segment, vector>(line, corner + chunk * TILE_WORDS + (y * STRIDE_Y + first_row + row) * TILE_PITCH +
                                                tap * TAP_STEP * CHUNK_WORDS);
#pragma unroll
          for (int x = 0; x < COLUMNS; ++x) {
            sums[y][x] += element.template products<STEP_TAPS * CHUNK_WORDS>(line + x * STRIDE_X * CHUNK_WORDS, weight);
          }
        }
      }
    }
  }
}

// The layer. An Element knows what a word of the tile is and how it is multiplied:
//   load(frame, row, column, word)      the tile's word at a place of the input, which may lie outside
//   products<N>(line, weight)           the products of N taps, added
//   dot(sum, y, x, channel)             the value of the convolution's pixel (y, x), from all of its products
template <class Element>
__device__ __forceinline__ void conv2d(const Element& element, const Epilogue& epilogue, unsigned* tile, unsigned* staged_weights,
                                       const unsigned* frame, const unsigned* weights, const int* threshold,
                                       const unsigned* flip, unsigned* output) {
  constexpr int tiles_x = divide_up(OUT_WIDTH, TILE_COLUMNS);
  constexpr bool one_stage = STAGE_CHUNKS == CHUNKS && STAGE_ROWS == TAPS_Y && POSITIONS == POOL_SIZE;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int patch = warp % TILE_PATCHES, row = warp / TILE_PATCHES % TILE_ROWS, filters = warp / TILE_PATCHES / TILE_ROWS;
  const int tile_y = blockIdx.x / tiles_x * TILE_ROWS, tile_x = blockIdx.x % tiles_x * TILE_COLUMNS;
  const int out_y = tile_y + row, out_x = tile_x + patch * PATCH;
  const int filter_word = blockIdx.y * TILE_FILTERS + filters, channel = filter_word * WARP + lane;
  const bool inside = out_y < OUT_HEIGHT && out_x < OUT_WIDTH;  // the same for all lanes of a warp
  const unsigned* corner = tile + row * POOL_STRIDE * STRIDE_Y * TILE_PITCH + patch * PATCH * POOL_STRIDE * STRIDE_X * CHUNK_WORDS;
  const unsigned* filter = staged_weights + filters * STAGE_CHUNKS * STAGE_WEIGHTS + lane;

  int largest[PATCH];
#pragma unroll
  for (int i = 0; i < PATCH; ++i) largest[i] = -0x7fffffff - 1;

#pragma unroll 1
  for (int pool_y = 0; pool_y < POOL_SIZE; pool_y += POSITIONS) {
#pragma unroll 1
    for (int pool_x = 0; pool_x < POOL_SIZE; pool_x += POSITIONS) {
      const int top = (tile_y * POOL_STRIDE + pool_y) * STRIDE_Y - PADDING_Y;
      const int left = (tile_x * POOL_STRIDE + pool_x) * STRIDE_X - PADDING_X;
      int sums[POSITIONS][COLUMNS] = {};
#pragma unroll 1
      for (int chunk = 0; chunk < CHUNKS; chunk += STAGE_CHUNKS) {
#pragma unroll 1
        for (int tap_row = 0; tap_row < TAPS_Y; tap_row += STAGE_ROWS) {
          if (tap_row == 0) stage_tile(element, tile, frame, top, left, chunk);
          stage_weights(staged_weights, weights, blockIdx.y * TILE_FILTERS, chunk, tap_row);
          __syncthreads();
          if (inside) accumulate_stage(element, sums, corner, filter, tap_row);
          if (!one_stage) __syncthreads();  // the next stage overwrites what other warps may still read
        }
      }
#pragma unroll
      for (int i = 0; i < PATCH; ++i) {
#pragma unroll
        for (int y = 0; y < POSITIONS; ++y) {
#pragma unroll
          for (int x = 0; x < POSITIONS; ++x) {
            const int conv_y = out_y * POOL_STRIDE + pool_y + y, conv_x = (out_x + i) * POOL_STRIDE + pool_x + x;
            largest[i] = max(largest[i], element.dot(sums[y][i * POOL_STRIDE + x], conv_y, conv_x, channel));
          }
        }
      }
    }
  }

  if (!inside) return;
#if EPILOGUE
  // `threshold` holds what sums lack to be dot products.
  const int lacking = __ldg(threshold + channel);
  unsigned word = 0;  // lane i keeps the word of output i
#pragma unroll
  for (int i = 0; i < PATCH; ++i) {
    const bool exists = out_x + i < OUT_WIDTH && channel < OUT_CHANNELS;
    const float value = __int2float_rn(largest[i] + lacking);
    const unsigned bits = __ballot_sync(FULL_WARP, epilogue.reached(value, out_y * OUT_WIDTH + out_x + i, channel, exists));
    if (lane == i) word = bits;
  }
  if (lane < PATCH && out_x + lane < OUT_WIDTH) epilogue.store(word, out_y * OUT_WIDTH + out_x + lane, filter_word);
#else
  const int needed = __ldg(threshold + channel);
  unsigned word = 0;  // lane i keeps the word of output i
#pragma unroll
  for (int i = 0; i < PATCH; ++i) {
    const unsigned bits = __ballot_sync(FULL_WARP, largest[i] >= needed);
    if (lane == i) word = bits;
  }
  if (lane < PATCH && out_x + lane < OUT_WIDTH) {
    output[(out_y * OUT_WIDTH + out_x + lane) * OUT_WORDS + filter_word] = word ^ __ldg(flip + filter_word);
  }
#endif
}
