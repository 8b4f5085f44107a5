/* Register tiles of the c4 convolutions: sums of 8 or 4 output channels over a run of positions. */
#ifndef VQC_C4_TILES_H
#define VQC_C4_TILES_H

#include "vqc_c4_core.h"

#if VQC_VL > 1 && defined(__SSE2__)
#include <immintrin.h>
#elif VQC_VL > 1 && defined(__ARM_NEON)
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
#elif VQC_VL == 4 && defined(__ARM_FEATURE_MATMUL_INT8)
#define C4_DOT(acc, x, w)                                                                                             \
    (vqc_vi) vusdotq_s32((int32x4_t)(acc), vreinterpretq_u8_s32((int32x4_t)(x)), vreinterpretq_s8_s32(vdupq_n_s32(w)))
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
#elif C4_WIDE && VQC_VL == 4 && defined(__ARM_NEON)
#define C4_NV 2
#define C4_NV4 1
#elif C4_WIDE && VQC_TILE_VECTORS == 1
#define C4_NV 1
#define C4_NV4 2
#elif VQC_VL == 4 && defined(__ARM_FEATURE_MATMUL_INT8)
#define C4_NV 2 /* 16 registers of sums: the pairs of words and of weights take the others */
#define C4_NV4 6
#else
#define C4_NV VQC_TILE_VECTORS
#define C4_NV4 (2 * VQC_TILE_VECTORS)
#endif

