/* What generated row programs (vqc_row in vqc_c4.h) are written with. */
#ifndef VQC_ROW_H
#define VQC_ROW_H

#include <stddef.h>
#include <string.h>

#include "vqc_math.h"

/* An output may be an input's memory, element on element: no iteration needs another one's result. */
#if defined(__clang__)
#define VQC_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define VQC_INDEPENDENT _Pragma("GCC ivdep")
#else
#define VQC_INDEPENDENT
#endif

/* The nearest whole number, half to even, of |x| < 2^22: a sum with 1.5 * 2^23 leaves it in the low bits. */
static inline int32_t vqc_round(float x) {
    const float shifted = x + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4b400000;
}

#endif
