// What kernels/float_values.cuh needs of the host: vectors of floats, and half precision, which the kernels reach by PTX.
#pragma once
#include <cmath>
#include <cstring>

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// IEEE 754 binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits.
inline float half_to_float(unsigned short half) {
  const int exponent = half >> 10 & 31, fraction = half & 0x3ff;
  float magnitude;
  if (exponent == 31) {
    magnitude = fraction ? NAN : INFINITY;
  } else {
    magnitude = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(static_cast<float>(fraction), -24);
  }
  return half & 0x8000 ? -magnitude : magnitude;
}

// To the nearest, ties to even.
inline unsigned short float_to_half(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  const unsigned short sign = bits >> 16 & 0x8000;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  // Units in the last place of the half: 2**-24 below 2**-14, else 2**(exponent - 10). nearbyint rounds ties to even,
  // and a carry out of the fraction is the next exponent's zero fraction.
  if (magnitude < 0x1p-14f) return sign | static_cast<unsigned short>(std::nearbyint(std::ldexp(magnitude, 24)));
  const int exponent = std::ilogb(magnitude);
  const int fraction = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<unsigned short>(sign + ((exponent + 14) << 10) + fraction);
}
