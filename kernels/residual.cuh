// What stands between a convolution's integers and its bits: nothing, or a residual (WithResidual in
// bnn_perception/net/layers.py),
//     value = m * dot + offset + shortcut,   m = multiplier where dot >= 0, else negative multiplier,
//     bit   = (value >= threshold) ^ flip.
//
// Macros   RESIDUAL           0: the layer has none, and the others are not stated.
//          SHORTCUT           what is added of the residual that comes with the input: 0 nothing, 1 the same pixel,
//                             2 the mean of the 2x2 pixels under it, rounded down.
//          SHORTCUT_CHANNELS  of that residual, where SHORTCUT is not 0; filter c gets channel c % SHORTCUT_CHANNELS.
//          RESIDUAL_STORED    1 where the layer that follows reads the residual; else nothing stores it.
//          OUT_CHANNELS       filters that exist.
// Layout   (frames, height, width, channels) int. Where a lane is a filter, a warp accesses 128 adjacent bytes.
#pragma once
#include "bits.cuh"

#if !defined(RESIDUAL) || \
    (RESIDUAL && (!defined(SHORTCUT) || !defined(RESIDUAL_STORED) || !defined(OUT_CHANNELS))) || \
    (RESIDUAL && SHORTCUT && !defined(SHORTCUT_CHANNELS))
#error "whether a layer has a residual, or what it adds to it, is not stated; see bnn_perception/backends/cuda/specs.py"
#endif

// A kernel's parameters for it, before and behind its output, and the Residual that they make.
#if !RESIDUAL
#define RESIDUAL_CONSTANTS
#define RESIDUAL_ARRAYS
#define RESIDUAL_VALUES {}
#else
#define RESIDUAL_CONSTANTS const int4* __restrict__ scales,
#if SHORTCUT && RESIDUAL_STORED
#define RESIDUAL_ARRAYS , const int* __restrict__ before, int* __restrict__ after
#define RESIDUAL_VALUES {scales, before, after}
#elif SHORTCUT
#define RESIDUAL_ARRAYS , const int* __restrict__ before
#define RESIDUAL_VALUES {scales, before, nullptr}
#elif RESIDUAL_STORED
#define RESIDUAL_ARRAYS , int* __restrict__ after
#define RESIDUAL_VALUES {scales, nullptr, after}
#else
#define RESIDUAL_ARRAYS
#define RESIDUAL_VALUES {scales, nullptr, nullptr}
#endif
#endif

#if !RESIDUAL
struct Residual {};
#else

typedef int4 Scale;  // of a filter: multiplier, negative multiplier, offset, and what its sums lack to be dot products

struct Residual {
  const Scale* scales;  // (filter words * 32)
  const int* before;    // (frames, IN_HEIGHT, IN_WIDTH, SHORTCUT_CHANNELS); read only where SHORTCUT is not 0
  int* after;           // (frames, OUT_HEIGHT, OUT_WIDTH, OUT_CHANNELS); written only where RESIDUAL_STORED

  __device__ __forceinline__ Scale scale(int channel) const { return __ldg(scales + channel); }

  // What is compared with the threshold for the output (y, x), from the largest sum under it. Stores it where that is due.
  __device__ __forceinline__ int value(int sum, const Scale& scale, int y, int x, int channel) const {
    if (y >= OUT_HEIGHT || x >= OUT_WIDTH || channel >= OUT_CHANNELS) return 0;  // below the threshold NEVER
    const int dot = sum + scale.w;
    const int value = (dot >= 0 ? scale.x : scale.y) * dot + scale.z + shortcut(y, x, channel);
#if RESIDUAL_STORED
    after[static_cast<size_t>(blockIdx.z) * (OUT_HEIGHT * OUT_WIDTH * OUT_CHANNELS) +
          (y * OUT_WIDTH + x) * OUT_CHANNELS + channel] = value;
#endif
    return value;
  }

 private:
  __device__ __forceinline__ int shortcut(int y, int x, int channel) const {
#if SHORTCUT
    const int* frame = before + static_cast<size_t>(blockIdx.z) * (IN_HEIGHT * IN_WIDTH * SHORTCUT_CHANNELS) +
                       channel % SHORTCUT_CHANNELS;
    constexpr int side = SHORTCUT;  // of the window, and its stride
    int sum = 0;
#pragma unroll
    for (int i = 0; i < side * side; ++i) {
      sum += __ldg(frame + ((y * side + i / side) * IN_WIDTH + x * side + i % side) * SHORTCUT_CHANNELS);
    }
    return side == 2 ? sum >> 2 : sum;  // the shift rounds down
#else
    return 0;
#endif
  }
};

#endif