#if VQC_VL == 1
static inline int32_t c4_dot(int32_t acc, uint32_t x, int32_t w) {
    for (int i = 0; i < 4; i++)
        acc = c4_add(acc, (int32_t)(x >> 8 * i & 255u) * (int8_t)((uint32_t)w >> 8 * i & 255u));
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
#if VQC_VL == 4 && defined(__ARM_FEATURE_MATMUL_INT8)
/* The same with products of 2 x 8 by 8 x 2: two words of channels of two positions by those of two outputs. */
static void c4_wide_8(const uint32_t *restrict x, ptrdiff_t planes, ptrdiff_t plane, const int32_t *restrict off,
                      ptrdiff_t taps, const int32_t *restrict w, const int32_t *restrict offset, int32_t *restrict t) {
    int32x4_t acc[4][2 * C4_NV]; /* [outputs 2o, 2o + 1][positions 2i, 2i + 1]: position, then output */
    for (int o = 0; o < 4; o++) {
        const int32x4_t start = vnegq_s32(vcombine_s32(vld1_s32(offset + 2 * o), vld1_s32(offset + 2 * o)));
        for (int i = 0; i < 2 * C4_NV; i++) acc[o][i] = start;
    }
    for (ptrdiff_t q = 0; q < planes; q += 2, x += 2 * plane, w += 16 * taps) {
        const int both = q + 1 < planes; /* an odd last word stands by itself: zero weights beside it */
        for (ptrdiff_t k = 0; k < taps; k++) {
            const uint32_t *xk = x + off[k], *xn = both ? xk + plane : xk;
            const int32_t *wk = w + 8 * k, *wn = wk + 8 * taps;
            uint8x16_t v[2 * C4_NV];
            for (int i = 0; i < C4_NV; i++) {
                const uint32x4_t a = vld1q_u32(xk + 4 * i), b = vld1q_u32(xn + 4 * i);
                v[2 * i] = vreinterpretq_u8_u32(vzip1q_u32(a, b));
                v[2 * i + 1] = vreinterpretq_u8_u32(vzip2q_u32(a, b));
            }
            for (int o = 0; o < 2; o++) {
                const int32x4_t a = vld1q_s32(wk + 4 * o), b = both ? vld1q_s32(wn + 4 * o) : vdupq_n_s32(0);
                const int8x16_t lo = vreinterpretq_s8_s32(vzip1q_s32(a, b)), hi = vreinterpretq_s8_s32(vzip2q_s32(a, b));
                for (int i = 0; i < 2 * C4_NV; i++) {
                    acc[2 * o][i] = vusmmlaq_s32(acc[2 * o][i], v[i], lo);
                    acc[2 * o + 1][i] = vusmmlaq_s32(acc[2 * o + 1][i], v[i], hi);
                }
            }
        }
    }
    for (int o = 0; o < 4; o++)
        for (int i = 0; i < C4_NV; i++) {
            vst1q_s32(t + 2 * o * C4_RUN + 4 * i, vuzp1q_s32(acc[o][2 * i], acc[o][2 * i + 1]));
            vst1q_s32(t + (2 * o + 1) * C4_RUN + 4 * i, vuzp2q_s32(acc[o][2 * i], acc[o][2 * i + 1]));
        }
}
#elif VQC_VL == 4 && C4_WIDE && defined(__ARM_NEON)
/* The same with products of 16 bits, a lane a position: the words of 8 positions are sorted by channel first. */
#define C4_LANES(o, c, x)                                                                                             \
    acc[o][0] = vmlal_laneq_s16(acc[o][0], vget_low_s16(x), vw[(o) / 2], (o) % 2 * 4 + (c));                          \
    acc[o][1] = vmlal_high_laneq_s16(acc[o][1], x, vw[(o) / 2], (o) % 2 * 4 + (c));
#define C4_OUTPUT(o) C4_LANES(o, 0, x0) C4_LANES(o, 1, x2) C4_LANES(o, 2, x1) C4_LANES(o, 3, x3)
static void c4_wide_8(const uint32_t *restrict x, ptrdiff_t planes, ptrdiff_t plane, const int32_t *restrict off,
                      ptrdiff_t taps, const int32_t *restrict w, const int32_t *restrict offset, int32_t *restrict t) {
    int32x4_t acc[8][2];
    for (int o = 0; o < 8; o++) acc[o][0] = acc[o][1] = vdupq_n_s32(-offset[o]);
    for (ptrdiff_t q = 0; q < planes; q++, x += plane) {
        for (ptrdiff_t k = 0; k < taps; k++, w += 16) {
            const uint32x4_t low = vdupq_n_u32(0x00ff00ffu);
            const uint32x4_t a = vld1q_u32(x + off[k]), b = vld1q_u32(x + off[k] + 4);
            const int16x8_t a02 = vreinterpretq_s16_u32(vandq_u32(a, low)), b02 = vreinterpretq_s16_u32(vandq_u32(b, low));
            const int16x8_t a13 = vreinterpretq_s16_u16(vshrq_n_u16(vreinterpretq_u16_u32(a), 8));
            const int16x8_t b13 = vreinterpretq_s16_u16(vshrq_n_u16(vreinterpretq_u16_u32(b), 8));
            const int16x8_t x0 = vuzp1q_s16(a02, b02), x2 = vuzp2q_s16(a02, b02);
            const int16x8_t x1 = vuzp1q_s16(a13, b13), x3 = vuzp2q_s16(a13, b13);
            int16x8_t vw[4]; /* of each output: channels 0, 2, 1, 3 */
            for (int i = 0; i < 4; i++) vw[i] = vreinterpretq_s16_s32(vld1q_s32(w + 4 * i));
            C4_OUTPUT(0) C4_OUTPUT(1) C4_OUTPUT(2) C4_OUTPUT(3) C4_OUTPUT(4) C4_OUTPUT(5) C4_OUTPUT(6) C4_OUTPUT(7)
        }
    }
    for (int o = 0; o < 8; o++) {
        vst1q_s32(t + o * C4_RUN, acc[o][0]);
        vst1q_s32(t + o * C4_RUN + 4, acc[o][1]);
    }
}
#else
C4_TILE(c4_wide_8, 8, C4_NV)
#endif
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
#if C4_SIGNED
                v = vdotq_s32(v, vreinterpretq_s8_u32(vdupq_n_u32(xq[off[k]] ^ 0x80808080u)),
                              vreinterpretq_s8_s32(vld1q_s32(w)));
#else
                v = vusdotq_s32(v, vreinterpretq_u8_u32(vdupq_n_u32(xq[off[k]])), vreinterpretq_s8_s32(vld1q_s32(w)));
#endif
        vst1q_s32(acc + o, v);
    }
    return;
#endif
    for (ptrdiff_t q = 0; q < planes; q++, x += plane)
        for (ptrdiff_t k = 0; k < taps; k++, words += C4_STEP * block) {
            const uint32_t v = x[off[k]];
            for (ptrdiff_t o = 0; o < block; o++)
                for (int e = 0; e < 4; e++) acc[o] = c4_add(acc[o], c4_byte(v, e) * c4_weight(words, o, e));
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
