/* Register tiles of the c4 convolutions: sums of 8 or 4 output channels over a run of positions. */
#ifndef VQC_C4_TILES_H
#define VQC_C4_TILES_H

#include "vqc_c4_core.h"

#if VQC_VL > 1 && defined(__SSE2__)
#include <immintrin.h>
#elif VQC_VL > 1 && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

/* C4_DOT(acc, x, w): acc + the products of the four bytes of every word of x (unsigned) with those of w (signed).
 * Without such an instruction (C4_WIDE) the weights are widened first: w[0] holds bytes 0 and 2 as 16 bits, w[1] 1 and 3.
 * C4_SIGNED: the products are signed on both sides, so that x - 128 is what is multiplied. */
#if VQC_VL == 16 && defined(__AVX512VNNI__)
#define C4_DOT(acc, x, w) (vqc_vi) _mm512_dpbusd_epi32((__m512i)(acc), (__m512i)(x), _mm512_set1_epi32(w))
#elif VQC_VL == 8 && defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define C4_DOT(acc, x, w) (vqc_vi) _mm256_dpbusd_epi32((__m256i)(acc), (__m256i)(x), _mm256_set1_epi32(w))
#elif VQC_VL == 8 && defined(__AVXVNNI__)
#define C4_DOT(acc, x, w) (vqc_vi) _mm256_dpbusd_avx_epi32((__m256i)(acc), (__m256i)(x), _mm256_set1_epi32(w))
#elif VQC_VL == 4 && defined(__ARM_FEATURE_DOTPROD)
#define C4_SIGNED 1
#define C4_DOT(acc, x, w)                                                                                             \
    (vqc_vi) vdotq_s32((int32x4_t)(acc), vreinterpretq_s8_s32((int32x4_t)(x)), vreinterpretq_s8_s32(vdupq_n_s32(w)))
#elif VQC_VL > 1
#define C4_WIDE 1
#if VQC_VL == 16 && defined(__AVX512BW__)
#define C4_MADD(x, w) (vqc_vi) _mm512_madd_epi16((__m512i)(x), _mm512_set1_epi32(w))
#elif VQC_VL == 8 && defined(__AVX2__)
#define C4_MADD(x, w) (vqc_vi) _mm256_madd_epi16((__m256i)(x), _mm256_set1_epi32(w))
#elif VQC_VL == 4 && defined(__SSE2__)
#define C4_MADD(x, w) (vqc_vi) _mm_madd_epi16((__m128i)(x), _mm_set1_epi32(w))
#else
#define C4_MADD(x, w) (((x) & 0xffff) * (int16_t)(uint16_t)((uint32_t)(w) & 0xffffu) + ((x) >> 16) * ((w) >> 16))
#endif
#endif

#ifndef C4_WIDE
#define C4_WIDE 0
#endif
#ifndef C4_SIGNED
#define C4_SIGNED 0
#endif
#define C4_STEP (1 + C4_WIDE) /* words of a weight */

/* Vectors of positions of a tile, for 8 and for 4 output channels. */
#if VQC_VL == 1
#define C4_NV 1
#define C4_NV4 1
#elif C4_WIDE && VQC_TILE_VECTORS == 1
#define C4_NV 1
#define C4_NV4 2
#else
#define C4_NV VQC_TILE_VECTORS
#define C4_NV4 (2 * VQC_TILE_VECTORS)
#endif

#if VQC_VL == 1
static inline int32_t c4_dot(int32_t acc, uint32_t x, int32_t w) {
    for (int i = 0; i < 4; i++) acc += (int32_t)(x >> 8 * i & 255u) * (int8_t)((uint32_t)w >> 8 * i & 255u);
    return acc;
}
#define C4_DOT(acc, x, w) c4_dot(acc, (uint32_t)(x), w)
#endif

/* A tile: OB channels x NV vectors of positions; a channel of t is C4_RUN long. */
#if C4_WIDE
#define C4_INNER(OB, NV)                                                                                              \
    vqc_vi even[NV], odd[NV];                                                                                         \
    for (int i = 0; i < (NV); i++) {                                                                                  \
        const vqc_vi v = *(const vqc_vi_mem *)(const void *)(xk + i * VQC_VL);                                        \
        even[i] = v & 0x00ff00ff;                                                                                     \
        odd[i] = v >> 8 & 0x00ff00ff;                                                                                 \
    }                                                                                                                 \
    for (int o = 0; o < (OB); o++)                                                                                    \
        for (int i = 0; i < (NV); i++) acc[o][i] += C4_MADD(even[i], w[2 * o]) + C4_MADD(odd[i], w[2 * o + 1]);
