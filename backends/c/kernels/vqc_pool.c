/* Pooling. Compile with -ffp-contract=off: the order of the sums is the meaning of vqc::avg_pool2d and mean_hw. */
#include "vqc_pool.h"

#include <string.h>

typedef struct pool_job {
    const vqc_pool_params *p;
    const void *x;
    const int32_t *rows, *cols, *row_counts, *col_counts;
    void *y;
} pool_job;

/* Columns [lo, hi) whose windows all have the same width, each `step` after the one before: those that no border cuts. */
typedef struct pool_span {
    ptrdiff_t lo, hi, step, width;
} pool_span;

static pool_span pool_regular(const pool_job *j) {
    const ptrdiff_t n = j->p->ow, middle = n / 2;
    const int32_t *left = j->cols, *right = j->cols + n, *count = j->col_counts;
    pool_span s = {middle, middle + 1, 1, right[middle] - left[middle]};
    if (middle + 1 < n) s.step = left[middle + 1] - left[middle];
    while (s.lo > 0 && left[s.lo - 1] == left[s.lo] - s.step && right[s.lo - 1] - left[s.lo - 1] == s.width &&
           (count == NULL || count[s.lo - 1] == count[middle]))
        s.lo--;
    while (s.hi < n && left[s.hi] == left[s.hi - 1] + s.step && right[s.hi] - left[s.hi] == s.width &&
           (count == NULL || count[s.hi] == count[middle]))
        s.hi++;
    return s;
}

/* y[c] = EXPR of y[c] and v, the element of one tap, for all regular columns. The taps come one after the other, row by
 * row, as they do for a single column. */
#define POOL_TAP(EXPR)                                                                                                \
    if (s.step == 1)                                                                                                  \
        for (ptrdiff_t c = 0; c < n; c++) {                                                                           \
            const POOL_T v = from[c];                                                                                 \
            to[c] = EXPR;                                                                                             \
        }                                                                                                             \
    else if (s.step == 2)                                                                                             \
        for (ptrdiff_t c = 0; c < n; c++) {                                                                           \
            const POOL_T v = from[2 * c];                                                                             \
            to[c] = EXPR;                                                                                             \
        }                                                                                                             \
    else                                                                                                              \
        for (ptrdiff_t c = 0; c < n; c++) {                                                                           \
            const POOL_T v = from[s.step * c];                                                                        \
            to[c] = EXPR;                                                                                             \
        }

static float avg_factor(const pool_job *j, ptrdiff_t row, ptrdiff_t column) {
    return (float)(1.0 / ((double)j->row_counts[row] * (double)j->col_counts[column]));
}

#define POOL_T float
static void avg_rows(const pool_span s, const float *x, ptrdiff_t w, ptrdiff_t height, float factor, float *restrict to) {
    const ptrdiff_t n = s.hi - s.lo;
    if (s.step == 2 && s.width == 2 && height == 2) { /* the most frequent one: a column's sum stays in a register */
        const float *restrict below = x + w;
        for (ptrdiff_t c = 0; c < n; c++)
            to[c] = (((x[2 * c] + x[2 * c + 1]) + below[2 * c]) + below[2 * c + 1]) * factor;
        return;
    }
    for (ptrdiff_t i = 0; i < height; i++)
        for (ptrdiff_t k = 0; k < s.width; k++) {
            const float *restrict from = x + i * w + k;
            if (i == 0 && k == 0) {
                POOL_TAP(v)
            } else {
                POOL_TAP(to[c] + v)
            }
        }
    for (ptrdiff_t c = 0; c < n; c++) to[c] *= factor;
}

static void avg_task(void *arg, int index, int worker) {
    const pool_job *j = (const pool_job *)arg;
    const vqc_pool_params *p = j->p;
    const float *x = (const float *)j->x + (ptrdiff_t)index * p->h * p->w;
    float *y = (float *)j->y + (ptrdiff_t)index * p->oh * p->ow;
    const pool_span s = pool_regular(j);
    (void)worker;
    for (ptrdiff_t r = 0; r < p->oh; r++, y += p->ow) {
        const int32_t top = j->rows[r], bottom = j->rows[p->oh + r];
        const int regular = bottom > top && s.width > 0;
        if (regular)
            avg_rows(s, x + (ptrdiff_t)top * p->w + j->cols[s.lo], p->w, bottom - top, avg_factor(j, r, s.lo), y + s.lo);
        for (ptrdiff_t c = 0; c < p->ow; c++) {
            if (regular && c == s.lo) c = s.hi;
            if (c >= p->ow) break;
            const int32_t left = j->cols[c], right = j->cols[p->ow + c];
            float sum = -0.0f; /* -0 + v is v, for every v */
            for (int32_t i = top; i < bottom; i++)
                for (int32_t k = left; k < right; k++) sum += x[(ptrdiff_t)i * p->w + k];
            y[c] = sum * avg_factor(j, r, c);
        }
    }
}
#undef POOL_T

