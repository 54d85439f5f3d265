// Fully connected layer from bits: dot = FAN_IN - 2 * Hamming distance, and what is made of it by RESULT:
//   BITS          bit = (dot >= threshold) ^ flip, packed
//   LOGITS        scale * dot + bias
//   BIT_LOGITS    high where the bit is 1, low where it is 0
// The geometry (block, grid, shared memory, macros) is stated by dense() in bnn_perception/backends/cuda/specs.py.
//
// Mapping  A lane is an output: 32 outputs make a warp, whose bits, gathered by a ballot, are one word. The words of the
//          input are cut into SPLITS * WARPS slices: each warp of a block takes one, for FRAMES frames at once, so that a
//          weight is loaded once for all of them. The block adds its warps' counts in shared memory.
// Grid     (SPLITS, words of outputs, frames / FRAMES).
// Splits   Where SPLITS > 1, the blocks of one output word leave their counts in `partial`, and the last one to come
//          adds them up. Sums of integers do not depend on the order, so the result is the same each time.
#include "bits.cuh"

#if !defined(IN_WORDS) || !defined(OUT_FEATURES) || !defined(FAN_IN) || !defined(RESULT)
#error "a layer's shape is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#if !defined(FRAMES) || !defined(WARPS) || !defined(SPLITS) || !defined(SLICE) || !defined(STEP)
#error "a layer's tile is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#define BITS 0
#define LOGITS 1
#define BIT_LOGITS 2
#define THREADS (WARPS * WARP)
#define OUT_WORDS divide_up(OUT_FEATURES, WARP)

// Adds to the counts the Hamming distances of the STEP words from k on; words from `end` on are left out.
__device__ __forceinline__ void accumulate(int (&counts)[FRAMES], const unsigned* input, const unsigned* weights, int k, int end) {
  constexpr bool whole = IN_WORDS % SLICE == 0 && SLICE % STEP == 0;
  unsigned weight[STEP];
#pragma unroll
  for (int i = 0; i < STEP; ++i) weight[i] = whole || k + i < end ? __ldg(weights + (k + i) * WARP) : 0;
#pragma unroll
  for (int frame = 0; frame < FRAMES; ++frame) {
    unsigned value[STEP];
#pragma unroll
    for (int i = 0; i < STEP; ++i) value[i] = whole || k + i < end ? __ldg(input + frame * IN_WORDS + k + i) : 0;
    counts[frame] += hamming_distance<STEP>(value, weight);
  }
}

// input      (frames, IN_WORDS)
// weights    (OUT_WORDS, IN_WORDS, 32)
// threshold  (OUT_WORDS * 32), flip (OUT_WORDS): BITS and BIT_LOGITS
// scale      (OUT_WORDS * 32), bias (OUT_WORDS * 32): LOGITS
// high, low  (OUT_WORDS * 32): BIT_LOGITS
// output     (frames, OUT_WORDS) words for BITS, else (frames, OUT_FEATURES) floats
// partial    (frames, OUT_WORDS, SPLITS, 32) scratch, and arrivals (frames / FRAMES, OUT_WORDS), 0 before the first launch
//            and after each: both used only where SPLITS > 1
extern "C" __global__ void __launch_bounds__(THREADS)
    dense(const unsigned* __restrict__ input, const unsigned* __restrict__ weights,
#if RESULT == LOGITS
          const float* __restrict__ scale, const float* __restrict__ bias, float* __restrict__ output,
#elif RESULT == BIT_LOGITS
          const int* __restrict__ threshold, const unsigned* __restrict__ flip, const float* __restrict__ high,
          const float* __restrict__ low, float* __restrict__ output,
#else
          const int* __restrict__ threshold, const unsigned* __restrict__ flip, unsigned* __restrict__ output,
#endif
          int* partial, unsigned* arrivals) {
  __shared__ int block_counts[WARPS][FRAMES][WARP];
  __shared__ bool is_last;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int split = blockIdx.x, out_word = blockIdx.y, first_frame = blockIdx.z * FRAMES;
  const int feature = out_word * WARP + lane;

  const int begin = (split * WARPS + warp) * SLICE, end = min(begin + SLICE, IN_WORDS);
  const unsigned* lane_weights = weights + static_cast<size_t>(out_word) * (IN_WORDS * WARP) + lane;
  const unsigned* frames = input + static_cast<size_t>(first_frame) * IN_WORDS;
  int counts[FRAMES] = {};
#pragma unroll 1
  for (int k = begin; k < end; k += STEP) accumulate(counts, frames, lane_weights, k, end);
#pragma unroll
  for (int frame = 0; frame < FRAMES; ++frame) block_counts[warp][frame][lane] = counts[frame];
  __syncthreads();

  // From here on a warp stands for a frame.
  if (SPLITS > 1) {
    for (int frame = warp; frame < FRAMES; frame += WARPS) {
      int count = 0;
#pragma unroll
      for (int i = 0; i < WARPS; ++i) count += block_counts[i][frame][lane];
      const size_t row = static_cast<size_t>(first_frame + frame) * OUT_WORDS + out_word;
      partial[(row * SPLITS + split) * WARP + lane] = count;
    }
    __threadfence();  // the counts are written before the arrival is counted
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicInc(arrivals + blockIdx.z * OUT_WORDS + out_word, SPLITS - 1) == SPLITS - 1;
    __syncthreads();
    if (!is_last) return;
    __threadfence();  // and read after all arrivals
  }
  for (int frame = warp; frame < FRAMES; frame += WARPS) {
    const size_t row = static_cast<size_t>(first_frame + frame) * OUT_WORDS + out_word;
    int count = 0;
    if (SPLITS > 1) {
#pragma unroll 8
      for (int i = 0; i < SPLITS; ++i) count += __ldcg(partial + (row * SPLITS + i) * WARP + lane);
    } else {
#pragma unroll
      for (int i = 0; i < WARPS; ++i) count += block_counts[i][frame][lane];
    }
    const int dot = FAN_IN - 2 * count;
#if RESULT == LOGITS
    // Rounded after the product and after the sum, never fused, as the reference does.
    const float logit = __fadd_rn(__fmul_rn(__int2float_rn(dot), __ldg(scale + feature)), __ldg(bias + feature));
#else
    const unsigned bits = __ballot_sync(FULL_WARP, dot >= __ldg(threshold + feature)) ^ __ldg(flip + out_word);
#endif
#if RESULT == BIT_LOGITS
    const float logit = bits >> lane & 1 ? __ldg(high + feature) : __ldg(low + feature);
#endif
#if RESULT == BITS
    if (lane == 0) output[row] = bits;
#else
    if (feature < OUT_FEATURES) output[static_cast<size_t>(first_frame + frame) * OUT_FEATURES + feature] = logit;
#endif
  }
}
