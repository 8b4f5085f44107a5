/* Pooling of volumes and resampling along an axis. Compile with -ffp-contract=off. */
#include "vqc_volume.h"

#include <math.h>

typedef struct volume_job {
    const vqc_volume_params *p;
    const float *x;
    const int32_t *depths, *rows, *cols;
    const float *factors[3];
    float *y;
    int64_t *where;
    unsigned char *scratch;
} volume_job;

/* First all rows of a window into one row, side by side, then along that row. */
#define POOL(NAME, START, JOIN, LAST)                                                                                 \
    static void NAME(void *arg, int index, int worker) {                                                              \
        const volume_job *j = (const volume_job *)arg;                                                                \
        const vqc_volume_params *p = j->p;                                                                            \
        const ptrdiff_t plane = index / p->od, depth = index % p->od, w = p->w;                                       \
        const float *x = j->x + plane * p->d * p->h * w;                                                              \
        float *y = j->y + (plane * p->od + depth) * p->oh * p->ow;                                                    \
        float *restrict line = (float *)(void *)(j->scratch + (size_t)worker * p->scratch);                           \
        for (ptrdiff_t r = 0; r < p->oh; r++, y += p->ow) {                                                           \
            int begun = 0;                                                                                            \
            for (ptrdiff_t a = j->depths[depth]; a < j->depths[p->od + depth]; a += p->dd)                            \
                for (ptrdiff_t b = j->rows[r]; b < j->rows[p->oh + r]; b += p->dh) {                                  \
                    const float *restrict v = x + (a * p->h + b) * w;                                                 \
                    if (!begun)                                                                                       \
                        for (ptrdiff_t i = 0; i < w; i++) line[i] = v[i];                                             \
                    else                                                                                              \
                        for (ptrdiff_t i = 0; i < w; i++) line[i] = JOIN(line[i], v[i]);                              \
                    begun = 1;                                                                                        \
                }                                                                                                     \
            if (!begun)                                                                                               \
                for (ptrdiff_t i = 0; i < w; i++) line[i] = START;                                                    \
            for (ptrdiff_t c = 0; c < p->ow; c++) {                                                                   \
                float best = START;                                                                                   \
                for (ptrdiff_t i = j->cols[c]; i < j->cols[p->ow + c]; i += p->dw) best = JOIN(best, line[i]);        \
                y[c] = LAST;                                                                                          \
            }                                                                                                         \
        }                                                                                                             \
    }
#define LARGER(A, B) ((B) > (A) || (B) != (B) ? (B) : (A))
#define SUM(A, B) ((A) + (B))
#define LOWEST (-INFINITY)
POOL(max_task, LOWEST, LARGER, best)
POOL(sum_task, 0.0f, SUM, best *(j->factors[0][depth] * j->factors[1][r] * j->factors[2][c]))

void vqc_max_volume_f32(const vqc_model *m, const vqc_volume_params *p, const float *x, const int32_t *depths,
                        const int32_t *rows, const int32_t *cols, float *y, void *scratch) {
    volume_job j = {p, x, depths, rows, cols, {NULL, NULL, NULL}, y, NULL, (unsigned char *)scratch};
    vqc_for(m, max_task, &j, p->planes * p->od);
}

void vqc_sum_volume_f32(const vqc_model *m, const vqc_volume_params *p, const float *x, const int32_t *depths,
                        const int32_t *rows, const int32_t *cols, const float *depth_factors, const float *row_factors,
                        const float *col_factors, float *y, void *scratch) {
    volume_job j = {p, x, depths, rows, cols, {depth_factors, row_factors, col_factors}, y, NULL, (unsigned char *)scratch};
    vqc_for(m, sum_task, &j, p->planes * p->od);
}

static void where_task(void *arg, int index, int worker) {
    const volume_job *j = (const volume_job *)arg;
    const vqc_volume_params *p = j->p;
    const ptrdiff_t plane = index / p->od, depth = index % p->od, w = p->w;
    const float *x = j->x + plane * p->d * p->h * w;
    ptrdiff_t to = (plane * p->od + depth) * p->oh * p->ow;
    (void)worker;
    for (ptrdiff_t r = 0; r < p->oh; r++)
        for (ptrdiff_t c = 0; c < p->ow; c++, to++) {
            ptrdiff_t at = ((ptrdiff_t)j->depths[depth] * p->h + j->rows[r]) * w + j->cols[c];
            float best = x[at];
            for (ptrdiff_t a = j->depths[depth]; a < j->depths[p->od + depth]; a += p->dd)
                for (ptrdiff_t b = j->rows[r]; b < j->rows[p->oh + r]; b += p->dh)
                    for (ptrdiff_t i = j->cols[c]; i < j->cols[p->ow + c]; i += p->dw) {
                        const float v = x[(a * p->h + b) * w + i];
                        if (v > best || v != v) best = v, at = (a * p->h + b) * w + i;
                    }
            j->y[to] = best;
            j->where[to] = at;
        }
}

void vqc_max_where_f32(const vqc_model *m, const vqc_volume_params *p, const float *x, const int32_t *depths,
                       const int32_t *rows, const int32_t *cols, float *y, int64_t *where) {
    volume_job j = {p, x, depths, rows, cols, {NULL, NULL, NULL}, y, where, NULL};
    vqc_for(m, where_task, &j, p->planes * p->od);
}

typedef struct taps_job {
    const vqc_taps_params *p;
    const float *x, *weight;
    const int32_t *index;
    float *y;
} taps_job;

static void taps_task(void *arg, int outer, int worker) {
    const taps_job *j = (const taps_job *)arg;
    const vqc_taps_params *p = j->p;
    const float *restrict x = j->x + outer * p->in * p->inner;
    float *restrict y = j->y + outer * p->out * p->inner;
    (void)worker;
    for (ptrdiff_t i = 0; i < p->out; i++) {
        const int32_t *restrict from = j->index + i * p->taps;
        const float *restrict by = j->weight + i * p->taps;
        if (p->inner == 1) {
            float sum = x[from[0]] * by[0];
            for (int t = 1; t < p->taps; t++) sum += x[from[t]] * by[t];
            y[i] = sum;
            continue;
        }
        float *restrict to = y + i * p->inner;
        for (int t = 0; t < p->taps; t++) {
            const float *restrict v = x + from[t] * p->inner;
            const float b = by[t];
            if (t == 0)
                for (ptrdiff_t n = 0; n < p->inner; n++) to[n] = v[n] * b;
            else
                for (ptrdiff_t n = 0; n < p->inner; n++) to[n] += v[n] * b;
        }
    }
}

void vqc_taps_f32(const vqc_model *m, const vqc_taps_params *p, const float *x, const int32_t *index,
                  const float *weight, float *y) {
    taps_job j = {p, x, weight, index, y};
    vqc_for(m, taps_task, &j, (int)p->outer);
}