void vqc_avg_pool_f32(const vqc_model *m, const vqc_pool_params *p, const float *x, const int32_t *rows,
                      const int32_t *cols, const int32_t *row_counts, const int32_t *col_counts, float *y) {
    pool_job j = {p, x, rows, cols, row_counts, col_counts, y};
    vqc_for(m, avg_task, &j, p->planes);
}

/* A NaN wins, as in PyTorch: v != v is never true for integers. */
#define MAX_POOL(NAME, TYPE)                                                                                          \
    static void NAME##_rows(const pool_span s, const TYPE *x, ptrdiff_t w, ptrdiff_t height, TYPE *restrict to) {     \
        const ptrdiff_t n = s.hi - s.lo;                                                                              \
        for (ptrdiff_t i = 0; i < height; i++)                                                                        \
            for (ptrdiff_t k = 0; k < s.width; k++) {                                                                 \
                const TYPE *restrict from = x + i * w + k;                                                            \
                if (i == 0 && k == 0) {                                                                               \
                    POOL_TAP(v)                                                                                       \
                } else {                                                                                              \
                    POOL_TAP((v > to[c] || v != v ? v : to[c]))                                                       \
                }                                                                                                     \
            }                                                                                                         \
    }                                                                                                                 \
    static void NAME##_task(void *arg, int index, int worker) {                                                       \
        const pool_job *j = (const pool_job *)arg;                                                                    \
        const vqc_pool_params *p = j->p;                                                                              \
        const TYPE *x = (const TYPE *)j->x + (ptrdiff_t)index * p->h * p->w;                                          \
        TYPE *y = (TYPE *)j->y + (ptrdiff_t)index * p->oh * p->ow;                                                    \
        const pool_span s = pool_regular(j);                                                                          \
        (void)worker;                                                                                                 \
        for (ptrdiff_t r = 0; r < p->oh; r++, y += p->ow) {                                                           \
            const int32_t top = j->rows[r], bottom = j->rows[p->oh + r];                                              \
            NAME##_rows(s, x + (ptrdiff_t)top * p->w + j->cols[s.lo], p->w, bottom - top, y + s.lo);                  \
            for (ptrdiff_t c = 0; c < p->ow; c++) {                                                                   \
                if (c == s.lo) c = s.hi;                                                                              \
                if (c >= p->ow) break;                                                                                \
                const int32_t left = j->cols[c], right = j->cols[p->ow + c];                                          \
                TYPE best = x[(ptrdiff_t)top * p->w + left];                                                          \
                for (int32_t i = top; i < bottom; i++)                                                                \
                    for (int32_t k = left; k < right; k++) {                                                          \
                        const TYPE v = x[(ptrdiff_t)i * p->w + k];                                                    \
                        best = v > best || v != v ? v : best;                                                         \
                    }                                                                                                 \
                y[c] = best;                                                                                          \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    void NAME(const vqc_model *m, const vqc_pool_params *p, const TYPE *x, const int32_t *rows, const int32_t *cols,  \
              TYPE *y) {                                                                                              \
        pool_job j = {p, x, rows, cols, NULL, NULL, y};                                                               \
        vqc_for(m, NAME##_task, &j, p->planes);                                                                       \
    }
#define POOL_T float
MAX_POOL(vqc_max_pool_f32, float)
#undef POOL_T
#define POOL_T uint8_t
MAX_POOL(vqc_max_pool_u8, uint8_t)
#undef POOL_T
#define POOL_T int8_t
MAX_POOL(vqc_max_pool_s8, int8_t)
#undef POOL_T

typedef struct mean_job {
    const vqc_mean_params *p;
    const float *x;
    float *y;
} mean_job;

static void mean_task(void *arg, int index, int worker) {
    const mean_job *j = (const mean_job *)arg;
    const ptrdiff_t count = j->p->count;
    const float *x = j->x + index * count;
    float acc[16] = {0};
    ptrdiff_t i = 0;
    (void)worker;
    for (; i + 16 <= count; i += 16)
        for (int l = 0; l < 16; l++) acc[l] += x[i + l];
    if (i < count) {
        float tail[16] = {0};
        memcpy(tail, x + i, (size_t)(count - i) * sizeof(float));
        for (int l = 0; l < 16; l++) acc[l] += tail[l];
    }
    for (int width = 8; width > 0; width /= 2)
        for (int l = 0; l < width; l++) acc[l] += acc[l + width];
    j->y[index] = acc[0] * (float)(1.0 / (double)count);
}

void vqc_mean_hw_f32(const vqc_model *m, const vqc_mean_params *p, const float *x, float *y) {
    mean_job j = {p, x, y};
    vqc_for(m, mean_task, &j, p->planes);
}
