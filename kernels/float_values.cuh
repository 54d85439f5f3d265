// Elements of the float twin's kernels: float, or half precision kept as its 16 bits. Arithmetic is in float.
#pragma once

#if !defined(HALF)
#error "HALF is not stated; see bnn_perception/backends/cuda/float_specs.py"
#endif

// PTX instead of cuda_fp16.h, so that NVRTC needs no headers. The tests' shim brings its own.
#ifdef __CUDACC__
__device__ __forceinline__ float half_to_float(unsigned short half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}
__device__ __forceinline__ unsigned short float_to_half(float value) {
  unsigned short half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
}
#else
#include "float_on_host.h"
#endif

#if HALF
typedef unsigned short Element;
#define VECTOR 8  // elements of 16 bytes, the widest access
__device__ __forceinline__ unsigned pack_halves(float low, float high) {
  return float_to_half(low) | static_cast<unsigned>(float_to_half(high)) << 16;
}
#else
typedef float Element;
#define VECTOR 4
#endif

// Both take an address that is aligned to 16 bytes.
__device__ __forceinline__ void load_vector(float (&to)[VECTOR], const Element* from) {
#if HALF
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
  const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = half_to_float(static_cast<unsigned short>(words[i]));
    to[2 * i + 1] = half_to_float(static_cast<unsigned short>(words[i] >> 16));
  }
#else
  const float4 v = __ldg(reinterpret_cast<const float4*>(from));
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
#endif
}

__device__ __forceinline__ void store_vector(Element* to, const float (&from)[VECTOR]) {
#if HALF
  *reinterpret_cast<uint4*>(to) = make_uint4(pack_halves(from[0], from[1]), pack_halves(from[2], from[3]),
                                             pack_halves(from[4], from[5]), pack_halves(from[6], from[7]));
#else
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
#endif
}

// The same for VECTOR floats, whatever the elements are.
__device__ __forceinline__ void load_floats(float (&to)[VECTOR], const float* from) {
#pragma unroll
  for (int i = 0; i < VECTOR; i += 4) {
    const float4 v = __ldg(reinterpret_cast<const float4*>(from + i));
    to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
  }
}

__device__ __forceinline__ void store_floats(float* to, const float (&from)[VECTOR]) {
#pragma unroll
  for (int i = 0; i < VECTOR; i += 4) {
    *reinterpret_cast<float4*>(to + i) = make_float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
  }
}