#else
#define C4_INNER(OB, NV)                                                                                              \
    vqc_vi v[NV];                                                                                                     \
    for (int i = 0; i < (NV); i++) {                                                                                  \
        v[i] = *(const vqc_vi_mem *)(const void *)(xk + i * VQC_VL);                                                  \
        if (C4_SIGNED) v[i] ^= (int32_t)0x80808080u;                                                                  \
    }                                                                                                                 \
    for (int o = 0; o < (OB); o++)                                                                                    \
        for (int i = 0; i < (NV); i++) acc[o][i] = C4_DOT(acc[o][i], v[i], w[o]);
#endif

#define C4_TILE(NAME, OB, NV)                                                                                         \
    static void NAME(const uint32_t *restrict x, ptrdiff_t planes, ptrdiff_t plane, const int32_t *restrict off,      \
                     ptrdiff_t taps, const int32_t *restrict w, const int32_t *restrict offset,                       \
                     int32_t *restrict t) {                                                                           \
        vqc_vi acc[OB][NV];                                                                                           \
        for (int o = 0; o < (OB); o++)                                                                                \
            for (int i = 0; i < (NV); i++) acc[o][i] = (vqc_vi){0} - offset[o];                                       \
        for (ptrdiff_t q = 0; q < planes; q++, x += plane) {                                                          \
            for (ptrdiff_t k = 0; k < taps; k++, w += C4_STEP * (OB)) {                                               \
                const uint32_t *xk = x + off[k];                                                                      \
                C4_INNER(OB, NV)                                                                                      \
            }                                                                                                         \
        }                                                                                                             \
        for (int o = 0; o < (OB); o++)                                                                                \
            for (int i = 0; i < (NV); i++) *(vqc_vi_mem *)(void *)(t + o * C4_RUN + i * VQC_VL) = acc[o][i];          \
    }
C4_TILE(c4_tile_8, 8, 1)
C4_TILE(c4_tile_4, 4, 1)
C4_TILE(c4_wide_8, 8, C4_NV)
C4_TILE(c4_wide_4, 4, C4_NV4)

typedef void (*c4_tile)(const uint32_t *restrict, ptrdiff_t, ptrdiff_t, const int32_t *restrict, ptrdiff_t,
                        const int32_t *restrict, const int32_t *restrict, int32_t *restrict);

static inline int32_t c4_byte(uint32_t x, int i) {
    return (int32_t)(x >> 8 * i & 255u) - (C4_SIGNED ? 128 : 0);
}

/* Byte e of weight i, as c4_weights left it. */
static inline int32_t c4_weight(const int32_t *words, ptrdiff_t i, int e) {
    if (C4_WIDE) return (int16_t)(uint16_t)((uint32_t)words[2 * i + (e & 1)] >> 16 * (e >> 1) & 0xffffu);
    return (int8_t)(uint8_t)((uint32_t)words[i] >> 8 * e & 0xffu);
}

/* Sums of one position of 8 or 4 output channels, which stand side by side in the weights. */
static inline void c4_point(const uint32_t *x, ptrdiff_t planes, ptrdiff_t plane, const int32_t *off, ptrdiff_t taps,
                            const int32_t *words, ptrdiff_t block, const int32_t *offset, int32_t *acc) {
    for (ptrdiff_t o = 0; o < block; o++) acc[o] = -offset[o];
#if VQC_VL > 1 && !C4_WIDE && defined(__AVX512VNNI__) && defined(__AVX512VL__)
    if (block == 8) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)acc);
        for (ptrdiff_t q = 0; q < planes; q++, x += plane)
            for (ptrdiff_t k = 0; k < taps; k++, words += 8)
                v = _mm256_dpbusd_epi32(v, _mm256_set1_epi32((int32_t)x[off[k]]),
                                        _mm256_loadu_si256((const __m256i *)(const void *)words));
        _mm256_storeu_si256((__m256i *)(void *)acc, v);
        return;
    }
