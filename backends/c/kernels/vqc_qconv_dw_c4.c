/* Depthwise convolution of u8 in the layout c4: every channel with its own weights.
 *
 * The words of four taps are turned (a transposition of bytes) so that a lane holds four taps of one channel, which is a
 * dot product again; processors without it widen to 16 bits. */
#include "vqc_c4_core.h"

#if VQC_VL > 1 && defined(__SSE4_1__)
#include <immintrin.h>
#elif VQC_VL > 1 && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

/* Sums of VQC_VL positions (one vector of words) of four channels; t is [4][C4_RUN], w [taps in fours][4][4]. */
#if VQC_VL == 16 && defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define C4_DW_STEP 16
static inline void dw_positions(const uint32_t *x, const int32_t *off, ptrdiff_t taps, const int8_t *w,
                                const int32_t *offset, int32_t *t) {
    const __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(),
                                           _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)offset)));
    __m512i acc[4] = {start, start, start, start};
    for (ptrdiff_t k = 0; k < taps; k += 4, w += 16) {
        __m512i v[4], s[4];
        for (int i = 0; i < 4; i++) v[i] = _mm512_loadu_si512(x + off[k + i < taps ? k + i : taps - 1]);
        s[0] = _mm512_unpacklo_epi8(v[0], v[1]);
        s[1] = _mm512_unpackhi_epi8(v[0], v[1]);
        s[2] = _mm512_unpacklo_epi8(v[2], v[3]);
        s[3] = _mm512_unpackhi_epi8(v[2], v[3]);
        const __m512i wk = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)w));
        acc[0] = _mm512_dpbusd_epi32(acc[0], _mm512_unpacklo_epi16(s[0], s[2]), wk);
        acc[1] = _mm512_dpbusd_epi32(acc[1], _mm512_unpackhi_epi16(s[0], s[2]), wk);
        acc[2] = _mm512_dpbusd_epi32(acc[2], _mm512_unpacklo_epi16(s[1], s[3]), wk);
        acc[3] = _mm512_dpbusd_epi32(acc[3], _mm512_unpackhi_epi16(s[1], s[3]), wk);
    }
    /* acc[i], lane 4l + c: position 4l + i of channel c */
    const __m512i a = _mm512_unpacklo_epi32(acc[0], acc[1]), b = _mm512_unpackhi_epi32(acc[0], acc[1]);
    const __m512i c = _mm512_unpacklo_epi32(acc[2], acc[3]), d = _mm512_unpackhi_epi32(acc[2], acc[3]);
    _mm512_storeu_si512(t, _mm512_unpacklo_epi64(a, c));
    _mm512_storeu_si512(t + C4_RUN, _mm512_unpackhi_epi64(a, c));
    _mm512_storeu_si512(t + 2 * C4_RUN, _mm512_unpacklo_epi64(b, d));
    _mm512_storeu_si512(t + 3 * C4_RUN, _mm512_unpackhi_epi64(b, d));
}
#elif VQC_VL > 1 && defined(__SSE4_1__)
#define C4_DW_STEP 4
static inline void dw_positions(const uint32_t *x, const int32_t *off, ptrdiff_t taps, const int8_t *w,
                                const int32_t *offset, int32_t *t) {
    const __m128i start = _mm_sub_epi32(_mm_setzero_si128(), _mm_loadu_si128((const __m128i *)(const void *)offset));
    __m128i acc[4] = {start, start, start, start};
    for (ptrdiff_t k = 0; k < taps; k += 2) {
        const ptrdiff_t next = k + 1 < taps ? k + 1 : k;
        const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(x + off[k]));
        const __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(x + off[next]));
        const int8_t *wk = w + k / 4 * 16 + k % 4;
        const __m128i wide = _mm_set_epi16(wk[13], wk[12], wk[9], wk[8], wk[5], wk[4], wk[1], wk[0]);
        const __m128i lo = _mm_unpacklo_epi8(a, b), hi = _mm_unpackhi_epi8(a, b); /* both taps of a channel, as bytes */
        acc[0] = _mm_add_epi32(acc[0], _mm_madd_epi16(_mm_cvtepu8_epi16(lo), wide));
        acc[1] = _mm_add_epi32(acc[1], _mm_madd_epi16(_mm_unpackhi_epi8(lo, _mm_setzero_si128()), wide));
        acc[2] = _mm_add_epi32(acc[2], _mm_madd_epi16(_mm_cvtepu8_epi16(hi), wide));
        acc[3] = _mm_add_epi32(acc[3], _mm_madd_epi16(_mm_unpackhi_epi8(hi, _mm_setzero_si128()), wide));
    }
    const __m128i a = _mm_unpacklo_epi32(acc[0], acc[1]), b = _mm_unpackhi_epi32(acc[0], acc[1]);
    const __m128i c = _mm_unpacklo_epi32(acc[2], acc[3]), d = _mm_unpackhi_epi32(acc[2], acc[3]);
    _mm_storeu_si128((__m128i *)(void *)t, _mm_unpacklo_epi64(a, c));
    _mm_storeu_si128((__m128i *)(void *)(t + C4_RUN), _mm_unpackhi_epi64(a, c));
    _mm_storeu_si128((__m128i *)(void *)(t + 2 * C4_RUN), _mm_unpacklo_epi64(b, d));
    _mm_storeu_si128((__m128i *)(void *)(t + 3 * C4_RUN), _mm_unpackhi_epi64(b, d));
}
#elif VQC_VL > 1 && defined(__ARM_NEON)
#define C4_DW_STEP 4
static inline void dw_positions(const uint32_t *x, const int32_t *off, ptrdiff_t taps, const int8_t *w,
                                const int32_t *offset, int32_t *t) {
    int32x4_t acc[4];
    for (int i = 0; i < 4; i++) acc[i] = vnegq_s32(vld1q_s32(offset));
    for (ptrdiff_t k = 0; k < taps; k++) {
        const uint8x16_t v = vreinterpretq_u8_u32(vld1q_u32(x + off[k]));
        const int8_t *wk = w + k / 4 * 16 + k % 4;
        const int16x4_t wide = {wk[0], wk[4], wk[8], wk[12]};
        const int16x8_t lo = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(v)));
        const int16x8_t hi = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(v)));
        acc[0] = vmlal_s16(acc[0], vget_low_s16(lo), wide);
        acc[1] = vmlal_s16(acc[1], vget_high_s16(lo), wide);
        acc[2] = vmlal_s16(acc[2], vget_low_s16(hi), wide);
        acc[3] = vmlal_s16(acc[3], vget_high_s16(hi), wide);
    }
    /* acc[i]: position i, four channels */
    const int32x4x2_t a = vtrnq_s32(acc[0], acc[1]), b = vtrnq_s32(acc[2], acc[3]);
    vst1q_s32(t, vcombine_s32(vget_low_s32(a.val[0]), vget_low_s32(b.val[0])));
    vst1q_s32(t + C4_RUN, vcombine_s32(vget_low_s32(a.val[1]), vget_low_s32(b.val[1])));
    vst1q_s32(t + 2 * C4_RUN, vcombine_s32(vget_high_s32(a.val[0]), vget_high_s32(b.val[0])));
    vst1q_s32(t + 3 * C4_RUN, vcombine_s32(vget_high_s32(a.val[1]), vget_high_s32(b.val[1])));
}
#endif

