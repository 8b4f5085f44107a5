/* Convolution of u8 in the layout c4 under a mask: words of four channels times words of four weights. */
#include <math.h>
#include <string.h>

#include "vqc_conv.h"
#include "vqc_simd.h"

#if VQC_VL > 1 && defined(__SSE2__)
#include <immintrin.h>
#elif VQC_VL > 1 && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#define CV_E int32_t /* four channels of one position, the first one in the low byte */
#define CV_A int32_t
#define CV_V vqc_vi
#define CV_M vqc_vi_mem
#define CV_PAIR 4
#define CV_MASKED

/* The pictures are unsigned. Where products are signed on both sides, x - 128 is what is multiplied. */
#if VQC_VL == 4 && defined(__ARM_FEATURE_DOTPROD)
#define MC_SIGNED 1
#else
#define MC_SIGNED 0
#endif

static inline int32_t byte_of(int32_t x, int i) {
    return (int32_t)((uint32_t)x >> 8 * i & 255u) - (MC_SIGNED ? 128 : 0);
}
static inline int32_t weight_of(int32_t w, int i) { return (int8_t)(uint8_t)((uint32_t)w >> 8 * i & 255u); }
static inline int32_t word_dot(int32_t x, int32_t w) {
    return byte_of(x, 0) * weight_of(w, 0) + byte_of(x, 1) * weight_of(w, 1) + byte_of(x, 2) * weight_of(w, 2) +
           byte_of(x, 3) * weight_of(w, 3);
}

#define CV_SMAC(acc, x, w) ((acc) + word_dot(x, w))
#if VQC_VL == 1
#define CV_MAC(acc, x, w) CV_SMAC(acc, x, w)
#elif VQC_VL == 16 && defined(__AVX512VNNI__)
#define CV_MAC(acc, x, w) (vqc_vi) _mm512_dpbusd_epi32((__m512i)(acc), (__m512i)(x), _mm512_set1_epi32(w))
#elif VQC_VL == 8 && defined(__AVXVNNI__)
#define CV_MAC(acc, x, w) (vqc_vi) _mm256_dpbusd_avx_epi32((__m256i)(acc), (__m256i)(x), _mm256_set1_epi32(w))
#elif MC_SIGNED
#define CV_MAC(acc, x, w)                                                                                             \
    (vqc_vi) vdotq_s32((int32x4_t)(acc), vreinterpretq_s8_s32((int32x4_t)((x) ^ (int32_t)0x80808080u)),               \
                       vreinterpretq_s8_s32(vdupq_n_s32(w)))
#else /* bytes 0 and 2 as 16 bits, then bytes 1 and 3 */
static inline int32_t halves(int32_t low, int32_t high) {
    return (int32_t)(((uint32_t)low & 0xffffu) | (uint32_t)high << 16);
}
#if VQC_VL == 16 && defined(__AVX512BW__)
#define MC_MADD(x, w) (vqc_vi) _mm512_madd_epi16((__m512i)(x), _mm512_set1_epi32(w))
#elif VQC_VL == 8 && defined(__AVX2__)
#define MC_MADD(x, w) (vqc_vi) _mm256_madd_epi16((__m256i)(x), _mm256_set1_epi32(w))
#elif VQC_VL == 4 && defined(__SSE2__)
#define MC_MADD(x, w) (vqc_vi) _mm_madd_epi16((__m128i)(x), _mm_set1_epi32(w))
#else
#define MC_MADD(x, w) (((x) & 0xffff) * (int16_t)(uint16_t)((uint32_t)(w) & 0xffffu) + ((x) >> 16) * ((w) >> 16))
#endif
#define CV_MAC(acc, x, w)                                                                                             \
    ((acc) + MC_MADD((x) & 0x00ff00ff, halves(weight_of(w, 0), weight_of(w, 2))) +                                    \
     MC_MADD((x) >> 8 & 0x00ff00ff, halves(weight_of(w, 1), weight_of(w, 3))))
#endif

typedef struct cv_job {
    const vqc_conv_params *p;
    const int32_t *x, *w;
    const float *scale, *bias;
    const int32_t *offset, *zero;
    float *real; /* output, or */
    uint8_t *byte;
    unsigned char *scratch;
    const uint8_t *mask;
} cv_job;

static int cv_direct(const cv_job *j) {
    (void)j;
    return 0;
}

static const int32_t *cv_weights(const cv_job *j, ptrdiff_t at, ptrdiff_t count, int32_t *expanded) {
    (void)count;
    (void)expanded;
    return j->w + at;
}

