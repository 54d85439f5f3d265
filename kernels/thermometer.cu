// Thermometer code: bit c * LEVELS + l of a pixel is p[c] >= thresholds[c, l].
// The geometry (block, grid, macros) is stated by thermometer() in bnn_perception/backends/cuda/specs.py.
//
// Mapping  A warp encodes 32 pixels for one word of the code. A lane is a bit: it keeps its threshold, and the pixels go
//          round by shuffle. Grid: (blocks of WARPS * 32 pixels, words, frames).
#include "bits.cuh"

#if !defined(PIXELS) || !defined(CHANNELS) || !defined(LEVELS) || !defined(WARPS)
#error "PIXELS, CHANNELS, LEVELS or WARPS is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#define THREADS (WARPS * WARP)
#define CODE_BITS (CHANNELS * LEVELS)
#define WORDS divide_up(CODE_BITS, WARP)

// input       (frames, PIXELS): one word a pixel, as preprocess.cu writes it
// thresholds  (CHANNELS * LEVELS)
// output      (frames, PIXELS, WORDS)
extern "C" __global__ void __launch_bounds__(THREADS)
    thermometer(const unsigned* __restrict__ input, const unsigned char* __restrict__ thresholds, unsigned* __restrict__ output) {
  const int lane = threadIdx.x % WARP, first = blockIdx.x * THREADS + threadIdx.x - lane;
  if (first >= PIXELS) return;
  const int word = blockIdx.y, bit = word * WARP + lane;
  const bool used = bit < CODE_BITS;
  const unsigned needed = used ? __ldg(thresholds + bit) : 0;
  const int shift = bit / LEVELS * 8;
  const bool stored = first + lane < PIXELS;
  const unsigned pixel = stored ? __ldg(input + static_cast<size_t>(blockIdx.z) * PIXELS + first + lane) : 0;
  unsigned code = 0;
#pragma unroll
  for (int i = 0; i < WARP; ++i) {
    const unsigned value = __shfl_sync(FULL_WARP, pixel, i);
    // A spare bit's shift may pass the word; `used` is asked first.
    const unsigned bits = __ballot_sync(FULL_WARP, used && (value >> shift & 0xff) >= needed);
    if (lane == i) code = bits;
  }
  if (stored) output[(static_cast<size_t>(blockIdx.z) * PIXELS + first + lane) * WORDS + word] = code;
}
