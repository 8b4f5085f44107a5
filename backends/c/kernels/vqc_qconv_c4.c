/* Convolution of u8 in the layout c4: products of four channels at once, summed in 32 bits. */
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

/* `count` positions, less than a vector, one by one. */
static void c4_points(const uint32_t *x, ptrdiff_t planes, ptrdiff_t plane, const c4_band *b, const int8_t *w,
                      ptrdiff_t block, const int32_t *offset, ptrdiff_t count, int32_t *t) {
    for (ptrdiff_t i = 0; i < count; i++)
        for (ptrdiff_t o = 0; o < block; o++) {
            int32_t acc = -offset[o];
            for (ptrdiff_t q = 0; q < planes; q++)
                for (ptrdiff_t k = 0; k < b->taps; k++) {
                    const uint32_t v = x[q * plane + b->off[k] + i];
                    const int8_t *wk = w + 4 * ((q * b->taps + k) * block + o);
                    for (int e = 0; e < 4; e++) acc += c4_byte(v, e) * wk[e];
                }
            t[o * C4_RUN + i] = acc;
        }
}

/* The weights of a block as the tiles read them. */
static const int32_t *c4_weights(const int8_t *w, ptrdiff_t count, int32_t *room) {
#if C4_WIDE
    for (ptrdiff_t i = 0; i < count; i++) {
        room[2 * i] = (int32_t)((uint32_t)(uint16_t)w[4 * i] | (uint32_t)(uint16_t)w[4 * i + 2] << 16);
        room[2 * i + 1] = (int32_t)((uint32_t)(uint16_t)w[4 * i + 1] | (uint32_t)(uint16_t)w[4 * i + 3] << 16);
    }
    return room;
#else
    (void)count, (void)room;
    return (const int32_t *)(const void *)w; /* four at a time: the file holds them at multiples of 4 bytes */
#endif
}

/* Scratch of a worker: offsets of the taps, widened weights of a block, the packed band. */
static void c4_task(void *arg, int index, int worker) {
    const c4_job *j = (const c4_job *)arg;
    const vqc_qconv_c4_params *p = j->p;
    const ptrdiff_t bands = (p->oh + p->rows - 1) / p->rows, band = index % bands, group = index / bands % p->groups;
    const ptrdiff_t batch = index / bands / p->groups, taps = (ptrdiff_t)p->kh * p->kw;
    const ptrdiff_t planes = (p->c / p->groups + 3) / 4, og = p->o / p->groups;
    unsigned char *s = j->scratch + (size_t)worker * p->scratch;
    int32_t *off = (int32_t *)(void *)s, *room = (int32_t *)(void *)(s + c4_align((size_t)taps * 4));
    uint32_t *packed = (uint32_t *)(void *)(s + c4_align((size_t)taps * 4) + c4_align((size_t)(planes * taps * 64)));
    const c4_band b = c4_pack(j, batch, group * planes, planes, band * p->rows, off, packed);
    const ptrdiff_t positions = (b.rows - 1) * b.pitch + b.ow;
    const int8_t *w = j->w + group * ((og + 3) / 4) * 4 * planes * taps * 4;
    const int32_t *offset = j->offset + (C4_SIGNED ? p->o : 0) + group * og;
    int32_t t[8 * C4_RUN];
    for (ptrdiff_t o = 0; o < og;) {
        const ptrdiff_t block = og - o > 4 ? 8 : 4, wide = VQC_VL * (block == 8 ? C4_NV : C4_NV4);
        const ptrdiff_t run = c4_run(positions, wide);
        const c4_tile big = block == 8 ? c4_wide_8 : c4_wide_4, small = block == 8 ? c4_tile_8 : c4_tile_4;
        const int32_t *words = c4_weights(w, planes * taps * block, room);
        int32_t start[8] = {0};
        for (ptrdiff_t i = 0; i < c4_min(block, og - o); i++) start[i] = offset[o + i];
        for (ptrdiff_t at = 0; at < positions; at += run) {
            const ptrdiff_t count = c4_min(positions - at, run);
            const uint32_t *x = b.x + at;
            ptrdiff_t i = 0;
            for (; i + wide <= count; i += wide) big(x + i, planes, b.plane, b.off, taps, words, start, t + i);
            for (; i + VQC_VL <= count; i += VQC_VL) small(x + i, planes, b.plane, b.off, taps, words, start, t + i);
            if (i < count && count >= VQC_VL) { /* the last vector, moved back: some sums once more */
                i = count - VQC_VL;
                small(x + i, planes, b.plane, b.off, taps, words, start, t + i);
            } else if (i < count) {
                c4_points(x, planes, b.plane, &b, w, block, start, count, t);
            }
            c4_flush(j, &b, batch, group * og + o, c4_min(block, og - o), at, count, t);
        }
        w += planes * taps * block * 4;
        o += block;
    }
}

void vqc_qconv_c4(const vqc_model *m, const vqc_qconv_c4_params *p, const void *x, const int8_t *w, const int32_t *offset,
                  const uint32_t *zero, const void *const *in, void *const *out, void *scratch) {
    c4_job j = {p, (const uint32_t *)x, w, offset, zero, in, out, (unsigned char *)scratch};
    vqc_for(m, c4_task, &j, p->n * p->groups * ((p->oh + p->rows - 1) / p->rows));
}
