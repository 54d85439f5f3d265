// Fully connected layer from bits: dot = FAN_IN - 2 * Hamming distance, and what is made of it by RESULT:
//   BITS          bit = (dot >= threshold) ^ flip, packed
//   LOGITS        scale * dot + bias
//   BIT_LOGITS    high where the bit is 1, low where it is 0
// The geometry (block, grid, shared memory, macros) is stated by dense() in bnn_perception/backends/cuda/specs.py.
//
// Mapping  LANES lanes share an output and go along its words side by side, LOAD_WORDS words a load (a vector) and STEP
//          loads at once, for FRAMES frames, so that a weight is loaded once for all of them. A block makes OUTPUTS outputs: 8, 16 or 32 of
//          them are a byte, a half or a whole word of bits, so that no two blocks have to join what they make.
// Sums     The lanes of a warp add their counts by shuffles, the warps of an output in shared memory; then a warp stands
//          for a frame and a lane for an output.
// Grid     (outputs / OUTPUTS, 1, frames / FRAMES). BITS takes outputs up to whole words: those past the last are 0.
#include "bits.cuh"

#if !defined(IN_WORDS) || !defined(OUT_FEATURES) || !defined(FAN_IN) || !defined(RESULT)
#error "a layer's shape is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#if !defined(FRAMES) || !defined(OUTPUTS) || !defined(LANES) || !defined(LOAD_WORDS) || !defined(STEP)
#error "a layer's tile is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#define BITS 0
#define LOGITS 1
#define BIT_LOGITS 2
#define THREADS (OUTPUTS * LANES)
#define WARPS (THREADS / WARP)
#define PARTS divide_up(LANES, WARP)
#define OUT_WORDS divide_up(OUT_FEATURES, WARP)
#define VECTORS (IN_WORDS / LOAD_WORDS)
#define PASSES divide_up(VECTORS, LANES * STEP)
// Whether every lane has an i-th vector in every pass.
#define EXISTS(i) (((PASSES - 1) * STEP + (i) + 1) * LANES <= VECTORS)

// The bits that a block makes.
#if OUTPUTS == 32
typedef unsigned Bits;
#elif OUTPUTS == 16
typedef unsigned short Bits;
#else
typedef unsigned char Bits;
#endif

// Loads the STEP vectors of a lane from `vector` on, in place of those past the row, its start.
__device__ __forceinline__ void load(unsigned (&to)[STEP][LOAD_WORDS], const unsigned* row, int vector) {
#pragma unroll
  for (int i = 0; i < STEP; ++i) {
    const int from = vector + i * LANES;
    load_words<LOAD_WORDS, LOAD_WORDS>(to[i], row + (EXISTS(i) || from < VECTORS ? from : 0) * LOAD_WORDS);
  }
}

// Adds to the counts the Hamming distances of the STEP vectors of a lane from `vector` on.
__device__ __forceinline__ void accumulate(int (&counts)[FRAMES], const unsigned* input, const unsigned* row, int vector) {
  unsigned weight[STEP][LOAD_WORDS], value[STEP][LOAD_WORDS];
  load(weight, row, vector);
#pragma unroll
  for (int frame = 0; frame < FRAMES; ++frame) {
    load(value, input + frame * IN_WORDS, vector);
    unsigned difference[STEP * LOAD_WORDS];
#pragma unroll
    for (int i = 0; i < STEP; ++i) {
#pragma unroll
      for (int j = 0; j < LOAD_WORDS; ++j) {
        difference[i * LOAD_WORDS + j] = EXISTS(i) || vector + i * LANES < VECTORS ? value[i][j] ^ weight[i][j] : 0;
      }
    }
    counts[frame] += popcount(difference);
  }
}

// The sum over the lanes of a warp that share an output.
__device__ __forceinline__ int sum_over_lanes(int count) {
#if __CUDA_ARCH__ >= 800 && LANES >= WARP
  return __reduce_add_sync(FULL_WARP, count);
#else
#pragma unroll
  for (int distance = LANES < WARP ? LANES / 2 : WARP / 2; distance > 0; distance /= 2) {
    count += __shfl_xor_sync(FULL_WARP, count, distance);
  }
  return count;
#endif
}

