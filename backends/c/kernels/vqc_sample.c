/* Sampling at computed positions. Compile with -ffp-contract=off. */
#include "vqc_sample.h"

#include <math.h>

#define SAMPLE_CHUNK 256 /* positions of one task */

typedef struct sample_job {
    const vqc_sample_params *p;
    const float *x, *grid;
    float *y;
    ptrdiff_t chunks;
} sample_job;

static float unnormalized(float g, int32_t size, int32_t align) {
    return align ? (g + 1.0f) / 2.0f * (float)(size - 1) : ((g + 1.0f) * (float)size - 1.0f) / 2.0f;
}

static float held(float v, int32_t size) {
    v = v > 0.0f ? v : 0.0f; /* a NaN too */
    return v < (float)(size - 1) ? v : (float)(size - 1);
}

/* Mirrored at both ends, which are pixel centres (align) or pixel edges, as often as it takes. */
static float reflected(float v, int32_t size, int32_t align) {
    const float low = align ? 0.0f : -0.5f, span = align ? (float)(size - 1) : (float)size;
    if (span == 0.0f) return 0.0f;
    v = fabsf(v - low);
    const float turns = floorf(v / span), rest = v - turns * span;
    return fmodf(turns, 2.0f) == 0.0f ? rest + low : span - rest + low;
}

static float edged(float v, int32_t size, int32_t edge, int32_t align) {
    if (edge == VQC_EDGE_REFLECT) v = reflected(v, size, align);
    return edge == VQC_EDGE_ZEROS ? v : held(v, size);
}

/* An index for a whole number, -1 outside. */
static int32_t inside(float v, int32_t size) { return v >= 0.0f && v <= (float)(size - 1) ? (int32_t)v : -1; }

/* The four weights of a cubic with a = -0.75, at t past the second tap. */
static void cubic_weights(float t, float w[4]) {
    const float a = -0.75f, u = 1.0f - t, s = t + 1.0f, v = u + 1.0f;
    w[0] = ((a * s - 5.0f * a) * s + 8.0f * a) * s - 4.0f * a;
    w[1] = ((a + 2.0f) * t - (a + 3.0f)) * t * t + 1.0f;
    w[2] = ((a + 2.0f) * u - (a + 3.0f)) * u * u + 1.0f;
    w[3] = ((a * v - 5.0f * a) * v + 8.0f * a) * v - 4.0f * a;
}

/* Taps of one position: offsets in a plane (-1: zero) and weights; returns how many. */
static int find_taps(const vqc_sample_params *p, const float *g, int32_t at[16], float weight[16]) {
    float v[3] = {0.0f, 0.0f, 0.0f};
    int32_t index[3][4];
    float by[3][4];
    int counts[3] = {1, 1, 1};
    for (int a = 0; a < 3; a++) {
        const int32_t size = p->size[a];
        const int from = 2 - a; /* the grid's last axis begins with x */
        index[a][0] = 0, by[a][0] = 1.0f;
        if (from >= p->dims) continue;
        v[a] = unnormalized(g[from], size, p->align_corners);
        if (p->mode == VQC_SAMPLE_CUBIC) { /* each tap is brought inside by itself */
            const float base = floorf(v[a]);
            cubic_weights(v[a] - base, by[a]);
            for (int t = 0; t < 4; t++)
                index[a][t] = inside(edged(base + (float)(t - 1), size, p->edge, p->align_corners), size);
            counts[a] = 4;
            continue;
        }
        v[a] = edged(v[a], size, p->edge, p->align_corners);
        if (p->mode == VQC_SAMPLE_NEAREST) {
            index[a][0] = inside(rintf(v[a]), size);
            continue;
        }
        const float base = floorf(v[a]);
        index[a][0] = inside(base, size), index[a][1] = inside(base + 1.0f, size);
        by[a][0] = 1.0f - (v[a] - base), by[a][1] = v[a] - base;
        counts[a] = 2;
    }
    int count = 0;
    for (int d = 0; d < counts[0]; d++)
        for (int r = 0; r < counts[1]; r++)
            for (int c = 0; c < counts[2]; c++, count++) {
                const int32_t z = index[0][d], y = index[1][r], x = index[2][c];
                at[count] = z < 0 || y < 0 || x < 0 ? -1 : (z * p->size[1] + y) * p->size[2] + x;
                weight[count] = by[2][c] * by[1][r] * by[0][d];
            }
    return count;
}

static void sample_task(void *arg, int task, int worker) {
    const sample_job *j = (const sample_job *)arg;
    const vqc_sample_params *p = j->p;
    const ptrdiff_t batch = task / j->chunks, first = task % j->chunks * SAMPLE_CHUNK;
    const ptrdiff_t last = first + SAMPLE_CHUNK < p->points ? first + SAMPLE_CHUNK : p->points;
    const ptrdiff_t plane = (ptrdiff_t)p->size[0] * p->size[1] * p->size[2];
    (void)worker;
    for (ptrdiff_t i = first; i < last; i++) {
        int32_t at[16];
        float weight[16];
        const int count = find_taps(p, j->grid + (batch * p->points + i) * p->dims, at, weight);
        for (ptrdiff_t c = 0; c < p->c; c++) {
            const float *x = j->x + (batch * p->c + c) * plane;
            float sum = 0.0f;
            for (int t = 0; t < count; t++) sum += at[t] < 0 ? 0.0f : x[at[t]] * weight[t];
            j->y[(batch * p->c + c) * p->points + i] = sum;
        }
    }
}

