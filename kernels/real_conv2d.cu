// Convolution of a signal with real weights: a sum that begins with 0 and takes the product of each tap in the order (row,
// column, channel), product and sum rounded one after the other.
// The geometry (block, grid, macros) is stated by real_conv2d() in bnn_perception/backends/cuda/specs.py.
//
// A tap outside the input counts as 0, which changes no sum: it is left out. Where GROUP_FILTERS and GROUP_CHANNELS are 1 the
// convolution is depthwise, and the lanes of a warp load adjacent values; otherwise all of them load the same one.
#include "signal_step.cuh"

#if !defined(IN_HEIGHT) || !defined(IN_WIDTH) || !defined(IN_CHANNELS) || !defined(KERNEL_Y) || !defined(KERNEL_X) || \
    !defined(STRIDE_Y) || !defined(STRIDE_X) || !defined(PADDING_Y) || !defined(PADDING_X) || !defined(GROUP_CHANNELS) || \
    !defined(GROUP_FILTERS)
#error "a convolution's shape is not stated; see bnn_perception/backends/cuda/specs.py"
#endif

struct Sums {
  const float* frame;
  const float* weights;  // (KERNEL_Y, KERNEL_X, GROUP_CHANNELS, OUT_WORDS * 32)

  __device__ __forceinline__ void operator()(int y, int x, int channel, float (&to)[PATCH]) const {
    const float* group = frame + channel / GROUP_FILTERS * GROUP_CHANNELS;
#pragma unroll 1
    for (int tap_y = 0; tap_y < KERNEL_Y; ++tap_y) {
      const int row = y * STRIDE_Y - PADDING_Y + tap_y;
      if (row < 0 || row >= IN_HEIGHT) continue;
#pragma unroll 1
      for (int tap_x = 0; tap_x < KERNEL_X; ++tap_x) {
        const float* tap = weights + (tap_y * KERNEL_X + tap_x) * GROUP_CHANNELS * LANES + channel;
        const float* from[PATCH];
        bool inside[PATCH];
#pragma unroll
        for (int i = 0; i < PATCH; ++i) {
          const int column = (x + i) * STRIDE_X - PADDING_X + tap_x;
          inside[i] = column >= 0 && column < IN_WIDTH;
          from[i] = group + (row * IN_WIDTH + (inside[i] ? column : 0)) * IN_CHANNELS;
        }
#pragma unroll 4
        for (int c = 0; c < GROUP_CHANNELS; ++c) {
          const float weight = __ldg(tap + c * LANES);
#pragma unroll
          for (int i = 0; i < PATCH; ++i) {
            if (inside[i]) to[i] = __fadd_rn(to[i], __fmul_rn(__ldg(from[i] + c), weight));
          }
        }
      }
    }
  }
};

// input   (frames, IN_HEIGHT, IN_WIDTH, IN_CHANNELS); the others: epilogue.cuh, which adds the bias
extern "C" __global__ void __launch_bounds__(THREADS)
    real_conv2d(const float* __restrict__ input, const float* __restrict__ weights EPILOGUE_PARAMETERS) {
  const Epilogue epilogue EPILOGUE_VALUES;
  const Sums sums{input + static_cast<size_t>(blockIdx.z) * (IN_HEIGHT * IN_WIDTH * IN_CHANNELS), weights};
  signal_step(sums, epilogue);
}