// input      (frames, IN_WORDS)
// weights    (OUT_FEATURES, IN_WORDS)
// threshold  (OUT_WORDS * 32), flip (OUT_WORDS): BITS and BIT_LOGITS
// scale      (OUT_WORDS * 32), bias (OUT_WORDS * 32): LOGITS
// high, low  (OUT_WORDS * 32): BIT_LOGITS
// output     (frames, OUT_WORDS) words for BITS, else (frames, OUT_FEATURES) floats
//
// Told that one block an SM is enough, the compiler does not save registers by using some words before it loads others,
// which would cost another trip to memory.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    dense(const unsigned* __restrict__ input, const unsigned* __restrict__ weights,
#if RESULT == LOGITS
          const float* __restrict__ scale, const float* __restrict__ bias, float* __restrict__ output) {
#elif RESULT == BIT_LOGITS
          const int* __restrict__ threshold, const unsigned* __restrict__ flip, const float* __restrict__ high,
          const float* __restrict__ low, float* __restrict__ output) {
#else
          const int* __restrict__ threshold, const unsigned* __restrict__ flip, Bits* __restrict__ output) {
#endif
  __shared__ int block_counts[FRAMES][OUTPUTS][PARTS];
  const int first_frame = blockIdx.z * FRAMES, first_output = blockIdx.x * OUTPUTS;

  // Constants of the outputs are asked for first, so that they come together with the words.
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int feature = first_output + lane % OUTPUTS;
#if RESULT == LOGITS
  const float feature_scale = __ldg(scale + feature), feature_bias = __ldg(bias + feature);
#else
  const int feature_threshold = __ldg(threshold + feature);
  const unsigned feature_flip = __ldg(flip + feature / WARP) >> feature % WARP & 1;
#endif
#if RESULT == BIT_LOGITS
  const float feature_high = __ldg(high + feature), feature_low = __ldg(low + feature);
#endif

  const int output_of_block = threadIdx.x / LANES, lane_of_output = threadIdx.x % LANES;
  int counts[FRAMES] = {};
  if (first_output < OUT_FEATURES) {
    // An output past the last takes the last one's weights; its threshold is never reached, its logit is not stored.
    const int row = min(first_output + output_of_block, OUT_FEATURES - 1);
    const unsigned* row_weights = weights + static_cast<size_t>(row) * IN_WORDS;
    const unsigned* frames = input + static_cast<size_t>(first_frame) * IN_WORDS;
#pragma unroll 1
    for (int pass = 0; pass < PASSES; ++pass) accumulate(counts, frames, row_weights, pass * (LANES * STEP) + lane_of_output);
  }
#pragma unroll
  for (int frame = 0; frame < FRAMES; ++frame) {
    const int count = sum_over_lanes(counts[frame]);
    if (lane_of_output % WARP == 0) block_counts[frame][output_of_block][lane_of_output / WARP] = count;
  }
  __syncthreads();

  // From here on a warp stands for a frame.
  for (int frame = warp; frame < FRAMES; frame += WARPS) {
    int count = 0;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) count += block_counts[frame][lane % OUTPUTS][part];
    const int dot = FAN_IN - 2 * count;
#if RESULT == LOGITS
    // Rounded after the product and after the sum, never fused, as the reference does.
    const float logit = __fadd_rn(__fmul_rn(__int2float_rn(dot), feature_scale), feature_bias);
#else
    const bool bit = (dot >= feature_threshold) ^ feature_flip;
#endif
#if RESULT == BIT_LOGITS
    const float logit = bit ? feature_high : feature_low;
#endif
#if RESULT == BITS
    const unsigned bits = __ballot_sync(FULL_WARP, bit);
    if (lane == 0) output[static_cast<size_t>(first_frame + frame) * (OUT_WORDS * WARP / OUTPUTS) + blockIdx.x] = bits;
#else
    if (lane < OUTPUTS && feature < OUT_FEATURES) {
      output[static_cast<size_t>(first_frame + frame) * OUT_FEATURES + feature] = logit;
    }
#endif
  }
}