#elif VQC_VL > 1 && !C4_WIDE && defined(__ARM_FEATURE_DOTPROD)
    for (ptrdiff_t o = 0; o < block; o += 4) {
        const uint32_t *xq = x;
        const int32_t *w = words + o;
        int32x4_t v = vld1q_s32(acc + o);
        for (ptrdiff_t q = 0; q < planes; q++, xq += plane)
            for (ptrdiff_t k = 0; k < taps; k++, w += block)
                v = vdotq_s32(v, vreinterpretq_s8_u32(vdupq_n_u32(xq[off[k]] ^ 0x80808080u)),
                              vreinterpretq_s8_s32(vld1q_s32(w)));
        vst1q_s32(acc + o, v);
    }
    return;
#endif
    for (ptrdiff_t q = 0; q < planes; q++, x += plane)
        for (ptrdiff_t k = 0; k < taps; k++, words += C4_STEP * block) {
            const uint32_t v = x[off[k]];
            for (ptrdiff_t o = 0; o < block; o++)
                for (int e = 0; e < 4; e++) acc[o] += c4_byte(v, e) * c4_weight(words, o, e);
        }
}

/* Bytes that `count` weights of 8 or 4 bits take. */
static inline ptrdiff_t c4_bytes(ptrdiff_t count, int bits) { return count * bits / 8; }

/* A block's weights (`count` times four) as the tiles read them: 4 bits become 8, and where C4_WIDE, 8 become 16. */
static inline const int32_t *c4_weights(const int8_t *restrict w, ptrdiff_t count, int bits, int32_t *restrict room) {
    if (bits == 4) {
        for (ptrdiff_t i = 0; i < count; i++) { /* two bytes: weights 0 and 1, 2 and 3, the first one in the low half */
            const uint32_t a = (uint8_t)w[2 * i], b = (uint8_t)w[2 * i + 1];
            const uint32_t v = (a & 15u) | (a >> 4) << 8 | (b & 15u) << 16 | (b >> 4) << 24;
            room[C4_STEP * i] = (int32_t)((((v ^ 0x08080808u) | 0x80808080u) - 0x08080808u) ^ 0x80808080u);
        }
    } else if (!C4_WIDE) {
        return (const int32_t *)(const void *)w; /* four at a time: the file holds them at multiples of 4 bytes */
    } else {
        for (ptrdiff_t i = 0; i < count; i++) memcpy(&room[C4_STEP * i], w + 4 * i, 4);
    }
#if C4_WIDE
    for (ptrdiff_t i = 0; i < count; i++) {
        const uint32_t v = (uint32_t)room[2 * i];
        const uint32_t b0 = (uint32_t)(int32_t)(int8_t)(v & 255u), b1 = (uint32_t)(int32_t)(int8_t)(v >> 8 & 255u);
        const uint32_t b2 = (uint32_t)(int32_t)(int8_t)(v >> 16 & 255u), b3 = (uint32_t)(int32_t)(int8_t)(v >> 24);
        room[2 * i] = (int32_t)((b0 & 0xffffu) | b2 << 16);
        room[2 * i + 1] = (int32_t)((b1 & 0xffffu) | b3 << 16);
    }
#endif
    return room;
}

/* Sums of `count` positions (C4_RUN at most) of a block of 8 or 4 output channels, t [block][C4_RUN]. */
static inline void c4_sums(const uint32_t *x, ptrdiff_t planes, ptrdiff_t plane, const int32_t *off, ptrdiff_t taps,
                           const int32_t *words, ptrdiff_t block, const int32_t *offset, ptrdiff_t count, int32_t *t) {
    const ptrdiff_t wide = VQC_VL * (block == 8 ? C4_NV : C4_NV4);
    const c4_tile big = block == 8 ? c4_wide_8 : c4_wide_4, small = block == 8 ? c4_tile_8 : c4_tile_4;
    ptrdiff_t i = 0;
    for (; i + wide <= count; i += wide) big(x + i, planes, plane, off, taps, words, offset, t + i);
    for (; i + VQC_VL <= count; i += VQC_VL) small(x + i, planes, plane, off, taps, words, offset, t + i);
    if (i < count && count >= VQC_VL) { /* the last vector, moved back: some sums once more */
        i = count - VQC_VL;
        small(x + i, planes, plane, off, taps, words, offset, t + i);
    } else {
        int32_t acc[8];
        for (; i < count; i++) {
            c4_point(x + i, planes, plane, off, taps, words, block, offset, acc);
            for (ptrdiff_t o = 0; o < block; o++) t[o * C4_RUN + i] = acc[o];
        }
    }
}

#endif
