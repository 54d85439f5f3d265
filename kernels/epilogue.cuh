// What follows the values of a step: a signal of float32 (bnn_perception/net/signals.py), taken through a list of operations,
// stored where another step reads it, and compared with its thresholds. Each operation is rounded once: __fmul_rn and
// __fadd_rn are never contracted.
//
// Macros   EPILOGUE        0: integers are compared with thresholds, and the others are not stated.
//          OPS             the operations, three bits each, the first one lowest; 0 ends the list:
//                          1 scale * x + bias, 2 x or slope * x below 0, 3 min(max(x, low), high), 4 x + addend.
//          OPS_ROWS        rows of parameters that they take: 2, 1, 2 and 0 each.
//          ADDS            1 where one of them is 4.
//          SIGNAL_STORED   1 where another step reads the signal.
//          SIGNS           1 where its signs are the step's bits.
//          OUT_HEIGHT, OUT_WIDTH, OUT_CHANNELS, OUT_WORDS    of the output.
// Layout   signals (frames, height, width, channels). Where a lane is a channel, a warp accesses 128 adjacent bytes.
#pragma once
#include "bits.cuh"

#if !defined(EPILOGUE) || \
    (EPILOGUE && (!defined(OPS) || !defined(OPS_ROWS) || !defined(ADDS) || !defined(SIGNAL_STORED) || !defined(SIGNS)))
#error "what follows the values of a step is not stated; see bnn_perception/backends/cuda/specs.py"
#endif

// A kernel's parameters for it, behind its own constants; and the Epilogue that they make.
#if !EPILOGUE
#define EPILOGUE_PARAMETERS , unsigned* __restrict__ output
#define EPILOGUE_VALUES {}
struct Epilogue {};
#else

// parameters (OPS_ROWS + 1, OUT_WORDS * 32) float: those of the operations, then the thresholds; flip (OUT_WORDS)
#if SIGNS
#define EPILOGUE_BITS , unsigned* __restrict__ output
#define EPILOGUE_OUTPUT output
#else
#define EPILOGUE_BITS
#define EPILOGUE_OUTPUT nullptr
#endif
#if ADDS
#define EPILOGUE_ADDEND , const float* __restrict__ addend
#define EPILOGUE_ADDED addend
#else
#define EPILOGUE_ADDEND
#define EPILOGUE_ADDED nullptr
#endif
#if SIGNAL_STORED
#define EPILOGUE_SIGNAL , float* __restrict__ signal
#define EPILOGUE_STORED signal
#else
#define EPILOGUE_SIGNAL
#define EPILOGUE_STORED nullptr
#endif
#define EPILOGUE_PARAMETERS \
  , const float* __restrict__ parameters, const unsigned* __restrict__ signal_flip EPILOGUE_BITS EPILOGUE_ADDEND EPILOGUE_SIGNAL
#define EPILOGUE_VALUES {parameters, signal_flip, EPILOGUE_OUTPUT, EPILOGUE_ADDED, EPILOGUE_STORED}

#define LANES (OUT_WORDS * WARP)
#define OUT_PIXELS (OUT_HEIGHT * OUT_WIDTH)

// The operations from `ops` on, with parameters from `row` on.
template <unsigned long long Ops>
struct Chain {
  static __device__ __forceinline__ float apply(float x, const float* row, float added) {
    constexpr int op = Ops & 7;
    constexpr int rows = op == 1 || op == 3 ? 2 : op == 2 ? 1 : 0;
    if (op == 1) x = __fadd_rn(__fmul_rn(__ldg(row), x), __ldg(row + LANES));
    if (op == 2) x = x >= 0.0f ? x : __fmul_rn(__ldg(row), x);
    if (op == 3) {
      const float low = __ldg(row), high = __ldg(row + LANES);
      x = x > low ? x : low;
      x = x < high ? x : high;
    }
    if (op == 4) x = __fadd_rn(x, added);
    return Chain<(Ops >> 3)>::apply(x, row + rows * LANES, added);
  }
};

template <>
struct Chain<0> {
  static __device__ __forceinline__ float apply(float x, const float*, float) { return x; }
};

struct Epilogue {
  const float* parameters;
  const unsigned* flip;
  unsigned* output;  // (frames, OUT_HEIGHT, OUT_WIDTH, OUT_WORDS); written only where SIGNS
  const float* addend;
  float* signal;

  // Whether the sign of a channel of the output's pixel is +1 but for its flip, from the channel's value. All lanes of a warp
  // call it; `inside` says whether the pixel and the channel exist.
  __device__ __forceinline__ bool reached(float x, int pixel, int channel, bool inside) const {
#if ADDS || SIGNAL_STORED
    const size_t at = (static_cast<size_t>(blockIdx.z) * OUT_PIXELS + pixel) * OUT_CHANNELS + channel;
#endif
    float added = 0.0f;
#if ADDS
    if (inside) added = __ldg(addend + at);
#endif
    const float y = Chain<OPS>::apply(x, parameters + channel, added);
#if SIGNAL_STORED
    if (inside) signal[at] = y;
#endif
    return inside && y >= __ldg(parameters + OPS_ROWS * LANES + channel);
  }

  // The word of 32 channels of a pixel, from what reached() says of each lane.
  __device__ __forceinline__ void store(unsigned word, int pixel, int filter_word) const {
#if SIGNS
    output[(static_cast<size_t>(blockIdx.z) * OUT_PIXELS + pixel) * OUT_WORDS + filter_word] = word ^ __ldg(flip + filter_word);
#endif
  }
};

#endif
