/* Reductions, softmax and normalisations. Sums over one row are taken in 16 lanes, blocks of them in double. */
#include "vqc_reduce.h"

#include "vqc_math.h"

#define LANES 16
#define BLOCK 4096 /* values added in float before the sum goes to double */

typedef struct reduce_job {
    const vqc_reduce_params *p;
    const vqc_norm_params *norm;
    const float *x, *weight, *bias;
    float *y;
} reduce_job;

/* Sum of (x - shift), or of its square. */
static double row_sum(const float *restrict x, ptrdiff_t n, float shift, int square) {
    double total = 0.0;
    for (ptrdiff_t start = 0; start < n; start += BLOCK) {
        const ptrdiff_t end = n - start < BLOCK ? n : start + BLOCK;
        float acc[LANES] = {0};
        ptrdiff_t i = start;
        if (square) {
            for (; i + LANES <= end; i += LANES)
                for (int l = 0; l < LANES; l++) acc[l] += (x[i + l] - shift) * (x[i + l] - shift);
            for (int l = 0; i < end; i++, l++) acc[l] += (x[i] - shift) * (x[i] - shift);
        } else {
            for (; i + LANES <= end; i += LANES)
                for (int l = 0; l < LANES; l++) acc[l] += x[i + l] - shift;
            for (int l = 0; i < end; i++, l++) acc[l] += x[i] - shift;
        }
        for (int l = 0; l < LANES; l++) total += (double)acc[l];
    }
    return total;
}

/* The larger (smaller) of both; NaN if one is. */
static inline float larger(float a, float b) { return a > b || a != a ? a : b; }
static inline float smaller(float a, float b) { return a < b || a != a ? a : b; }

#define ACROSS(FIRST, EXPR)                                                                                           \
    for (ptrdiff_t i = 0; i < n; i++) y[i] = FIRST;                                                                   \
    for (ptrdiff_t r = 0; r < p->count; r++) {                                                                        \
        const float *restrict v = x + r * n;                                                                          \
        for (ptrdiff_t i = 0; i < n; i++) y[i] = EXPR;                                                                \
    }

static void reduce_task(void *arg, int index, int worker) {
    const reduce_job *j = (const reduce_job *)arg;
    const vqc_reduce_params *p = j->p;
    const ptrdiff_t n = p->inner;
    const float *x = j->x + index * p->count * n;
    float *restrict y = j->y + index * n;
    (void)worker;
    if (p->kind == VQC_REDUCE_SUM && n == 1) {
        y[0] = (float)(row_sum(x, p->count, 0.0f, 0) * (double)p->factor);
    } else if (p->kind == VQC_REDUCE_SUM) {
        ACROSS(0.0f, y[i] + v[i])
        for (ptrdiff_t i = 0; i < n; i++) y[i] *= p->factor;
    } else if (p->kind == VQC_REDUCE_MAX) {
        ACROSS(x[i], larger(v[i], y[i]))
    } else {
        ACROSS(x[i], smaller(v[i], y[i]))
    }
}

void vqc_reduce_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, float *y) {
    reduce_job j = {p, NULL, x, NULL, NULL, y};
    vqc_for(m, reduce_task, &j, (int)p->outer);
}

static void softmax_task(void *arg, int index, int worker) {
    const reduce_job *j = (const reduce_job *)arg;
    const vqc_reduce_params *p = j->p;
    const ptrdiff_t n = p->inner;
    (void)worker;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float *x = j->x + index * p->count * n + i;
        float *y = j->y + index * p->count * n + i;
        float top = x[0], sum = 0.0f;
        for (ptrdiff_t r = 1; r < p->count; r++) top = larger(x[r * n], top);
        for (ptrdiff_t r = 0; r < p->count; r++) y[r * n] = x[r * n] - top;
        for (ptrdiff_t r = 0; r < p->count; r++) y[r * n] = vqc_exp_wide(y[r * n]);
        for (ptrdiff_t r = 0; r < p->count; r++) sum += y[r * n];
        for (ptrdiff_t r = 0; r < p->count; r++) y[r * n] /= sum;
    }
}

void vqc_softmax_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, float *y) {
    reduce_job j = {p, NULL, x, NULL, NULL, y};
    vqc_for(m, softmax_task, &j, (int)p->outer);
}

static void norm_task(void *arg, int index, int worker) {
    const reduce_job *j = (const reduce_job *)arg;
    const vqc_norm_params *p = j->norm;
    const float *x = j->x + index * p->count;
    float *y = j->y + index * p->count;
    const double size = (double)p->count;
    const float mean = (float)(row_sum(x, p->count, 0.0f, 0) / size);
    const double variance = row_sum(x, p->count, mean, 1) / size;
    const float scale = (float)(1.0 / sqrt(variance + (double)p->eps));
    const ptrdiff_t channels = p->count / p->span, first = index % p->cycle * channels;
    (void)worker;
    for (ptrdiff_t c = 0; c < channels; c++, x += p->span, y += p->span) {
        const float w = j->weight != NULL ? j->weight[first + c] : 1.0f, b = j->bias != NULL ? j->bias[first + c] : 0.0f;
        for (ptrdiff_t i = 0; i < p->span; i++) y[i] = (x[i] - mean) * scale * w + b;
    }
}

void vqc_norm_f32(const vqc_model *m, const vqc_norm_params *p, const float *x, const float *weight, const float *bias,
                  float *y) {
    reduce_job j = {NULL, p, x, weight, bias, y};
    vqc_for(m, norm_task, &j, (int)p->rows);
}
