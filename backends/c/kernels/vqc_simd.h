/* Vectors as the compilers of the GNU family offer them in C; one lane where there are none (VQC_GENERIC: always).
 *
 * With one lane the same source is the generic twin: every output element sees the same operations in the same order.
 */
#ifndef VQC_SIMD_H
#define VQC_SIMD_H

#include <stdint.h>

#if defined(VQC_GENERIC) || !defined(__GNUC__)
#define VQC_VL 1
typedef float vqc_vf;
typedef float vqc_vf_mem;
typedef int32_t vqc_vi;
typedef int32_t vqc_vi_mem;
#else
#if defined(__AVX512F__)
#define VQC_VL 16
#elif defined(__AVX__)
#define VQC_VL 8
#else
#define VQC_VL 4
#endif
typedef float vqc_vf __attribute__((vector_size(VQC_VL * 4)));
typedef float vqc_vf_mem __attribute__((vector_size(VQC_VL * 4), aligned(4), may_alias)); /* in memory, unaligned */
typedef int32_t vqc_vi __attribute__((vector_size(VQC_VL * 4)));
typedef int32_t vqc_vi_mem __attribute__((vector_size(VQC_VL * 4), aligned(4), may_alias));
#endif

/* VQC_ZIP(a, b, lo, hi): the lanes of two vectors in turns, a0 b0 a1 b1 ...; defined where the compiler can shuffle. */
#if VQC_VL > 1 && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#if VQC_VL == 16
#define VQC_ZIP(a, b, lo, hi)                                                                                         \
    lo = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);                       \
    hi = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif VQC_VL == 8
#define VQC_ZIP(a, b, lo, hi)                                                                                         \
    lo = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);                                                     \
    hi = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define VQC_ZIP(a, b, lo, hi)                                                                                         \
    lo = __builtin_shufflevector(a, b, 0, 4, 1, 5);                                                                   \
    hi = __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif
#endif
#endif

/* Registers: with 32 vector registers a tile of 8 channels takes three vectors of positions, else one. */
#if VQC_VL == 1
#define VQC_TILE_VECTORS 8
#elif defined(__AVX512F__) || defined(__aarch64__)
#define VQC_TILE_VECTORS 3
#else
#define VQC_TILE_VECTORS 1
#endif

#endif
