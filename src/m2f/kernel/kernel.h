// The native kernel: numpy_kernel.py, geometry.py and interpolate.py in C, step by step. native.py loads the library
// through ctypes, so the C knows nothing of Python.
//
// The code for each pixel is plain C that compilers turn into SIMD. It is compiled once per instruction set, and the
// caller chooses one. Sums and products are not contracted to FMA, so that every level makes the same masks as numpy,
// bit for bit.

#pragma once

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))

// EACH(level, whether it has FMA, target) for each instruction set of this kind of processor, as m2f_level counts them.
#ifndef __x86_64__
#define EACH_LEVEL(EACH) EACH(baseline, 0, )
#else
#ifdef __clang__
#define AVX512 __attribute__((target("arch=x86-64-v4"), min_vector_width(512)))
#else
#define AVX512 __attribute__((target("arch=x86-64-v4,prefer-vector-width=512")))
#endif
#define AVX2 __attribute__((target("arch=x86-64-v3")))
#define EACH_LEVEL(EACH) EACH(baseline, 0, ) EACH(avx2, 1, AVX2) EACH(avx512, 1, AVX512)
#endif

// The operator from cells to pixels along one axis: see geometry.Taps.
typedef struct {
    int64_t size_in, size_out, taps;  // taps is 2 or 4
    int32_t *source;                  // [taps][size_out], ascending along size_out, the last tap the highest
    float *weight;                    // [taps][size_out]
    int32_t *begin, *end;             // [size_in]: the half-open range of outputs that read a cell
    int64_t padded, valid;            // sizes of the two interpolations it was composed of; 0: composed otherwise
} Axis;

// Computes interpolate.pixels for one pixel of the image, as PyTorch does.
float pytorch_pixel(const float *logits, const Axis *rows, const Axis *columns, int64_t y, int64_t x);

// Returns the number whose half-precision bits are given, exactly. The exponents differ in their bias, by 112. The
// product also makes denormal numbers normal.
INLINE float single(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13, sign = (uint32_t)(half & 0x8000) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    memcpy(&bits, &value, sizeof bits);
    bits |= (half & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;  // infinity and NaN
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t floor_to(int64_t a, int64_t step) { return a / step * step; }
INLINE int64_t ceil_to(int64_t a, int64_t step) { return (a + step - 1) / step * step; }

// Returns a x b + c: one instruction if the level has FMA, two otherwise (a library call would not vectorise).
INLINE float multiply_add(float a, float b, float c, int fma) { return fma ? __builtin_fmaf(a, b, c) : a * b + c; }

// Returns exp(-x) for 0 <= x <= 86. 2^t = 2^n x 2^f, n whole, |f| <= 1/2: the polynomial fits 2^f to 8e-8, relative.
INLINE float exp_of_minus(float x, int fma) {
    const float rounder = 12582912.0f;  // 1.5 x 2^23: adding it rounds to a whole number, kept in the low bits
    float t = x * -1.44269504f, shifted = t + rounder, f = t - (shifted - rounder);
    float p = 1.3276429e-3f;
    p = multiply_add(p, f, 9.6755419e-3f, fma);
    p = multiply_add(p, f, 5.5507135e-2f, fma);
    p = multiply_add(p, f, 2.4022120e-1f, fma);
    p = multiply_add(p, f, 6.9314694e-1f, fma);
    p = multiply_add(p, f, 1.0f, fma);
    uint32_t whole, bits;
    memcpy(&whole, &shifted, 4);
    memcpy(&bits, &p, 4);
    bits += whole << 23;
    memcpy(&p, &bits, 4);
    return p;
}
