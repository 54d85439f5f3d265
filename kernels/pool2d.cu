// Maximum or mean of the windows of a signal, as far as they lie inside.
// The geometry (block, grid, macros) is stated by pool2d() in bnn_perception/backends/cuda/specs.py.
#include "signal_step.cuh"

#if !defined(IN_HEIGHT) || !defined(IN_WIDTH) || !defined(KERNEL_Y) || !defined(KERNEL_X) || !defined(STRIDE_Y) || \
    !defined(STRIDE_X) || !defined(PADDING_Y) || !defined(PADDING_X) || !defined(AVERAGES)
#error "a pool's shape is not stated; see bnn_perception/backends/cuda/specs.py"
#endif

struct Windows {
  const float* frame;
  const int* counts;  // (OUT_HEIGHT, OUT_WIDTH) by what sums are divided; read only where AVERAGES

  __device__ __forceinline__ void operator()(int y, int x, int channel, float (&to)[PATCH]) const {
    const int top = y * STRIDE_Y - PADDING_Y;
#pragma unroll
    for (int i = 0; i < PATCH; ++i) {
      if (x + i >= OUT_WIDTH) continue;
      const int left = (x + i) * STRIDE_X - PADDING_X;
      float found = AVERAGES ? 0.0f : -3.402823466e+38f;  // no signal reaches that far
      for (int row = max(top, 0); row < min(top + KERNEL_Y, IN_HEIGHT); ++row) {
        for (int column = max(left, 0); column < min(left + KERNEL_X, IN_WIDTH); ++column) {
          const float value = __ldg(frame + (row * IN_WIDTH + column) * OUT_CHANNELS + channel);
#if AVERAGES
          found = __fadd_rn(found, value);
#else
          found = value > found ? value : found;
#endif
        }
      }
#if AVERAGES
      found = __fdiv_rn(found, __int2float_rn(__ldg(counts + y * OUT_WIDTH + x + i)));
#endif
      to[i] = found;
    }
  }
};

// input   (frames, IN_HEIGHT, IN_WIDTH, OUT_CHANNELS); counts (OUT_HEIGHT, OUT_WIDTH); the others: epilogue.cuh
extern "C" __global__ void __launch_bounds__(THREADS)
    pool2d(const float* __restrict__ input, const int* __restrict__ counts EPILOGUE_PARAMETERS) {
  const Epilogue epilogue EPILOGUE_VALUES;
  const Windows windows{input + static_cast<size_t>(blockIdx.z) * (IN_HEIGHT * IN_WIDTH * OUT_CHANNELS), counts};
  signal_step(windows, epilogue);
}
