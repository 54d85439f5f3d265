// Binary convolution on one-bit tensor cores (SM 8.0 to 9.0), an implicit matrix product:
//     dot = FAN_IN - 2 * (ones(a) + ones(w) - 2 * ones(a & w))
// ones(w) has been taken from the threshold; ones(a) comes from the same instruction with a matrix B full of ones.
// The geometry (block, grid, shared memory, macros) is stated by bconv2d_b1mma() in bnn_perception/backends/cuda/specs.py.
//
// Mapping  A warp has 32 filters (four matrices B) and GROUPS groups of 8 outputs, each GROUP_COLUMNS wide, one below the
//          other. A row of A is one pixel of the convolution. Half a matrix A, rows g or g + 8, is a slot: the pixels of
//          one group's outputs at one position of the pool's window; so a pool's maximum stays within a lane.
//          A block has TILE_ROWS x TILE_PATCHES x TILE_FILTERS warps that read one tile of the input in shared memory.
// Grid     (tiles of the output, 32 * TILE_FILTERS filters, frames).
// Depth    The window's words, (tap_y, tap_x, word) in this order, eight a step; past the last one both sides are 0.
#include "bits.cuh"
#include "bmma.cuh"

#if !defined(IN_HEIGHT) || !defined(IN_WIDTH) || !defined(IN_WORDS) || !defined(TAPS_Y) || !defined(TAPS_X) || \
    !defined(STRIDE_Y) || !defined(STRIDE_X) || !defined(PADDING_Y) || !defined(PADDING_X) || !defined(POOL_SIZE) || \
    !defined(POOL_STRIDE) || !defined(OUT_HEIGHT) || !defined(OUT_WIDTH) || !defined(OUT_WORDS)
#error "a layer's shape is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#if !defined(GROUPS) || !defined(GROUP_COLUMNS) || !defined(TILE_ROWS) || !defined(TILE_PATCHES) || !defined(TILE_FILTERS)
#error "a layer's tile is not stated; see bnn_perception/backends/cuda/specs.py"
#endif

#define WARPS (TILE_ROWS * TILE_PATCHES * TILE_FILTERS)
#define THREADS (WARPS * WARP)
#define GROUP_ROWS (8 / GROUP_COLUMNS)
#define POSITIONS (POOL_SIZE * POOL_SIZE)
#define MATRICES (GROUPS * POSITIONS / 2)  // A's that a warp works through
#define TOGETHER (MATRICES % 2 ? 1 : 2)    // so many at a time, to use a B twice
#define WINDOW_WORDS (TAPS_Y * TAPS_X * IN_WORDS)
#define STEPS divide_up(WINDOW_WORDS, 8)

// The input under a block's outputs.
#define TILE_OUT_ROWS (TILE_ROWS * GROUPS * GROUP_ROWS)
#define TILE_OUT_COLUMNS (TILE_PATCHES * GROUP_COLUMNS)
#define TILE_IN_ROWS (((TILE_OUT_ROWS - 1) * POOL_STRIDE + POOL_SIZE - 1) * STRIDE_Y + TAPS_Y)
#define TILE_IN_COLUMNS (((TILE_OUT_COLUMNS - 1) * POOL_STRIDE + POOL_SIZE - 1) * STRIDE_X + TAPS_X)
#define TILE_PITCH (TILE_IN_COLUMNS * IN_WORDS)