/* The same, `n` positions one by one. */
static void dw_points(const uint32_t *x, const int32_t *off, ptrdiff_t taps, const int8_t *w, const int32_t *offset,
                      ptrdiff_t n, int32_t *t) {
    for (int c = 0; c < 4; c++)
        for (ptrdiff_t i = 0; i < n; i++) {
            int32_t acc = -offset[c];
            for (ptrdiff_t k = 0; k < taps; k++)
                acc = c4_add(acc, (int32_t)(x[off[k] + i] >> 8 * c & 255u) * w[k / 4 * 16 + 4 * c + k % 4]);
            t[c * C4_RUN + i] = acc;
        }
}

/* index: (batch, four channels, band) */
static void dw_task(void *arg, int index, int worker) {
    const c4_job *j = (const c4_job *)arg;
    const vqc_qconv_c4_params *p = j->p;
    const ptrdiff_t bands = (p->oh + p->rows - 1) / p->rows, band = index % bands, quads = (p->c + 3) / 4;
    const ptrdiff_t quad = index / bands % quads, batch = index / bands / quads, taps = (ptrdiff_t)p->kh * p->kw;
    unsigned char *s = j->scratch + (size_t)worker * p->scratch;
    int32_t *off = (int32_t *)(void *)s;
    const c4_band b = c4_pack(j, batch, quad, 1, band * p->rows, off, (uint32_t *)(void *)(s + c4_align((size_t)taps * 4)));
    const ptrdiff_t positions = (b.rows - 1) * b.pitch + b.ow, left = c4_min(4, p->c - 4 * quad);
    const int8_t *w = j->w + quad * ((taps + 3) / 4) * 16;
    int32_t t[4 * C4_RUN], offset[4] = {0};
    for (ptrdiff_t c = 0; c < left; c++) offset[c] = j->offset[4 * quad + c];
#ifdef C4_DW_STEP
    const ptrdiff_t step = C4_DW_STEP;
#else
    const ptrdiff_t step = 1;
#endif
    const ptrdiff_t run = c4_run(positions, step);
    for (ptrdiff_t at = 0; at < positions; at += run) {
        const ptrdiff_t count = c4_min(positions - at, run);
        const uint32_t *x = b.x + at;
        ptrdiff_t i = 0;
#ifdef C4_DW_STEP
        for (; i + step <= count; i += step) dw_positions(x + i, off, taps, w, offset, t + i);
        if (i < count && count >= step) {
            dw_positions(x + count - step, off, taps, w, offset, t + count - step);
            i = count;
        }
#endif
        if (i < count) dw_points(x + i, off, taps, w, offset, count - i, t + i);
        c4_flush(j, &b, batch, 4 * quad, left, at, count, t);
    }
}

void vqc_qconv_dw_c4(const vqc_model *m, const vqc_qconv_c4_params *p, const void *x, const int8_t *w,
                     const int32_t *offset, const uint32_t *zero, const void *const *in, void *const *out, void *scratch) {
    c4_job j = {p, (const uint32_t *)x, w, offset, zero, in, out, (unsigned char *)scratch};
    vqc_for(m, dw_task, &j, p->n * ((p->c + 3) / 4) * ((p->oh + p->rows - 1) / p->rows));
}
