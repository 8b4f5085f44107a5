/* Bilinear resizing and grid sampling. Compile with -ffp-contract=off: the written operations are the meaning. */
#include "vqc_resample.h"
#include "vqc_resize_row.h"

#include <math.h>

typedef struct resize_job {
    const vqc_resize_params *p;
    const float *x, *row_weights, *col_weights;
    const int32_t *rows, *cols;
    float *y;
    unsigned char *scratch;
} resize_job;

/* One input row at the output's columns. */
static void resize_row(const resize_job *j, const float *x, float *t) {
    vqc_resize_row(x, j->p->ow, j->cols, j->col_weights, j->p->twice, t);
}

static void resize_task(void *arg, int index, int worker) {
    const resize_job *j = (const resize_job *)arg;
    const vqc_resize_params *p = j->p;
    const float *plane = j->x + (ptrdiff_t)index * p->h * p->w;
    float *y = j->y + (ptrdiff_t)index * p->oh * p->ow;
    float *buffer = (float *)(void *)(j->scratch + (size_t)worker * p->scratch);
    float *t = buffer, *b = buffer + p->ow;
    int32_t in_t = -1, in_b = -1; /* which input rows t and b hold */
    for (ptrdiff_t r = 0; r < p->oh; r++, y += p->ow) {
        const int32_t r0 = j->rows[r], r1 = j->rows[p->oh + r];
        const float w0 = j->row_weights[r], w1 = j->row_weights[p->oh + r];
        if (in_t != r0) {
            if (in_b == r0) {
                float *swap = t;
                t = b, b = swap;
                in_b = in_t;
            } else {
                resize_row(j, plane + (ptrdiff_t)r0 * p->w, t);
            }
            in_t = r0;
        }
        if (in_b != r1) {
            resize_row(j, plane + (ptrdiff_t)r1 * p->w, b);
            in_b = r1;
        }
        for (ptrdiff_t i = 0; i < p->ow; i++) y[i] = t[i] * w0 + b[i] * w1;
    }
}

void vqc_resize_bilinear_f32(const vqc_model *m, const vqc_resize_params *p, const float *x, const int32_t *rows,
                             const float *row_weights, const int32_t *cols, const float *col_weights, float *y,
                             void *scratch) {
    resize_job j = {p, x, row_weights, col_weights, rows, cols, y, (unsigned char *)scratch};
    vqc_for(m, resize_task, &j, p->planes);
}

typedef struct grid_job {
    const vqc_grid_params *p;
    const float *x, *grid;
    float *y;
    unsigned char *scratch;
} grid_job;

static inline float grid_position(float g, int32_t size, int align_corners, int border) {
    float v = align_corners ? (g + 1.0f) * 0.5f * (float)(size - 1) : ((g + 1.0f) * (float)size - 1.0f) * 0.5f;
    if (border) {
        v = v > 0.0f ? v : 0.0f;
        v = v < (float)(size - 1) ? v : (float)(size - 1);
    }
    return v;
}

/* The nearest valid index; safe for any float. */
static inline int32_t grid_index(float v, int32_t size) {
    v = v > 0.0f ? v : 0.0f;
    v = v < (float)(size - 1) ? v : (float)(size - 1);
    const int32_t i = (int32_t)v; /* size - 1 may have been rounded up */
    return i < size - 1 ? i : size - 1;
}

static inline int32_t grid_inside(float v, int32_t size) { return (v >= 0.0f) & (v <= (float)(size - 1)); }

/* Of a row of samples: offsets of the four taps, -1 for one that counts as 0, and the weights of the right and the lower
 * tap. The modes are constants wherever this is called, so that what is left of the loop has no branch. */