// input      (frames, IN_HEIGHT, IN_WIDTH, IN_WORDS)
// weights    (OUT_WORDS, STEPS, 32 lanes, 4 matrices B, 2 registers)
// threshold  (OUT_WORDS * 32), less FAN_IN, plus twice the filter's ones; flip (OUT_WORDS)
// output     (frames, OUT_HEIGHT, OUT_WIDTH, OUT_WORDS)
//
// One block an SM at least: asked for no more, ptxas spends more than 64 registers and spills none.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    bconv2d_b1mma(const unsigned* __restrict__ input, const unsigned* __restrict__ weights, const int* __restrict__ threshold,
                  const unsigned* __restrict__ flip, unsigned* __restrict__ output) {
  __shared__ unsigned tile[TILE_IN_ROWS * TILE_PITCH];
  __shared__ int offsets[STEPS * 8];  // from a window's first word to each of its words in the tile

  constexpr int tiles_x = divide_up(OUT_WIDTH, TILE_OUT_COLUMNS);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  const int patch = warp % TILE_PATCHES, row = warp / TILE_PATCHES % TILE_ROWS;
  const int filter_word = blockIdx.y * TILE_FILTERS + warp / TILE_PATCHES / TILE_ROWS;
  const int tile_y = blockIdx.x / tiles_x * TILE_OUT_ROWS, tile_x = blockIdx.x % tiles_x * TILE_OUT_COLUMNS;
  input += static_cast<size_t>(blockIdx.z) * (IN_HEIGHT * IN_WIDTH * IN_WORDS);
  output += static_cast<size_t>(blockIdx.z) * (OUT_HEIGHT * OUT_WIDTH * OUT_WORDS);

  const int top = tile_y * POOL_STRIDE * STRIDE_Y - PADDING_Y, left = tile_x * POOL_STRIDE * STRIDE_X - PADDING_X;
  for (int i = threadIdx.x; i < TILE_IN_ROWS * TILE_PITCH; i += THREADS) {
    const int y = top + i / TILE_PITCH, x = left + i % TILE_PITCH / IN_WORDS;
    const bool inside = y >= 0 && y < IN_HEIGHT && x >= 0 && x < IN_WIDTH;
    tile[i] = inside ? __ldg(input + (y * IN_WIDTH + x) * IN_WORDS + i % IN_WORDS) : 0;
  }
  for (int k = threadIdx.x; k < STEPS * 8; k += THREADS) {
    const int tap_y = k / (TAPS_X * IN_WORDS), rest = k % (TAPS_X * IN_WORDS);
    offsets[k] = k < WINDOW_WORDS ? tap_y * TILE_PITCH + rest : 0;
  }
  __syncthreads();

  int largest[GROUPS][4][2];  // by group, matrix B, column: filter 8 * B + 2 * t + column
#pragma unroll
  for (int group = 0; group < GROUPS; ++group) {
#pragma unroll
    for (int b = 0; b < 4; ++b) largest[group][b][0] = largest[group][b][1] = -0x7fffffff - 1;
  }
  const int first_row = row * GROUPS * GROUP_ROWS + g / GROUP_COLUMNS, column = patch * GROUP_COLUMNS + g % GROUP_COLUMNS;
  const uint4* filters = reinterpret_cast<const uint4*>(weights) + (static_cast<size_t>(filter_word) * STEPS * WARP + lane) * 2;

#pragma unroll 1
  for (int matrix = 0; matrix < MATRICES; matrix += TOGETHER) {
    const unsigned* windows[TOGETHER][2];
#pragma unroll
    for (int m = 0; m < TOGETHER; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slot = 2 * (matrix + m) + half, group = slot % GROUPS, position = slot / GROUPS;
        const int y = ((first_row + group * GROUP_ROWS) * POOL_STRIDE + position / POOL_SIZE) * STRIDE_Y;
        const int x = (column * POOL_STRIDE + position % POOL_SIZE) * STRIDE_X;
        windows[m][half] = tile + y * TILE_PITCH + x * IN_WORDS;
      }
    }
    int both[TOGETHER][4][4] = {}, ones[TOGETHER][4] = {};
#pragma unroll 1
    for (int step = 0; step < STEPS; ++step) {
      const uint4 b01 = __ldg(filters + step * (WARP * 2)), b23 = __ldg(filters + step * (WARP * 2) + 1);
      const unsigned filter[4][2] = {{b01.x, b01.y}, {b01.z, b01.w}, {b23.x, b23.y}, {b23.z, b23.w}};
      const unsigned all[2] = {~0u, ~0u};
      const int k0 = step * 8 + t, k1 = k0 + 4, offset0 = offsets[k0], offset1 = offsets[k1];
      const bool used0 = WINDOW_WORDS % 8 == 0 || k0 < WINDOW_WORDS, used1 = WINDOW_WORDS % 8 == 0 || k1 < WINDOW_WORDS;
#pragma unroll
      for (int m = 0; m < TOGETHER; ++m) {
        const unsigned a[4] = {used0 ? windows[m][0][offset0] : 0, used0 ? windows[m][1][offset0] : 0,
                               used1 ? windows[m][0][offset1] : 0, used1 ? windows[m][1][offset1] : 0};
        mma_and_popc(ones[m], a, all);
#pragma unroll
        for (int b = 0; b < 4; ++b) mma_and_popc(both[m][b], a, filter[b]);
      }
    }
#pragma unroll
    for (int m = 0; m < TOGETHER; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int b = 0; b < 4; ++b) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            // The slot's group: 2 * TOGETHER is a multiple of GROUPS, so `matrix` does not matter.
            int& so_far = largest[(2 * m + half) % GROUPS][b][c];
            so_far = max(so_far, 4 * both[m][b][2 * half + c] - 2 * ones[m][2 * half + c]);
          }
        }
      }
    }
  }

  const int2* needed = reinterpret_cast<const int2*>(threshold + filter_word * WARP) + t;
#pragma unroll
  for (int group = 0; group < GROUPS; ++group) {
    unsigned word = 0;
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const int2 pair = __ldg(needed + b * 4);
      const unsigned bits = (largest[group][b][0] >= pair.x) | (largest[group][b][1] >= pair.y) << 1;
      word |= bits << (8 * b + 2 * t);
    }
    // The four lanes of an output have eight bits each.
    word |= __shfl_xor_sync(FULL_WARP, word, 1);
    word |= __shfl_xor_sync(FULL_WARP, word, 2);
    const int y = tile_y + first_row + group * GROUP_ROWS, x = tile_x + column;
    if (t == group && y < OUT_HEIGHT && x < OUT_WIDTH) {
      output[(y * OUT_WIDTH + x) * OUT_WORDS + filter_word] = word ^ __ldg(flip + filter_word);
    }
  }
}