void vqc_sample_f32(const vqc_model *m, const vqc_sample_params *p, const float *x, const float *grid, float *y) {
    sample_job j = {p, x, grid, y, (p->points + SAMPLE_CHUNK - 1) / SAMPLE_CHUNK};
    vqc_for(m, sample_task, &j, (int)(p->n * j.chunks));
}

typedef struct deform_job {
    const vqc_deform_params *p;
    const float *x, *offset, *mask;
    float *columns;
} deform_job;

#define DEFORM_BLOCK 128 /* positions whose taps are found at once */

/* One tap of the kernel in one group of one of n: the channels of the group share the positions. */
static void deform_task(void *arg, int task, int worker) {
    const deform_job *j = (const deform_job *)arg;
    const vqc_deform_params *p = j->p;
    const ptrdiff_t taps = (ptrdiff_t)p->kh * p->kw, tap = task % taps, group = task / taps % p->groups;
    const ptrdiff_t batch = task / taps / p->groups, size = (ptrdiff_t)p->oh * p->ow, plane = (ptrdiff_t)p->h * p->w;
    const ptrdiff_t each = p->c / p->groups, lead = (batch * p->groups + group) * taps + tap;
    const float *dy = j->offset + 2 * lead * size, *dx = dy + size, *mask = j->mask != NULL ? j->mask + lead * size : NULL;
    const float top = (float)(tap / p->kw * p->dh - p->ph), left = (float)(tap % p->kw * p->dw - p->pw);
    (void)worker;
    const ptrdiff_t begin = (ptrdiff_t)p->top * p->ow, made = (ptrdiff_t)p->rows * p->ow, end = begin + made;
    for (ptrdiff_t start = begin; start < end; start += DEFORM_BLOCK) {
        const ptrdiff_t n = end - start < DEFORM_BLOCK ? end - start : DEFORM_BLOCK;
        int32_t at[4][DEFORM_BLOCK];
        float by[4][DEFORM_BLOCK];
        for (ptrdiff_t i = 0; i < n; i++) {
            const ptrdiff_t o = start + i;
            const float y = (float)(o / p->ow * p->sh) + top + dy[o], x = (float)(o % p->ow * p->sw) + left + dx[o];
            const float y0 = floorf(y), x0 = floorf(x), fy = y - y0, fx = x - x0, m = mask != NULL ? mask[o] : 1.0f;
            const int in_t = y0 >= 0.0f && y0 < (float)p->h, in_b = y0 >= -1.0f && y0 < (float)(p->h - 1);
            const int in_l = x0 >= 0.0f && x0 < (float)p->w, in_r = x0 >= -1.0f && x0 < (float)(p->w - 1);
            const int32_t r0 = in_t || in_b ? (int32_t)y0 : 0, c0 = in_l || in_r ? (int32_t)x0 : 0;
            const float a = (1.0f - fy) * m, b = fy * m; /* a position or mask that is no number counts as outside */
            at[0][i] = in_t && in_l ? r0 * p->w + c0 : 0, by[0][i] = in_t && in_l ? a * (1.0f - fx) : 0.0f;
            at[1][i] = in_t && in_r ? r0 * p->w + c0 + 1 : 0, by[1][i] = in_t && in_r ? a * fx : 0.0f;
            at[2][i] = in_b && in_l ? (r0 + 1) * p->w + c0 : 0, by[2][i] = in_b && in_l ? b * (1.0f - fx) : 0.0f;
            at[3][i] = in_b && in_r ? (r0 + 1) * p->w + c0 + 1 : 0, by[3][i] = in_b && in_r ? b * fx : 0.0f;
        }
        for (ptrdiff_t c = 0; c < each; c++) {
            const float *restrict v = j->x + (batch * p->c + group * each + c) * plane;
            float *restrict to = j->columns + ((batch * p->c + group * each + c) * taps + tap) * made + (start - begin);
            for (ptrdiff_t i = 0; i < n; i++)
                to[i] = v[at[0][i]] * by[0][i] + v[at[1][i]] * by[1][i] + v[at[2][i]] * by[2][i] + v[at[3][i]] * by[3][i];
        }
    }
}

void vqc_deform_columns_f32(const vqc_model *m, const vqc_deform_params *p, const float *x, const float *offset,
                            const float *mask, float *columns) {
    deform_job j = {p, x, offset, mask, columns};
    vqc_for(m, deform_task, &j, p->n * p->groups * p->kh * p->kw);
}