static inline void grid_taps(const vqc_grid_params *p, const float *restrict grid, int align, int border, int nearest,
                             int32_t *restrict o00, int32_t *restrict o01, int32_t *restrict o10, int32_t *restrict o11,
                             float *restrict wx, float *restrict wy) {
    const int32_t w = p->w, h = p->h;
    for (ptrdiff_t i = 0; i < p->ow; i++) {
        float x = grid_position(grid[2 * i], w, align, border), y = grid_position(grid[2 * i + 1], h, align, border);
        if (nearest) x = rintf(x), y = rintf(y);
        const float x0 = floorf(x), y0 = floorf(y), x1 = x0 + 1.0f, y1 = y0 + 1.0f;
        const int32_t left = grid_index(x0, w), right = grid_index(x1, w);
        const int32_t top = grid_index(y0, h) * w, bottom = grid_index(y1, h) * w;
        const int32_t in_l = border | grid_inside(x0, w), in_r = border | grid_inside(x1, w);
        const int32_t in_t = border | grid_inside(y0, h), in_b = border | grid_inside(y1, h);
        o00[i] = in_t & in_l ? top + left : -1;
        o01[i] = in_t & in_r ? top + right : -1;
        o10[i] = in_b & in_l ? bottom + left : -1;
        o11[i] = in_b & in_r ? bottom + right : -1;
        wx[i] = x - x0;
        wy[i] = y - y0;
    }
}

/* index = batch * oh + row */
static void grid_task(void *arg, int index, int worker) {
    const grid_job *j = (const grid_job *)arg;
    const vqc_grid_params *p = j->p;
    const ptrdiff_t n = p->ow, batch = index / p->oh, row = index % p->oh, plane = (ptrdiff_t)p->h * p->w;
    const float *grid = j->grid + (batch * p->oh + row) * n * 2;
    unsigned char *s = j->scratch + (size_t)worker * p->scratch;
    int32_t *restrict o00 = (int32_t *)(void *)s, *restrict o01 = o00 + n, *restrict o10 = o00 + 2 * n;
    int32_t *restrict o11 = o00 + 3 * n;
    float *restrict wx = (float *)(void *)(s + 16 * (size_t)n), *restrict wy = wx + n;
    switch ((p->nearest != 0) * 4 + (p->align_corners != 0) * 2 + (p->border != 0)) {
    case 0: grid_taps(p, grid, 0, 0, 0, o00, o01, o10, o11, wx, wy); break;
    case 1: grid_taps(p, grid, 0, 1, 0, o00, o01, o10, o11, wx, wy); break;
    case 2: grid_taps(p, grid, 1, 0, 0, o00, o01, o10, o11, wx, wy); break;
    case 3: grid_taps(p, grid, 1, 1, 0, o00, o01, o10, o11, wx, wy); break;
    default: grid_taps(p, grid, p->align_corners, p->border, 1, o00, o01, o10, o11, wx, wy); break;
    }
    for (ptrdiff_t c = 0; c < p->c; c++) {
        const float *restrict v = j->x + (batch * p->c + c) * plane;
        float *restrict y = j->y + ((batch * p->c + c) * p->oh + row) * n;
        if (p->nearest) {
            for (ptrdiff_t i = 0; i < n; i++) y[i] = o00[i] < 0 ? 0.0f : v[o00[i]];
            continue;
        }
        if (p->border) { /* every tap is inside */
            for (ptrdiff_t i = 0; i < n; i++) {
                const float ux = 1.0f - wx[i], a = v[o00[i]] * ux + v[o01[i]] * wx[i];
                const float b = v[o10[i]] * ux + v[o11[i]] * wx[i];
                y[i] = a * (1.0f - wy[i]) + b * wy[i];
            }
            continue;
        }
        for (ptrdiff_t i = 0; i < n; i++) {
            const float v00 = o00[i] < 0 ? 0.0f : v[o00[i]], v01 = o01[i] < 0 ? 0.0f : v[o01[i]];
            const float v10 = o10[i] < 0 ? 0.0f : v[o10[i]], v11 = o11[i] < 0 ? 0.0f : v[o11[i]];
            const float ux = 1.0f - wx[i], a = v00 * ux + v01 * wx[i], b = v10 * ux + v11 * wx[i];
            y[i] = a * (1.0f - wy[i]) + b * wy[i];
        }
    }
}

void vqc_grid_sample_f32(const vqc_model *m, const vqc_grid_params *p, const float *x, const float *grid, float *y,
                         void *scratch) {
    grid_job j = {p, x, grid, y, (unsigned char *)scratch};
    vqc_for(m, grid_task, &j, p->n * p->oh);
}
