/* Signs of concatenations and resizes. Compile with -ffp-contract=off: a sign is that of the rounded value. */
#include "vqc_signs.h"

#include <string.h>

#include "vqc_resize_row.h"
#include "vqc_simd.h"

#if VQC_VL == 16
#include <immintrin.h>
typedef __m512 signs_f;
#define SIGNS_ALL(x) _mm512_set1_ps(x)
#define SIGNS_LOAD(x) _mm512_loadu_ps(x)
#define SIGNS_MARK(word, v, tau, bit)                                                                                 \
    do {                                                                                                              \
        const __m512i old = _mm512_loadu_si512(word);                                                                 \
        const __mmask16 less = _mm512_cmp_ps_mask(v, tau, _CMP_LT_OQ);                                                \
        _mm512_storeu_si512(word, _mm512_mask_or_epi32(old, less, old, _mm512_set1_epi32((int)(bit))));               \
    } while (0)
#elif VQC_VL == 1
typedef float signs_f;
#define SIGNS_ALL(x) (x)
#define SIGNS_LOAD(x) (*(x))
#define SIGNS_MARK(word, v, tau, bit) *(word) |= (v) < (tau) ? (bit) : 0
#else
typedef vqc_vf signs_f;
#define SIGNS_ALL(x) ((x) - (vqc_vf){0}) /* x - 0 is x, -0 and NaN included */
#define SIGNS_LOAD(x) (*(const vqc_vf_mem *)(const void *)(x))
#define SIGNS_MARK(word, v, tau, bit) *(vqc_vi_mem *)(void *)(word) |= (vqc_vi)((v) < (tau)) & (int32_t)(bit)
#endif

#if defined(__GNUC__)
#define SIGNS_PREFETCH(x) __builtin_prefetch(x)
#else
#define SIGNS_PREFETCH(x) (void)(x)
#endif
#define SIGNS_APART 80 /* numbers between buffers, so that they do not lie whole pages apart */

typedef struct signs_job {
    const vqc_signs_params *p;
    const void *const *in;
    const float *tau, *tau2;
    uint32_t *bits, *bits2;
    unsigned char *scratch;
} signs_job;

/* What one channel is compared with, and its bit. */
typedef struct signs_mark {
    float tau, tau2;
    uint32_t bit;
} signs_mark;

/* n values of a channel. second: whether there is a second result. */
static inline void signs_run(const float *x, ptrdiff_t n, const signs_mark *k, int second, uint32_t *a, uint32_t *b) {
    const signs_f tau = SIGNS_ALL(k->tau), tau2 = SIGNS_ALL(k->tau2);
    ptrdiff_t i = 0;
    for (; i + VQC_VL <= n; i += VQC_VL) {
        const signs_f v = SIGNS_LOAD(x + i);
        SIGNS_MARK(a + i, v, tau, k->bit);
        if (second) SIGNS_MARK(b + i, v, tau2, k->bit);
    }
    for (; i < n; i++) {
        a[i] |= x[i] < k->tau ? k->bit : 0;
        if (second) b[i] |= x[i] < k->tau2 ? k->bit : 0;
    }
}

/* The same of top * w0 + bottom * w1. */
static inline void signs_between(const float *top, float w0, const float *bottom, float w1, ptrdiff_t n,
                                 const signs_mark *k, int second, uint32_t *a, uint32_t *b) {
    const signs_f tau = SIGNS_ALL(k->tau), tau2 = SIGNS_ALL(k->tau2), up = SIGNS_ALL(w0), down = SIGNS_ALL(w1);
    ptrdiff_t i = 0;
    for (; i + VQC_VL <= n; i += VQC_VL) {
        const signs_f v = SIGNS_LOAD(top + i) * up + SIGNS_LOAD(bottom + i) * down;
        SIGNS_MARK(a + i, v, tau, k->bit);
        if (second) SIGNS_MARK(b + i, v, tau2, k->bit);
    }
    for (; i < n; i++) {
        const float v = top[i] * w0 + bottom[i] * w1;
        a[i] |= v < k->tau ? k->bit : 0;
        if (second) b[i] |= v < k->tau2 ? k->bit : 0;
    }
}

