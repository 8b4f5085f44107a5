/* Signs of concatenations and resizes. Compile with -ffp-contract=off: a sign is that of the rounded value. */
#include "vqc_signs.h"

#include <string.h>

#include "vqc_resize_row.h"
#include "vqc_simd.h"

#define SIGNS_GROUP 4 /* channels worked on together: a word is read and written once for all of them */

#if VQC_VL == 16
#include <immintrin.h>
typedef __m512 signs_f;
typedef __m512i signs_i;
#define SIGNS_ALL(x) _mm512_set1_ps(x)
#define SIGNS_LOAD(x) _mm512_loadu_ps(x)
#define SIGNS_WORDS(p) _mm512_loadu_si512(p)
#define SIGNS_STORE(p, words) _mm512_storeu_si512(p, words)
#define SIGNS_MARK(words, v, tau, bit)                                                                                \
    _mm512_mask_or_epi32(words, _mm512_cmp_ps_mask(v, tau, _CMP_LT_OQ), words, _mm512_set1_epi32((int)(bit)))
#elif VQC_VL == 1
typedef float signs_f;
typedef uint32_t signs_i;
#define SIGNS_ALL(x) (x)
#define SIGNS_LOAD(x) (*(x))
#define SIGNS_WORDS(p) (*(p))
#define SIGNS_STORE(p, words) (*(p) = (words))
#define SIGNS_MARK(words, v, tau, bit) ((words) | ((v) < (tau) ? (bit) : 0))
#else
typedef vqc_vf signs_f;
typedef vqc_vi signs_i;
#define SIGNS_ALL(x) ((x) - (vqc_vf){0}) /* x - 0 is x, -0 and NaN included */
#define SIGNS_LOAD(x) (*(const vqc_vf_mem *)(const void *)(x))
#define SIGNS_WORDS(p) (*(const vqc_vi_mem *)(const void *)(p))
#define SIGNS_STORE(p, words) (*(vqc_vi_mem *)(void *)(p) = (words))
#if defined(__aarch64__) && defined(__ARM_NEON)
/* One instruction for "and" and "or"; compilers take it apart again if it does not stand as assembly. */
static inline signs_i signs_insert(signs_i words, signs_i less, signs_i bit) {
    __asm__("bit %0.16b, %1.16b, %2.16b" : "+w"(words) : "w"(less), "w"(bit));
    return words;
}
#define SIGNS_MARK(words, v, tau, bit) signs_insert(words, (vqc_vi)((v) < (tau)), (vqc_vi){0} + (int32_t)(bit))
#else
#define SIGNS_MARK(words, v, tau, bit) ((words) | ((vqc_vi)((v) < (tau)) & (int32_t)(bit)))
#endif
#endif

#if defined(__GNUC__)
#define SIGNS_PREFETCH(x) __builtin_prefetch(x)
#define SIGNS_INLINE inline __attribute__((always_inline))
#define SIGNS_UNROLL _Pragma("GCC unroll 4")
#else
#define SIGNS_PREFETCH(x) (void)(x)
#define SIGNS_INLINE inline
#define SIGNS_UNROLL
#endif
#define SIGNS_APART 80 /* numbers between buffers, so that they do not lie whole pages apart */

typedef struct signs_job {
    const vqc_signs_params *p;
    const void *const *in;
    const float *tau, *tau2;
    uint32_t *bits, *bits2;
    unsigned char *scratch;
} signs_job;

/* Channels worked on together: what each is compared with, and its bit. */
typedef struct signs_group {
    const float *x[SIGNS_GROUP]; /* from the band's, or the source's, first row on */
    float tau[SIGNS_GROUP], tau2[SIGNS_GROUP];
    uint32_t bit[SIGNS_GROUP];
} signs_group;

/* Rows of a resized source at the result's columns, of which values are made between. */
typedef struct signs_between {
    const float *top[SIGNS_GROUP], *bottom[SIGNS_GROUP];
    float w0, w1;
} signs_between;

/* n values of `channels` channels; second: whether there is a second result. between: NULL, or what the values are made
 * of: top * w0 + bottom * w1. */
static SIGNS_INLINE void signs_run(const signs_group *g, const signs_between *between, int channels, int second,
                                   ptrdiff_t n, uint32_t *restrict a, uint32_t *restrict b) {
    const float w0 = between != NULL ? between->w0 : 0, w1 = between != NULL ? between->w1 : 0;
    signs_f tau[SIGNS_GROUP], tau2[SIGNS_GROUP];
    const float *x[SIGNS_GROUP], *y[SIGNS_GROUP];
    SIGNS_UNROLL for (int k = 0; k < channels; k++) {
        tau[k] = SIGNS_ALL(g->tau[k]);
        tau2[k] = SIGNS_ALL(g->tau2[k]);
        x[k] = between != NULL ? between->top[k] : g->x[k];
        y[k] = between != NULL ? between->bottom[k] : NULL;
    }
    const signs_f up = SIGNS_ALL(w0), down = SIGNS_ALL(w1);
    ptrdiff_t i = 0;
    for (; i + VQC_VL <= n; i += VQC_VL) {
        signs_i words = SIGNS_WORDS(a + i), words2 = words;
        if (second) words2 = SIGNS_WORDS(b + i);
        SIGNS_UNROLL for (int k = 0; k < channels; k++) {
            signs_f v = SIGNS_LOAD(x[k] + i);
            if (between != NULL) v = v * up + SIGNS_LOAD(y[k] + i) * down;
            words = SIGNS_MARK(words, v, tau[k], g->bit[k]);
            if (second) words2 = SIGNS_MARK(words2, v, tau2[k], g->bit[k]);
        }
        SIGNS_STORE(a + i, words);
        if (second) SIGNS_STORE(b + i, words2);
    }
    for (; i < n; i++) {
        for (int k = 0; k < channels; k++) {
            const float v = between != NULL ? x[k][i] * w0 + y[k][i] * w1 : x[k][i];
            a[i] |= v < g->tau[k] ? g->bit[k] : 0;
            if (second) b[i] |= v < g->tau2[k] ? g->bit[k] : 0;
        }
    }
}

