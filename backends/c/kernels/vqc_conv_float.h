/* The float convolution; included by vqc_conv_f32.c (contracted) and vqc_conv_exact_f32.c (not contracted). */
#include <string.h>

#include "vqc_conv.h"
#include "vqc_simd.h"

#define CV_E float
#define CV_A float
#define CV_V vqc_vf
#define CV_M vqc_vf_mem
#define CV_PAIR 1
#define CV_MAC(acc, x, w) ((acc) + (x) * (w))
#define CV_SMAC(acc, x, w) ((acc) + (x) * (w))

typedef struct cv_job {
    const vqc_conv_params *p;
    const float *x, *w, *bias, *slope;
    float *y;
    unsigned char *scratch;
    const uint8_t *mask; /* NULL: everything is computed */
    ptrdiff_t near;      /* CV_NEAR */
} cv_job;
#define CV_NEAR(j) ((j)->near)

#ifndef CV_TILES_ONLY
/* A 1x1 convolution reads its input where it is. */
static int cv_direct(const cv_job *j) {
    const vqc_conv_params *p = j->p;
    return p->kd * p->kh * p->kw == 1 && p->sd * p->sh * p->sw == 1 && p->pd + p->ph + p->pw == 0;
}

static const float *cv_weights(const cv_job *j, ptrdiff_t at, ptrdiff_t count, float *expanded) {
    (void)count;
    (void)expanded;
    return j->w + at;
}
#endif

#define CV_FAR_ROWS 256 /* so long a row is a wide picture's, which no near cache holds; the CPU follows shorter ones itself */

/* Ask for the same columns of the next channel. There may be no next channel, so a number is counted up, not a pointer. */
static inline void cv_prefetch(const float *row, ptrdiff_t channel, ptrdiff_t n) {
#ifdef __GNUC__
    const uintptr_t at = (uintptr_t)row + (uintptr_t)channel * sizeof(float);
    for (ptrdiff_t i = 0; i < n; i += 16) __builtin_prefetch((const void *)(at + (uintptr_t)i * sizeof(float)), 0, 2);
#else
    (void)row, (void)channel, (void)n;
#endif
}

/* dst[t] = row[left + t * step], zero outside the row. */
static void cv_pack_row(const cv_job *j, float *restrict dst, const ptrdiff_t *from, const ptrdiff_t *channel,
                        ptrdiff_t left, ptrdiff_t step, ptrdiff_t count) {
    const ptrdiff_t w = j->p->w;
    ptrdiff_t lo = left < 0 ? (-left + step - 1) / step : 0, hi = left < w ? (w - 1 - left) / step + 1 : 0;
    (void)channel;
    if (hi > count) hi = count;
    if (lo > hi) lo = hi;
    if (from[0] < 0) lo = hi = 0;
    for (ptrdiff_t t = 0; t < lo; t++) dst[t] = 0.0f;
    for (ptrdiff_t t = hi; t < count; t++) dst[t] = 0.0f;
    if (hi > lo) {
        const float *restrict src = j->x + from[0] + left + lo * step;
        if (step == 1 && w >= CV_FAR_ROWS) cv_prefetch(src, (ptrdiff_t)j->p->d * j->p->h * w, hi - lo);
        if (step == 1) {
            memcpy(dst + lo, src, (size_t)(hi - lo) * sizeof(float));
        } else if (step == 2) {
            for (ptrdiff_t t = 0; t < hi - lo; t++) dst[lo + t] = src[2 * t];
        } else {
            for (ptrdiff_t t = 0; t < hi - lo; t++) dst[lo + t] = src[t * step];
        }
    }
}

#ifdef __GNUC__
#define CV_INLINE inline __attribute__((always_inline))
#else
#define CV_INLINE inline
#endif

static CV_INLINE float cv_hardsigmoid(float v) {
    const float s = v + 3.0f;
    const float c = s < 0.0f ? 0.0f : s;
    return (c > 6.0f ? 6.0f : c) * (1.0f / 6.0f);
}

#define CV_STORE(EXPR)                                                                                                \
    if (step == 1) {                                                                                                  \
        for (ptrdiff_t i = 0; i < n; i++) {                                                                           \
            const float v = t[i] + bias;                                                                              \
            y[i] = EXPR;                                                                                              \
        }                                                                                                             \
    } else {                                                                                                          \
        for (ptrdiff_t i = 0; i < n; i++) {                                                                           \
            const float v = t[i] + bias;                                                                              \
            y[i * step] = EXPR;                                                                                       \
        }                                                                                                             \
    }                                                                                                                 \
    break;

/* Bias and activation of n sums of channel o, to y[at + i * step]. */
static CV_INLINE void cv_store_some(const cv_job *j, ptrdiff_t o, ptrdiff_t at, ptrdiff_t step,
                                    const float *restrict t, ptrdiff_t n) {
    const vqc_conv_params *p = j->p;
    const float bias = j->bias != NULL ? j->bias[o] : -0.0f; /* x + -0 is x, for every x */
    const float lo = p->act == VQC_ACT_PRELU ? j->slope[o] : p->lo, hi = p->hi;
    float *restrict y = j->y + at;
    switch (p->act) {
    case VQC_ACT_CLAMP: CV_STORE((v < lo ? lo : v > hi ? hi : v))
    case VQC_ACT_LEAKY:
    case VQC_ACT_PRELU: CV_STORE((v > 0.0f ? v : v * lo))
    case VQC_ACT_HARDSIGMOID: CV_STORE(cv_hardsigmoid(v))
    case VQC_ACT_HARDSWISH: CV_STORE(v * cv_hardsigmoid(v))
    default: CV_STORE(v)
    }
}

static void cv_store(const cv_job *j, ptrdiff_t o, ptrdiff_t at, ptrdiff_t step, const float *restrict t, ptrdiff_t n) {
    cv_store_some(j, o, at, step, t, n);
}
#define CV_STORE_TILE cv_store_some

/* A 1x1 convolution over a wide picture reads every plane a little at a time: ask for what tiles to come will read. */
#define CV_TILES_AHEAD 2
#define CV_AHEAD(b, at, n)                                                                                            \
    for (ptrdiff_t v = 0; (n) > 0 && (b)->taps == 1 && (b)->pitch >= CV_FAR_ROWS && v < (b)->planes; v++)             \
        cv_prefetch((b)->x + (at) + v * (b)->plane, 0, n)

#include "vqc_conv_core.h"

#ifdef CV_MASKED
static cv_job cv_redirect(const cv_job *j, cv_room *room) {
    cv_job aside = *j;
    aside.y = room->f;
    return aside;
}

static inline void cv_keep(const cv_job *j, ptrdiff_t at, const cv_room *room, ptrdiff_t from, const uint8_t *mask) {
    cv_keep_f32(j->y + at, room->f + from, mask);
}

static inline void cv_put(const cv_job *j, ptrdiff_t at, const cv_room *room, ptrdiff_t from, ptrdiff_t n) {
    cv_put_f32(j->y + at, room->f + from, n);
}

static void cv_blank(const cv_job *j, ptrdiff_t at, ptrdiff_t n) { memset(j->y + at, 0, (size_t)n * sizeof(float)); }
#endif

#define CV_ENTRY(NAME, TRANSPOSED)                                                                                    \
    void NAME(const vqc_model *m, const vqc_conv_params *p, const float *x, const float *w, const float *bias,        \
              const float *slope, float *y, void *scratch) {                                                          \
        cv_job j = {p, x, w, bias, slope, y, (unsigned char *)scratch, NULL, 0};                                      \
        cv_launch(m, &j, TRANSPOSED);                                                                                 \
    }
