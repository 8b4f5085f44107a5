/* Integer convolutions: pairs of 16-bit inputs (x - zero) times pairs of 16-bit weights, summed in 32 bits. */
#include <math.h>

#include "vqc_conv.h"
#include "vqc_simd.h"

#if VQC_VL > 1 && defined(__SSE2__)
#include <immintrin.h>
#endif

#define CV_E int32_t /* two 16-bit values, the first one in the low half */
#define CV_A int32_t
#define CV_V vqc_vi
#define CV_M vqc_vi_mem
#define CV_PAIR 2

static inline int32_t low_half(int32_t v) { return (int16_t)(uint16_t)((uint32_t)v & 0xffffu); }
static inline int32_t high_half(int32_t v) { return (int16_t)(uint16_t)((uint32_t)v >> 16); }
static inline int32_t join(int32_t low, int32_t high) {
    return (int32_t)(((uint32_t)low & 0xffffu) | (uint32_t)high << 16);
}

#define CV_SMAC(acc, x, w) ((acc) + low_half(x) * low_half(w) + high_half(x) * high_half(w))
#if VQC_VL == 16 && defined(__AVX512VNNI__)
#define CV_MAC(acc, x, w) (vqc_vi) _mm512_dpwssd_epi32((__m512i)(acc), (__m512i)(x), _mm512_set1_epi32(w))
#elif VQC_VL == 16 && defined(__AVX512BW__)
#define CV_MAC(acc, x, w) ((acc) + (vqc_vi)_mm512_madd_epi16((__m512i)(x), _mm512_set1_epi32(w)))
#elif VQC_VL == 8 && defined(__AVX2__)
#define CV_MAC(acc, x, w) ((acc) + (vqc_vi)_mm256_madd_epi16((__m256i)(x), _mm256_set1_epi32(w)))
#elif VQC_VL == 4 && defined(__SSE2__)
#define CV_MAC(acc, x, w) ((acc) + (vqc_vi)_mm_madd_epi16((__m128i)(x), _mm_set1_epi32(w)))
#elif VQC_VL == 1
#define CV_MAC(acc, x, w) CV_SMAC(acc, x, w)
#else
#define CV_MAC(acc, x, w) ((acc) + (((x) << 16) >> 16) * low_half(w) + ((x) >> 16) * high_half(w))
#endif

typedef struct cv_job {
    const vqc_conv_params *p;
    const void *x, *w;
    const float *scale, *bias;
    const int32_t *zero;
    float *real;  /* output, or */
    uint8_t *byte;
    unsigned char *scratch;
    int x_signed, w_wide;
} cv_job;

static int cv_direct(const cv_job *j) {
    (void)j;
    return 0;
}

/* The block's weights as pairs of 16 bits. */
static const int32_t *cv_weights(const cv_job *j, ptrdiff_t at, ptrdiff_t count, int32_t *restrict expanded) {
    if (j->w_wide) {
        const int16_t *restrict w = (const int16_t *)j->w + 2 * at;
        for (ptrdiff_t i = 0; i < count; i++) expanded[i] = join(w[2 * i], w[2 * i + 1]);
    } else {
        const int8_t *restrict w = (const int8_t *)j->w + 2 * at;
        for (ptrdiff_t i = 0; i < count; i++) expanded[i] = join(w[2 * i], w[2 * i + 1]);
    }
    return expanded;
}

#define PACK(TYPE, STEP)                                                                                              \
    do {                                                                                                              \
        const TYPE *restrict a = (const TYPE *)j->x + (from[0] < 0 ? 0 : from[0] + start);                            \
        const TYPE *restrict b = (const TYPE *)j->x + (from[1] < 0 ? 0 : from[1] + start);                            \
        if (from[0] >= 0 && from[1] >= 0)                                                                             \
            for (ptrdiff_t t = 0; t < n; t++) dst[t] = join(a[t * (STEP)] - z0, b[t * (STEP)] - z1);                  \
        else if (from[0] >= 0)                                                                                        \
            for (ptrdiff_t t = 0; t < n; t++) dst[t] = join(a[t * (STEP)] - z0, 0);                                   \
        else                                                                                                          \
            for (ptrdiff_t t = 0; t < n; t++) dst[t] = join(0, b[t * (STEP)] - z1);                                   \
    } while (0)

