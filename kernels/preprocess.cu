// Region of a camera frame -> model input, exactly as bnn_perception/frames/preprocess.py defines it.
// The geometry (block, grid, shared memory, macros) is stated by preprocess() in bnn_perception/backends/cuda/specs.py.
//
// Mapping  A block makes TILE pixels of one row of the output. Down the columns first: each thread takes four bytes of
//          the source at a time and adds them over the rows under the output row, by their integer weights; then along
//          the row: four threads a pixel add up those sums, a channel each, and divide. Wide sources come in chunks.
//          A region of the output's own size is copied instead, THREADS pixels a block; the blocks left over end at once.
// Grid     (tiles of a row, OUT_HEIGHT, frames).
#include "bits.cuh"

#if !defined(OUT_HEIGHT) || !defined(OUT_WIDTH) || !defined(OUT_CHANNELS) || !defined(TILE) || !defined(WARPS)
#error "OUT_HEIGHT, OUT_WIDTH, OUT_CHANNELS, TILE or WARPS is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#if !defined(LUMA_RED) || !defined(LUMA_GREEN) || !defined(LUMA_BLUE)
#error "LUMA_RED, LUMA_GREEN or LUMA_BLUE is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#define THREADS (WARPS * WARP)
#define LANES 4  // threads that share an output pixel: red, green, blue and one idle

// A frame's region as it lies in the upload buffer; the twin of FRAME in bnn_perception/backends/cuda/specs.py.
struct Frame {
  unsigned long long offset;  // of the word that holds the region's first byte from the buffer's start, bytes
  unsigned step;              // from one row to the next, bytes, a multiple of 4
  unsigned pixel_bytes;       // 1, 3 or 4
  unsigned red, green, blue;  // which byte of a pixel they are
  unsigned height, width;     // of the region, 1 to 16384
  unsigned lead;              // bytes of that word before the region, 0 to 3: it may lie within a larger one
};

// Units that source pixel `i` and destination pixel `j` share on a line of source * destination units.
__device__ __forceinline__ int overlap(int i, int j, int source, int destination) {
  return min((j + 1) * source, (i + 1) * destination) - max(j * source, i * destination);
}

// (total + n / 2) / n, at most 255. The quotient by floats is off by one at most, which the remainder shows.
__device__ __forceinline__ unsigned rounded_mean(unsigned long long total, unsigned n) {
  total += n / 2;
  unsigned quotient = static_cast<unsigned>(__fdiv_rn(static_cast<float>(total), static_cast<float>(n)));
  const long long rest = static_cast<long long>(total - static_cast<unsigned long long>(quotient) * n);
  if (rest < 0) --quotient;
  if (rest >= n) ++quotient;
  return quotient;
}

// A pixel of the output.
__device__ __forceinline__ unsigned packed(unsigned red, unsigned green, unsigned blue) {
  return OUT_CHANNELS == 3 ? red | green << 8 | blue << 16
                           : (LUMA_RED * red + LUMA_GREEN * green + LUMA_BLUE * blue + 128) >> 8;  // weights in 1/256
}

// upload  frame descriptors, gridDim.z of them, then pixels
// output  (frames, OUT_HEIGHT, OUT_WIDTH): red | green << 8 | blue << 16, or grey
extern "C" __global__ void __launch_bounds__(THREADS)
    preprocess(const unsigned char* __restrict__ upload, unsigned* __restrict__ output) {
  __shared__ unsigned column_sums[THREADS * 4];  // at most 255 * height
  const Frame frame = reinterpret_cast<const Frame*>(upload)[blockIdx.z];
  const unsigned* pixels = reinterpret_cast<const unsigned*>(upload + frame.offset);
  const int width = frame.width, height = frame.height, pixel_bytes = frame.pixel_bytes, row_words = frame.step / 4;
  output += static_cast<size_t>(blockIdx.z) * (OUT_HEIGHT * OUT_WIDTH);

  if (width == OUT_WIDTH && height == OUT_HEIGHT) {
    const int index = (blockIdx.y * gridDim.x + blockIdx.x) * THREADS + threadIdx.x;
    if (index < OUT_HEIGHT * OUT_WIDTH) {
      const unsigned char* pixel = upload + frame.offset + frame.lead +
                                   static_cast<size_t>(index / OUT_WIDTH) * frame.step + index % OUT_WIDTH * pixel_bytes;
      output[index] = packed(__ldg(pixel + frame.red), __ldg(pixel + frame.green), __ldg(pixel + frame.blue));
    }
    return;
  }

  const int out_y = blockIdx.y, tile_begin = blockIdx.x * TILE, tile_end = min(tile_begin + TILE, OUT_WIDTH);
  const int y_begin = out_y * height / OUT_HEIGHT, y_end = divide_up((out_y + 1) * height, OUT_HEIGHT);
  const int lead = frame.lead;
  const int word_begin = (tile_begin * width / OUT_WIDTH * pixel_bytes + lead) / 4;
  const int word_end = divide_up(divide_up(tile_end * width, OUT_WIDTH) * pixel_bytes + lead, 4);

  const int lane = threadIdx.x % LANES, out_x = tile_begin + threadIdx.x / LANES;
  const bool used = threadIdx.x / LANES < TILE && out_x < OUT_WIDTH;
  const int byte = lane == 0 ? frame.red : lane == 1 ? frame.green : frame.blue;
  const int x_begin = out_x * width / OUT_WIDTH, x_end = divide_up((out_x + 1) * width, OUT_WIDTH);

  unsigned long long total = 0;  // at most 255 * 2**28
  for (int word = word_begin; word < word_end; word += THREADS) {
    if (word + static_cast<int>(threadIdx.x) < word_end) {
      unsigned sums[4] = {};
#pragma unroll 8
      for (int y = y_begin; y < y_end; ++y) {
        const unsigned four = __ldg(pixels + static_cast<size_t>(y) * row_words + word + threadIdx.x);
        const unsigned weight = overlap(y, out_y, height, OUT_HEIGHT);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[i] += (four >> 8 * i & 0xff) * weight;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) column_sums[threadIdx.x * 4 + i] = sums[i];
    }
    __syncthreads();
    if (used && lane < 3) {
      // The pixels of [x_begin, x_end) whose byte lies in this chunk.
      const int first = word * 4 - lead - byte, last = first + THREADS * 4;
      const int x_first = max(x_begin, divide_up(max(first, 0), pixel_bytes)), x_last = min(x_end, divide_up(last, pixel_bytes));
      for (int x = x_first; x < x_last; ++x) {
        total += static_cast<unsigned long long>(column_sums[x * pixel_bytes - first]) * overlap(x, out_x, width, OUT_WIDTH);
      }
    }
    __syncthreads();  // before the next chunk's sums are written
  }

  const unsigned value = rounded_mean(total, width * height);
  const unsigned green = __shfl_down_sync(FULL_WARP, value, 1, LANES), blue = __shfl_down_sync(FULL_WARP, value, 2, LANES);
  if (used && lane == 0) output[out_y * OUT_WIDTH + out_x] = packed(value, green, blue);
}
