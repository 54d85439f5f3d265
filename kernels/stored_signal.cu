// A step that begins with a signal as it is: batch norm, an activation, a shortcut or signs that follow no other step.
// The geometry (block, grid, macros) is stated by stored_signal() in bnn_perception/backends/cuda/specs.py.
#include "signal_step.cuh"

struct Stored {
  const float* frame;

  __device__ __forceinline__ void operator()(int y, int x, int channel, float (&to)[PATCH]) const {
#pragma unroll
    for (int i = 0; i < PATCH; ++i) {
      if (x + i < OUT_WIDTH) to[i] = __ldg(frame + (y * OUT_WIDTH + x + i) * OUT_CHANNELS + channel);
    }
  }
};

// input   (frames, OUT_HEIGHT, OUT_WIDTH, OUT_CHANNELS); the others: epilogue.cuh
extern "C" __global__ void __launch_bounds__(THREADS)
    stored_signal(const float* __restrict__ input EPILOGUE_PARAMETERS) {
  const Epilogue epilogue EPILOGUE_VALUES;
  signal_step(Stored{input + static_cast<size_t>(blockIdx.z) * (OUT_PIXELS * OUT_CHANNELS)}, epilogue);
}