/* dst[t] = (x - zero) of both channels at left + t * step, zero outside the row. */
static void cv_pack_row(const cv_job *j, int32_t *restrict dst, const ptrdiff_t *from, const ptrdiff_t *channel,
                        ptrdiff_t left, ptrdiff_t step, ptrdiff_t count) {
    const ptrdiff_t w = j->p->w;
    const int32_t z0 = j->zero[j->p->zeros > 1 ? channel[0] : 0], z1 = j->zero[j->p->zeros > 1 ? channel[1] : 0];
    ptrdiff_t lo = left < 0 ? (-left + step - 1) / step : 0, hi = left < w ? (w - 1 - left) / step + 1 : 0;
    if (hi > count) hi = count;
    if (lo > hi) lo = hi;
    if (from[0] < 0 && from[1] < 0) lo = hi = 0;
    for (ptrdiff_t t = 0; t < lo; t++) dst[t] = 0;
    for (ptrdiff_t t = hi; t < count; t++) dst[t] = 0;
    if (lo == hi) return;
    const ptrdiff_t start = left + lo * step, n = hi - lo;
    dst += lo;
    if (j->x_signed) {
        if (step == 1) PACK(int8_t, 1);
        else PACK(int8_t, step);
    } else {
        if (step == 1) PACK(uint8_t, 1);
        else if (step == 2) PACK(uint8_t, 2);
        else PACK(uint8_t, step);
    }
}

/* Scale, bias, activation and, for u8 output, requantization of n sums of channel o. */
static void cv_store(const cv_job *j, ptrdiff_t o, ptrdiff_t at, ptrdiff_t step, const int32_t *restrict t, ptrdiff_t n) {
    const vqc_conv_params *p = j->p;
    const float scale = j->scale[o], bias = j->bias != NULL ? j->bias[o] : -0.0f; /* x + -0 is x, for every x */
    if (j->real != NULL) {
        float *restrict y = j->real + at;
        if (step == 1)
            for (ptrdiff_t i = 0; i < n; i++) y[i] = (float)t[i] * scale + bias;
        else
            for (ptrdiff_t i = 0; i < n; i++) y[i * step] = (float)t[i] * scale + bias;
        return;
    }
    uint8_t *restrict y = j->byte + at;
    const float floor = p->act == VQC_ACT_CLAMP ? p->lo : -INFINITY, inv = p->inv_scale, zero = (float)p->zero_point;
    for (ptrdiff_t i = 0; i < n; i++) {
        float v = (float)t[i] * scale + bias;
        v = v < floor ? floor : v;
        v = rintf(v * inv) + zero;
        v = v > 0.0f ? v : 0.0f;
        v = v < 255.0f ? v : 255.0f;
        y[i * step] = (uint8_t)(int32_t)v;
    }
}

#include "vqc_conv_core.h"

#define CV_ENTRY(NAME, X, W, Y, REAL, BYTE, SIGNED, WIDE, TRANSPOSED)                                                 \
    void NAME(const vqc_model *m, const vqc_conv_params *p, const X *x, const W *w, const float *scale,               \
              const float *bias, const int32_t *zero, Y *y, void *scratch) {                                          \
        cv_job j = {p, x, w, scale, bias, zero, REAL, BYTE, (unsigned char *)scratch, SIGNED, WIDE};                  \
        cv_launch(m, &j, TRANSPOSED);                                                                                 \
    }

CV_ENTRY(vqc_qconv_u8s8_f32, uint8_t, int8_t, float, y, NULL, 0, 0, 0)
CV_ENTRY(vqc_qconv_u8s8_u8, uint8_t, int8_t, uint8_t, NULL, y, 0, 0, 0)
CV_ENTRY(vqc_qconv_s8s8_f32, int8_t, int8_t, float, y, NULL, 1, 0, 0)
CV_ENTRY(vqc_qconv_s8s8_u8, int8_t, int8_t, uint8_t, NULL, y, 1, 0, 0)
CV_ENTRY(vqc_qconv_u8s16_f32, uint8_t, int16_t, float, y, NULL, 0, 1, 0)
CV_ENTRY(vqc_qconv_u8s16_u8, uint8_t, int16_t, uint8_t, NULL, y, 0, 1, 0)
CV_ENTRY(vqc_qconv_s8s16_f32, int8_t, int16_t, float, y, NULL, 1, 1, 0)
CV_ENTRY(vqc_qconv_s8s16_u8, int8_t, int16_t, uint8_t, NULL, y, 1, 1, 0)
CV_ENTRY(vqc_qconv_transpose_u8s8_f32, uint8_t, int8_t, float, y, NULL, 0, 0, 1)
CV_ENTRY(vqc_qconv_transpose_u8s8_u8, uint8_t, int8_t, uint8_t, NULL, y, 0, 0, 1)
CV_ENTRY(vqc_qconv_transpose_s8s8_f32, int8_t, int8_t, float, y, NULL, 1, 0, 1)
CV_ENTRY(vqc_qconv_transpose_s8s8_u8, int8_t, int8_t, uint8_t, NULL, y, 1, 0, 1)
CV_ENTRY(vqc_qconv_transpose_u8s16_f32, uint8_t, int16_t, float, y, NULL, 0, 1, 1)
CV_ENTRY(vqc_qconv_transpose_u8s16_u8, uint8_t, int16_t, uint8_t, NULL, y, 0, 1, 1)
CV_ENTRY(vqc_qconv_transpose_s8s16_f32, int8_t, int16_t, float, y, NULL, 1, 1, 1)
CV_ENTRY(vqc_qconv_transpose_s8s16_u8, int8_t, int16_t, uint8_t, NULL, y, 1, 1, 1)
