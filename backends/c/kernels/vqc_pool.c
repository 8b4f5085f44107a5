/* Pooling. Compile with -ffp-contract=off: the order of the sums is the meaning of vqc::avg_pool2d and mean_hw. */
#include "vqc_pool.h"

#include <string.h>

typedef struct pool_job {
    const vqc_pool_params *p;
    const void *x;
    const int32_t *rows, *cols, *row_counts, *col_counts;
    void *y;
} pool_job;

static void avg_task(void *arg, int index, int worker) {
    const pool_job *j = (const pool_job *)arg;
    const vqc_pool_params *p = j->p;
    const float *x = (const float *)j->x + (ptrdiff_t)index * p->h * p->w;
    float *y = (float *)j->y + (ptrdiff_t)index * p->oh * p->ow;
    (void)worker;
    for (ptrdiff_t r = 0; r < p->oh; r++, y += p->ow) {
        const int32_t top = j->rows[r], bottom = j->rows[p->oh + r];
        for (ptrdiff_t c = 0; c < p->ow; c++) {
            const int32_t left = j->cols[c], right = j->cols[p->ow + c];
            float sum = -0.0f; /* -0 + v is v, for every v */
            for (int32_t i = top; i < bottom; i++)
                for (int32_t k = left; k < right; k++) sum += x[(ptrdiff_t)i * p->w + k];
            y[c] = sum * (float)(1.0 / ((double)j->row_counts[r] * (double)j->col_counts[c]));
        }
    }
}

void vqc_avg_pool_f32(const vqc_model *m, const vqc_pool_params *p, const float *x, const int32_t *rows,
                      const int32_t *cols, const int32_t *row_counts, const int32_t *col_counts, float *y) {
    pool_job j = {p, x, rows, cols, row_counts, col_counts, y};
    vqc_for(m, avg_task, &j, p->planes);
}

/* A NaN wins, as in PyTorch: v != v is never true for integers. */
#define MAX_POOL(NAME, TYPE)                                                                                          \
    static void NAME##_task(void *arg, int index, int worker) {                                                       \
        const pool_job *j = (const pool_job *)arg;                                                                    \
        const vqc_pool_params *p = j->p;                                                                              \
        const TYPE *x = (const TYPE *)j->x + (ptrdiff_t)index * p->h * p->w;                                          \
        TYPE *y = (TYPE *)j->y + (ptrdiff_t)index * p->oh * p->ow;                                                    \
        (void)worker;                                                                                                 \
        for (ptrdiff_t r = 0; r < p->oh; r++, y += p->ow) {                                                           \
            const int32_t top = j->rows[r], bottom = j->rows[p->oh + r];                                              \
            for (ptrdiff_t c = 0; c < p->ow; c++) {                                                                   \
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
MAX_POOL(vqc_max_pool_f32, float)
MAX_POOL(vqc_max_pool_u8, uint8_t)
MAX_POOL(vqc_max_pool_s8, int8_t)

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
