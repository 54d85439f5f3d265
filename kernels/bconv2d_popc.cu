// Binary convolution by XOR and POPC: dot = FAN_IN - 2 * Hamming distance, what lies outside the input being -1.
// The geometry (block, grid, shared memory, macros) is stated by conv2d() in bnn_perception/backends/cuda/specs.py.
#include "conv2d.cuh"

#if !defined(FAN_IN) || !defined(BORDER_COLUMNS)
#error "FAN_IN or BORDER_COLUMNS is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#define IN_WORDS (CHUNKS * CHUNK_WORDS)

struct Binary {
  const int* border;  // see below; read only where BORDER_COLUMNS > 0

  __device__ __forceinline__ unsigned load(const unsigned* frame, int row, int column, int word) const {
    const bool inside = row >= 0 && row < IN_HEIGHT && column >= 0 && column < IN_WIDTH;
    return inside ? __ldg(frame + (row * IN_WIDTH + column) * IN_WORDS + word) : 0;
  }

  template <int N>
  __device__ __forceinline__ int products(const unsigned* line, const unsigned* weight) const {
    return hamming_distance<N>(line, weight);
  }

  __device__ __forceinline__ int dot(int sum, int y, int x, int channel) const {
    int value = FAN_IN - 2 * sum;
#if BORDER_COLUMNS > 0
    // Sums past the last row or column belong to outputs that are not stored.
    const int row = __ldg(border + min(y, CONV_HEIGHT - 1)), column = __ldg(border + CONV_HEIGHT + min(x, CONV_WIDTH - 1));
    const int* table = border + CONV_HEIGHT + CONV_WIDTH;
    value += __ldg(table + (row * BORDER_COLUMNS + column) * (OUT_WORDS * WARP) + channel);
#endif
    return value;
  }
};

// input      (frames, IN_HEIGHT, IN_WIDTH, IN_WORDS)
// weights    (OUT_WORDS, CHUNKS, TAPS_Y, TAPS_X, CHUNK_WORDS, 32)
// threshold  (OUT_WORDS * 32); flip (OUT_WORDS)
// border     turns padding by -1 into padding by 0 where BORDER_COLUMNS > 0: the table's row of each row of the
//            convolution, the table's column of each of its columns, then the table (rows, BORDER_COLUMNS, OUT_WORDS * 32)
// output     (frames, OUT_HEIGHT, OUT_WIDTH, OUT_WORDS); where a signal follows: epilogue.cuh
extern "C" __global__ void __launch_bounds__(THREADS)
    bconv2d_popc(const unsigned* __restrict__ input, const unsigned* __restrict__ weights, const int* __restrict__ threshold,
                 const unsigned* __restrict__ flip, const int* __restrict__ border EPILOGUE_PARAMETERS) {
  CONV2D_SHARED;
  const Binary element{border};
  const Epilogue epilogue EPILOGUE_VALUES;
  conv2d(element, epilogue, tile, staged_weights, input + static_cast<size_t>(blockIdx.z) * (IN_HEIGHT * IN_WIDTH * IN_WORDS),
         weights, threshold, flip, BITS_OF_FRAME);
}
