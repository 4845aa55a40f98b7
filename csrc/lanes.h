// Vectors of floats, written once for every instruction set.
//
// A file that includes this is compiled once per instruction set, with MAPPA_ISA naming it and MAPPA_LANES its width;
// all names live in a namespace of that set, and no standard header with inline code is included: a function compiled
// for AVX-512 must never be the copy that the linker keeps for a machine without it.
#pragma once

#include <cfloat>
#include <cstdint>

namespace mappa::MAPPA_ISA {

constexpr int LANES = MAPPA_LANES;

typedef float F __attribute__((vector_size(4 * MAPPA_LANES)));
typedef int32_t I __attribute__((vector_size(4 * MAPPA_LANES)));
typedef float UnalignedF __attribute__((vector_size(4 * MAPPA_LANES), aligned(4), may_alias));
typedef int32_t UnalignedI __attribute__((vector_size(4 * MAPPA_LANES), aligned(2), may_alias));
typedef uint16_t UnalignedH __attribute__((vector_size(2 * MAPPA_LANES), aligned(2), may_alias));
typedef uint16_t H __attribute__((vector_size(2 * MAPPA_LANES)));

typedef double D __attribute__((vector_size(8 * MAPPA_LANES)));
typedef double UnalignedD __attribute__((vector_size(8 * MAPPA_LANES), aligned(8), may_alias));

inline F load(const float* p) { return *reinterpret_cast<const UnalignedF*>(p); }
inline void store(float* p, F x) { *reinterpret_cast<UnalignedF*>(p) = x; }
inline D load_double(const double* p) { return *reinterpret_cast<const UnalignedD*>(p); }
inline void store_double(double* p, D x) { *reinterpret_cast<UnalignedD*>(p) = x; }
inline D widen(F x) { return __builtin_convertvector(x, D); }
inline F all(float x) { return x - F{}; }  // the only form of a broadcast that compilers see through: x - 0 is x
inline F larger(F a, F b) { return a > b ? a : b; }  // b where a is NaN

// exp(x) for x <= 0, within an ulp; 0 at EXP_LOWEST and below; NaN stays NaN. `x` becomes at least EXP_LOWEST, so that
// exp(x) * x is 0 there too. Cephes' polynomial for expf.
constexpr float EXP_LOWEST = -87.0f;
inline F exp(F& x) {
  const F lowest = all(EXP_LOWEST);
  x = x < lowest ? lowest : x;
  const F magic = all(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer, which its low bits then hold
  const F shifted = x * 1.44269504f + magic;
  const F n = shifted - magic;
  F r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  const F power = (F)((I)p + (((I)shifted - (I)magic) << 23));
  return x == lowest ? F{} : power;
}

// bfloat16 and IEEE half, as the low 16 bits of each lane.
inline F widen_bfloat(I x) { return (F)(x << 16); }
inline F widen_half(I x) {
  const I magnitude = (x & 0x7fff) << 13;
  const I scaled = (I)((F)magnitude * 0x1p112f);  // moves the exponent's bias from 15 to 127, subnormals included
  const I special = magnitude | 0x7f800000;       // infinity and NaN keep an exponent of all ones
  const I bits = (x & 0x7c00) == 0x7c00 ? special : scaled;
  return (F)(bits | ((x & 0x8000) << 16));
}
inline I load16(const uint16_t* p) { return __builtin_convertvector(*reinterpret_cast<const UnalignedH*>(p), I); }

// Round to nearest even; NaN stays NaN.
inline I narrow_bfloat(F x) {
  const I bits = (I)x;
  const I rounded = bits + 0x7fff + ((bits >> 16) & 1);
  const I nan = bits | 0x00400000;
  return ((x != x ? nan : rounded) >> 16) & 0xffff;
}
inline I narrow_half(F x) {
  const I bits = (I)x & 0x7fffffff, sign = ((I)x >> 16) & 0x8000;
  const I normal = (bits - (112 << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
  const I subnormal = (I)((F)bits + 0.5f) - 0x3f000000;  // the addition rounds at half's smallest step
  const I special = bits > 0x7f800000 ? I{} + 0x7e00 : I{} + 0x7c00;
  const I small = bits < (113 << 23) ? subnormal : normal;
  return (bits >= 0x477ff000 ? special : small) | sign;
}
inline void store_whole(uint16_t* p, I x) { *reinterpret_cast<UnalignedI*>(p) = x; }  // both halves of each lane
inline void store16(uint16_t* p, I x) {
  *reinterpret_cast<UnalignedH*>(p) = (UnalignedH)__builtin_convertvector(x, H);
}

// Lane j of the result is lane places[j] of a and b side by side.
inline I shuffle(I a, I b, I places) {
#ifdef __clang__
  I out;
  for (int j = 0; j < LANES; ++j) out[j] = places[j] < LANES ? a[places[j]] : b[places[j] - LANES];
  return out;
#else
  return __builtin_shuffle(a, b, places);
#endif
}

// Lane j of vector i becomes lane i of vector j: squares of 1, 2, 4, ... lanes change places across the diagonal.
inline __attribute__((always_inline)) void transpose(I (&square)[LANES]) {
#pragma GCC unroll 4
  for (int side = 1; side < LANES; side *= 2) {
    I upper{}, lower{};
    for (int j = 0; j < LANES; ++j) {
      upper[j] = j & side ? LANES + j - side : j;
      lower[j] = j & side ? LANES + j : j + side;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i)
      if (!(i & side)) {
        const I a = square[i], b = square[i + side];
        square[i] = shuffle(a, b, upper);
        square[i + side] = shuffle(a, b, lower);
      }
  }
}

}  // namespace mappa::MAPPA_ISA