/* Rows [first, last) of a resized channel. held: two rows of the source at the result's columns. */
static void signs_resized(const vqc_signs_params *p, const vqc_sign_part *part, const void *const *in,
                          const float *plane, ptrdiff_t first, ptrdiff_t last, float *held, const signs_mark *k,
                          int second, uint32_t *a, uint32_t *b) {
    const int32_t *rows = (const int32_t *)in[1], *cols = (const int32_t *)in[3];
    const float *weights = (const float *)in[2], *col_weights = (const float *)in[4];
    float *top = held, *bottom = held + p->w + SIGNS_APART;
    int32_t in_top = -1, in_bottom = -1;
    for (ptrdiff_t row = first; row < last; row++, a += p->w, b += p->w) {
        const int32_t r0 = rows[row], r1 = rows[p->h + row];
        if (in_top != r0 && in_bottom == r0) {
            float *swap = top;
            const int32_t was = in_top;
            top = bottom, bottom = swap;
            in_top = in_bottom, in_bottom = was;
        }
        if (in_top != r0) vqc_resize_row(plane + (ptrdiff_t)r0 * part->w, p->w, cols, col_weights, part->twice, top);
        in_top = r0;
        if (in_bottom != r1)
            vqc_resize_row(plane + (ptrdiff_t)r1 * part->w, p->w, cols, col_weights, part->twice, bottom);
        in_bottom = r1;
        if (second) signs_between(top, weights[row], bottom, weights[p->h + row], p->w, k, 1, a, b);
        else signs_between(top, weights[row], bottom, weights[p->h + row], p->w, k, 0, a, a);
    }
}

/* index: (image, word of channels, band of rows) */
static void signs_task(void *arg, int index, int worker) {
    const signs_job *j = (const signs_job *)arg;
    const vqc_signs_params *p = j->p;
    const ptrdiff_t bands = (p->h + p->rows - 1) / p->rows, words = (p->c + 31) / 32, plane = (ptrdiff_t)p->h * p->w;
    const ptrdiff_t word = index / bands % words, image = index / bands / words, first = index % bands * p->rows;
    const ptrdiff_t last = first + p->rows < p->h ? first + p->rows : p->h, n = (last - first) * p->w;
    const ptrdiff_t end = 32 * word + 32 < p->c ? 32 * word + 32 : p->c;
    const int second = j->bits2 != NULL;
    float *held = (float *)(void *)(j->scratch + (size_t)worker * p->scratch);
    uint32_t *a = (uint32_t *)(void *)(held + 2 * (p->w + SIGNS_APART)), *b = second ? a + n + SIGNS_APART : a;
    const vqc_sign_part *part = p->parts;
    memset(a, 0, (size_t)n * sizeof *a);
    memset(b, 0, (size_t)n * sizeof *b);
    for (ptrdiff_t c = 32 * word; c < end; c++) {
        while (c >= part->first + part->channels) part++;
        const void *const *in = j->in + part->in;
        const float *x = (const float *)in[0] + image * part->batch + (c - part->first) * part->h * part->w;
        if (c + 1 < end && c + 1 < part->first + part->channels) { /* the next channel's first lines */
            const ptrdiff_t from = part->resized ? ((const int32_t *)in[1])[first] * part->w : first * p->w;
            const ptrdiff_t to = part->resized ? ((const int32_t *)in[1])[p->h + last - 1] * part->w + part->w : last * p->w;
            const float *next = x + (ptrdiff_t)part->h * part->w;
            for (ptrdiff_t e = from; e < to; e += 16) SIGNS_PREFETCH(next + e);
        }
        const signs_mark k = {j->tau[p->taus > 1 ? c : 0], second ? j->tau2[p->taus2 > 1 ? c : 0] : 0.0f,
                              (uint32_t)1 << (c & 31)};
        if (part->resized) signs_resized(p, part, in, x, first, last, held, &k, second, a, b);
        else if (second) signs_run(x + first * p->w, n, &k, 1, a, b);
        else signs_run(x + first * p->w, n, &k, 0, a, a);
    }
    memcpy(j->bits + (image * words + word) * plane + first * p->w, a, (size_t)n * sizeof *a);
    if (second) memcpy(j->bits2 + (image * words + word) * plane + first * p->w, b, (size_t)n * sizeof *b);
}

void vqc_signs(const vqc_model *m, const vqc_signs_params *p, const void *const *in, const float *tau,
               const float *tau2, uint32_t *bits, uint32_t *bits2, void *scratch) {
    signs_job j = {p, in, tau, tau2, bits, bits2, (unsigned char *)scratch};
    vqc_for(m, signs_task, &j, p->n * ((p->c + 31) / 32) * ((p->h + p->rows - 1) / p->rows));
}