#define SIGNS_RUN(BETWEEN)                                                                                            \
    if (channels == SIGNS_GROUP && second) signs_run(g, BETWEEN, SIGNS_GROUP, 1, n, a, b);                            \
    else if (channels == SIGNS_GROUP) signs_run(g, BETWEEN, SIGNS_GROUP, 0, n, a, b);                                 \
    else if (second) signs_run(g, BETWEEN, 1, 1, n, a, b);                                                            \
    else signs_run(g, BETWEEN, 1, 0, n, a, b);

/* channels: SIGNS_GROUP or 1 */
static void signs_plain(const signs_group *g, int channels, int second, ptrdiff_t n, uint32_t *a, uint32_t *b) {
    SIGNS_RUN(NULL)
}

static void signs_made(const signs_group *g, const signs_between *between, int channels, int second, ptrdiff_t n,
                       uint32_t *a, uint32_t *b) {
    SIGNS_RUN(between)
}

/* Rows [first, last) of resized channels. held: two rows of each source at the result's columns. */
static void signs_resized(const vqc_signs_params *p, const vqc_sign_part *part, const void *const *in,
                          const signs_group *g, int channels, int second, ptrdiff_t first, ptrdiff_t last, float *held,
                          uint32_t *a, uint32_t *b) {
    const int32_t *rows = (const int32_t *)in[1], *cols = (const int32_t *)in[3];
    const float *weights = (const float *)in[2], *col_weights = (const float *)in[4];
    const ptrdiff_t pitch = p->w + SIGNS_APART;
    int32_t in_top = -1, in_bottom = -1, turned = 0;
    for (ptrdiff_t row = first; row < last; row++, a += p->w, b += p->w) {
        const int32_t r0 = rows[row], r1 = rows[p->h + row];
        signs_between of = {{NULL}, {NULL}, weights[row], weights[p->h + row]};
        if (in_top != r0 && in_bottom == r0) {
            const int32_t was = in_top;
            in_top = in_bottom, in_bottom = was;
            turned = !turned;
        }
        for (int k = 0; k < channels; k++) {
            float *top = held + (2 * k + turned) * pitch, *bottom = held + (2 * k + !turned) * pitch;
            if (in_top != r0)
                vqc_resize_row(g->x[k] + (ptrdiff_t)r0 * part->w, p->w, cols, col_weights, part->twice, top);
            if (in_bottom != r1)
                vqc_resize_row(g->x[k] + (ptrdiff_t)r1 * part->w, p->w, cols, col_weights, part->twice, bottom);
            of.top[k] = top;
            of.bottom[k] = bottom;
        }
        in_top = r0;
        in_bottom = r1;
        signs_made(g, &of, channels, second, p->w, a, b);
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
    uint32_t *a = (uint32_t *)(void *)(held + 2 * SIGNS_GROUP * (p->w + SIGNS_APART)), *b = second ? a + n + SIGNS_APART : a;
    const vqc_sign_part *part = p->parts;
    memset(a, 0, (size_t)n * sizeof *a);
    memset(b, 0, (size_t)n * sizeof *b);
    for (ptrdiff_t c = 32 * word, together; c < end; c += together) {
        while (c >= part->first + part->channels) part++;
        const ptrdiff_t stop = part->first + part->channels < end ? part->first + part->channels : end;
        together = stop - c >= SIGNS_GROUP ? SIGNS_GROUP : 1;
        const void *const *in = j->in + part->in;
        const ptrdiff_t size = (ptrdiff_t)part->h * part->w;
        const float *x = (const float *)in[0] + image * part->batch + (c - part->first) * size;
        const ptrdiff_t from = part->resized ? ((const int32_t *)in[1])[first] * part->w : first * p->w;
        const ptrdiff_t to = part->resized ? ((const int32_t *)in[1])[p->h + last - 1] * part->w + part->w : last * p->w;
        signs_group g;
        for (ptrdiff_t k = 0; k < together; k++, x += size) {
            if (c + together + k < stop) /* lines of the channels that come next */
                for (ptrdiff_t e = from; e < to; e += 16) SIGNS_PREFETCH(x + together * size + e);
            g.x[k] = part->resized ? x : x + first * p->w;
            g.tau[k] = j->tau[p->taus > 1 ? c + k : 0];
            g.tau2[k] = second ? j->tau2[p->taus2 > 1 ? c + k : 0] : 0.0f;
            g.bit[k] = (uint32_t)1 << ((c + k) & 31);
        }
        if (part->resized) signs_resized(p, part, in, &g, (int)together, second, first, last, held, a, b);
        else signs_plain(&g, (int)together, second, n, a, b);
    }
    memcpy(j->bits + (image * words + word) * plane + first * p->w, a, (size_t)n * sizeof *a);
    if (second) memcpy(j->bits2 + (image * words + word) * plane + first * p->w, b, (size_t)n * sizeof *b);
}

void vqc_signs(const vqc_model *m, const vqc_signs_params *p, const void *const *in, const float *tau,
               const float *tau2, uint32_t *bits, uint32_t *bits2, void *scratch) {
    signs_job j = {p, in, tau, tau2, bits, bits2, (unsigned char *)scratch};
    vqc_for(m, signs_task, &j, p->n * ((p->c + 31) / 32) * ((p->h + p->rows - 1) / p->rows));
}