/* dst[t] = the word at left + t * step, that of the zero points outside the row. */
static void cv_pack_row(const cv_job *j, int32_t *restrict dst, const ptrdiff_t *from, const ptrdiff_t *channel,
                        ptrdiff_t left, ptrdiff_t step, ptrdiff_t count) {
    const vqc_conv_params *p = j->p;
    const ptrdiff_t w = p->w, hw = (ptrdiff_t)p->h * w, quad = channel[0] / 4;
    const int32_t zero = j->zero[quad];
    ptrdiff_t lo = left < 0 ? (-left + step - 1) / step : 0, hi = left < w ? (w - 1 - left) / step + 1 : 0;
    if (hi > count) hi = count;
    if (lo > hi || from[0] < 0) lo = hi = 0;
    for (ptrdiff_t t = 0; t < lo; t++) dst[t] = zero;
    for (ptrdiff_t t = hi; t < count; t++) dst[t] = zero;
    if (lo == hi) return;
    /* `from` counts single channels; the batch's words are those of whole fours */
    const ptrdiff_t row = (from[0] / hw / p->c * ((p->c + 3) / 4) + quad) * hw + from[0] % hw;
    const int32_t *restrict src = j->x + row + left + lo * step;
    if (step == 1)
        memcpy(dst + lo, src, (size_t)(hi - lo) * sizeof *dst);
    else
        for (ptrdiff_t t = 0; t < hi - lo; t++) dst[lo + t] = src[t * step];
}

/* Scale, bias, activation and, for u8 output, requantization of n sums of channel o. */
static void cv_store(const cv_job *j, ptrdiff_t o, ptrdiff_t at, ptrdiff_t step, const int32_t *restrict t, ptrdiff_t n) {
    const vqc_conv_params *p = j->p;
    const int32_t offset = j->offset[MC_SIGNED * p->o + o];
    (void)step; /* it is 1: nothing here is transposed */
    const float scale = j->scale[o], bias = j->bias != NULL ? j->bias[o] : -0.0f; /* x + -0 is x, for every x */
    if (j->real != NULL) {
        float *restrict y = j->real + at;
        for (ptrdiff_t i = 0; i < n; i++) y[i] = (float)(t[i] - offset) * scale + bias;
        return;
    }
    uint8_t *restrict y = j->byte + at;
    const float floor = p->act == VQC_ACT_CLAMP ? p->lo : -INFINITY, inv = p->inv_scale, zero = (float)p->zero_point;
    for (ptrdiff_t i = 0; i < n; i++) {
        float v = (float)(t[i] - offset) * scale + bias;
        v = v < floor ? floor : v;
        v = rintf(v * inv) + zero;
        v = v > 0.0f ? v : 0.0f;
        v = v < 255.0f ? v : 255.0f;
        y[i] = (uint8_t)(int32_t)v;
    }
}

#include "vqc_conv_core.h"

static cv_job cv_redirect(const cv_job *j, cv_room *room) {
    cv_job aside = *j;
    if (j->real != NULL)
        aside.real = room->f;
    else
        aside.byte = room->b;
    return aside;
}

static inline void cv_keep(const cv_job *j, ptrdiff_t at, const cv_room *room, ptrdiff_t from, const uint8_t *mask) {
    if (j->real != NULL)
        cv_keep_f32(j->real + at, room->f + from, mask);
    else
        cv_keep_u8(j->byte + at, room->b + from, mask, (uint8_t)j->p->zero_point);
}

static inline void cv_put(const cv_job *j, ptrdiff_t at, const cv_room *room, ptrdiff_t from, ptrdiff_t n) {
    if (j->real != NULL)
        cv_put_f32(j->real + at, room->f + from, n);
    else
        cv_put_u8(j->byte + at, room->b + from, n);
}

static void cv_blank(const cv_job *j, ptrdiff_t at, ptrdiff_t n) {
    if (j->real != NULL)
        memset(j->real + at, 0, (size_t)n * sizeof(float));
    else
        memset(j->byte + at, j->p->zero_point, (size_t)n);
}

void vqc_masked_qconv_f32(const vqc_model *m, const vqc_conv_params *p, const void *x, const int8_t *w,
                          const float *scale, const float *bias, const int32_t *offset, const void *zero,
                          const uint8_t *mask, float *y, void *scratch) {
    cv_job j = {p, (const int32_t *)x, (const int32_t *)(const void *)w, scale, bias, offset, (const int32_t *)zero,
                y, NULL, (unsigned char *)scratch, mask};
    cv_launch(m, &j, 0);
}

void vqc_masked_qconv_u8(const vqc_model *m, const vqc_conv_params *p, const void *x, const int8_t *w,
                         const float *scale, const float *bias, const int32_t *offset, const void *zero,
                         const uint8_t *mask, uint8_t *y, void *scratch) {
    cv_job j = {p, (const int32_t *)x, (const int32_t *)(const void *)w, scale, bias, offset, (const int32_t *)zero,
                NULL, y, (unsigned char *)scratch, mask};
    cv_launch(m, &j, 0);
}
