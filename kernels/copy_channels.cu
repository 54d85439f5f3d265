// The channels of one signal to their place among those of another, which others fill up.
// The geometry (block, grid, macros) is stated by copy_channels() in bnn_perception/backends/cuda/specs.py.
//
// Mapping  A thread copies a value. Grid: (blocks of WARPS * 32 values, 1, frames). Where ZEROS is 1 the channels before FIRST
//          and behind the copied ones become 0.
#include "bits.cuh"

#if !defined(PIXELS) || !defined(CHANNELS) || !defined(OUT_CHANNELS) || !defined(FIRST) || !defined(ZEROS) || !defined(WARPS)
#error "what is copied is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#define THREADS (WARPS * WARP)
#define WRITTEN (ZEROS ? OUT_CHANNELS : CHANNELS)

// input   (frames, PIXELS, CHANNELS)
// output  (frames, PIXELS, OUT_CHANNELS)
extern "C" __global__ void __launch_bounds__(THREADS)
    copy_channels(const float* __restrict__ input, float* __restrict__ output) {
  const int number = blockIdx.x * THREADS + threadIdx.x;
  if (number >= PIXELS * WRITTEN) return;
  const int pixel = number / WRITTEN, place = number % WRITTEN + (ZEROS ? 0 : FIRST), channel = place - FIRST;
  const bool copied = channel >= 0 && channel < CHANNELS;
  const float* from = input + (static_cast<size_t>(blockIdx.z) * PIXELS + pixel) * CHANNELS;
  output[(static_cast<size_t>(blockIdx.z) * PIXELS + pixel) * OUT_CHANNELS + place] = copied ? __ldg(from + channel) : 0.0f;
}
