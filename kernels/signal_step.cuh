// The part of a step on signals that does not depend on how its values come about: which warp makes which, and its epilogue.
//
// Mapping  A lane is a channel: a warp makes 32 channels of PATCH pixels side by side, and the comparisons of its lanes, gathered
//          by a ballot, are the words of their bits. Grid: (blocks of WARPS warps, 1, frames); warps go over the pixels of a row
//          first, then rows, then words of channels, so that those of a block share weights.
#pragma once
#include "epilogue.cuh"

#if !defined(OUT_HEIGHT) || !defined(OUT_WIDTH) || !defined(OUT_CHANNELS) || !defined(OUT_WORDS) || !defined(PATCH) || \
    !defined(WARPS) || !EPILOGUE
#error "a step's shape, or that a signal follows it, is not stated; see bnn_perception/backends/cuda/specs.py"
#endif
#define THREADS (WARPS * WARP)
#define PATCHES divide_up(OUT_WIDTH, PATCH)

// `values(y, x, channel, (&to)[PATCH])` sets the values of PATCH pixels from (y, x) on; those past the row's end do not count.
template <class Values>
__device__ __forceinline__ void signal_step(const Values& values, const Epilogue& epilogue) {
  const int lane = threadIdx.x % WARP, number = blockIdx.x * WARPS + threadIdx.x / WARP;
  const int x = number % PATCHES * PATCH, y = number / PATCHES % OUT_HEIGHT, word = number / PATCHES / OUT_HEIGHT;
  if (word >= OUT_WORDS) return;  // all of a warp
  const int channel = word * WARP + lane;
  float found[PATCH];
#pragma unroll
  for (int i = 0; i < PATCH; ++i) found[i] = 0.0f;
  if (channel < OUT_CHANNELS) values(y, x, channel, found);
  unsigned bits = 0;  // lane i keeps the word of pixel i
#pragma unroll
  for (int i = 0; i < PATCH; ++i) {
    const bool exists = x + i < OUT_WIDTH && channel < OUT_CHANNELS;
    const unsigned ballot = __ballot_sync(FULL_WARP, epilogue.reached(found[i], y * OUT_WIDTH + x + i, channel, exists));
    if (lane == i) bits = ballot;
  }
  if (lane < PATCH && x + lane < OUT_WIDTH) epilogue.store(bits, y * OUT_WIDTH + x + lane, word);
}
