/* Reductions, softmax and normalisations. Sums over one row are taken in 16 lanes, blocks of them in double. */
#include "vqc_reduce.h"

#include "vqc_math.h"

#define LANES 16
#define BLOCK 4096 /* values added in float before the sum goes to double */
#define REDUCE_CHUNK 16384 /* values of one task, about */

typedef struct reduce_job {
    const vqc_reduce_params *p;
    const vqc_norm_params *norm;
    const void *x;
    const float *weight, *bias;
    void *y;
    ptrdiff_t rows; /* of one task */
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

/* A row in lanes: the order of maxima, minima and products does not change what they are (products: within rounding). */
#define ROW(NAME, EXPR)                                                                                               \
    static float NAME(const float *restrict x, ptrdiff_t n) {                                                         \
        float acc[LANES], best = x[0];                                                                                \
        ptrdiff_t i = 1;                                                                                              \
        if (n >= 2 * LANES) {                                                                                         \
            for (int l = 0; l < LANES; l++) acc[l] = x[l];                                                            \
            for (i = LANES; i + LANES <= n; i += LANES)                                                               \
                for (int l = 0; l < LANES; l++) {                                                                     \
                    const float a = x[i + l], b = acc[l];                                                             \
                    acc[l] = EXPR;                                                                                    \
                }                                                                                                     \
            best = acc[0];                                                                                            \
            for (int l = 1; l < LANES; l++) {                                                                         \
                const float a = acc[l], b = best;                                                                     \
                best = EXPR;                                                                                          \
            }                                                                                                         \
        }                                                                                                             \
        for (; i < n; i++) {                                                                                          \
            const float a = x[i], b = best;                                                                           \
            best = EXPR;                                                                                              \
        }                                                                                                             \
        return best;                                                                                                  \
    }
ROW(row_max, larger(a, b))
ROW(row_min, smaller(a, b))
ROW(row_prod, a *b)

#define ACROSS(FIRST, EXPR)                                                                                           \
    {                                                                                                                 \
        for (ptrdiff_t i = 0; i < n; i++) y[i] = FIRST;                                                               \
        for (ptrdiff_t r = 0; r < p->count; r++) {                                                                    \
            const float *restrict v = x + r * n;                                                                      \
            for (ptrdiff_t i = 0; i < n; i++) y[i] = EXPR;                                                            \
        }                                                                                                             \
    }

static void reduce_row(const vqc_reduce_params *p, const float *x, float *restrict y) {
    const ptrdiff_t n = p->inner;
    if (p->kind == VQC_REDUCE_SUM && n == 1) {
        y[0] = (float)(row_sum(x, p->count, 0.0f, 0) * (double)p->factor);
    } else if (p->kind == VQC_REDUCE_SUM) {
        ACROSS(0.0f, y[i] + v[i])
        for (ptrdiff_t i = 0; i < n; i++) y[i] *= p->factor;
    } else if (p->kind == VQC_REDUCE_PROD) {
        if (n == 1) y[0] = row_prod(x, p->count);
        else ACROSS(1.0f, y[i] * v[i])
    } else if (p->kind == VQC_REDUCE_MAX) {
        if (n == 1) y[0] = row_max(x, p->count);
        else ACROSS(x[i], larger(v[i], y[i]))
    } else {
        if (n == 1) y[0] = row_min(x, p->count);
        else ACROSS(x[i], smaller(v[i], y[i]))
    }
}

static void reduce_task(void *arg, int index, int worker) {
    const reduce_job *j = (const reduce_job *)arg;
    const vqc_reduce_params *p = j->p;
    (void)worker;
    for (ptrdiff_t r = index * j->rows; r < p->outer && r < (index + 1) * j->rows; r++)
        reduce_row(p, (const float *)j->x + r * p->count * p->inner, (float *)j->y + r * p->inner);
}

static void launch(const vqc_model *m, vqc_task task, const vqc_reduce_params *p, const void *x, void *y) {
    reduce_job j = {p, NULL, x, NULL, NULL, y, REDUCE_CHUNK / (p->count * p->inner) + 1};
    vqc_for(m, task, &j, (int)((p->outer + j.rows - 1) / j.rows));
}

void vqc_reduce_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, float *y) {
    launch(m, reduce_task, p, x, y);
}

/* An integer as it wraps in PyTorch: signed overflow has no meaning in C. */
static int64_t combine_s64(int32_t kind, int64_t a, int64_t b) {
    switch (kind) {
    case VQC_REDUCE_SUM: return (int64_t)((uint64_t)a + (uint64_t)b);
    case VQC_REDUCE_PROD: return (int64_t)((uint64_t)a * (uint64_t)b);
    case VQC_REDUCE_MAX: return a > b ? a : b;
    default: return a < b ? a : b;
    }
}

/* Sums and products in double: what is kept of a long running sum is its rounded value, not its rounding errors. */
static double combine_f64(int32_t kind, double a, double b) {
    switch (kind) {
    case VQC_REDUCE_SUM: return a + b;
    case VQC_REDUCE_PROD: return a * b;
    case VQC_REDUCE_MAX: return b >= a || b != b ? b : a;
    default: return b <= a || b != b ? b : a;
    }
}

static void reduce_s64_task(void *arg, int index, int worker) {
    const reduce_job *j = (const reduce_job *)arg;
    const vqc_reduce_params *p = j->p;
    (void)worker;
    for (ptrdiff_t r = index * j->rows; r < p->outer && r < (index + 1) * j->rows; r++)
        for (ptrdiff_t i = 0; i < p->inner; i++) {
            const int64_t *x = (const int64_t *)j->x + r * p->count * p->inner + i;
            int64_t value = x[0];
            for (ptrdiff_t k = 1; k < p->count; k++) value = combine_s64(p->kind, value, x[k * p->inner]);
            ((int64_t *)j->y)[r * p->inner + i] = value;
        }
}

void vqc_reduce_s64(const vqc_model *m, const vqc_reduce_params *p, const int64_t *x, int64_t *y) {
    launch(m, reduce_s64_task, p, x, y);
}

#define ARG(NAME, TYPE)                                                                                               \
    static void NAME##_task(void *arg, int index, int worker) {                                                       \
        const reduce_job *j = (const reduce_job *)arg;                                                                \
        const vqc_reduce_params *p = j->p;                                                                            \
        (void)worker;                                                                                                 \
        for (ptrdiff_t r = index * j->rows; r < p->outer && r < (index + 1) * j->rows; r++)                           \
            for (ptrdiff_t i = 0; i < p->inner; i++) {                                                                \
                const TYPE *x = (const TYPE *)j->x + r * p->count * p->inner + i;                                     \
                TYPE best = x[0];                                                                                     \
                int64_t at = 0;                                                                                       \
                for (ptrdiff_t k = 1; k < p->count && best == best; k++) {                                            \
                    const TYPE v = x[k * p->inner];                                                                   \
                    if (v != v || (p->kind == VQC_REDUCE_MAX ? v > best : v < best)) best = v, at = k;                \
                }                                                                                                     \
                ((int64_t *)j->y)[r * p->inner + i] = at;                                                             \
            }                                                                                                         \
    }                                                                                                                 \
    void NAME(const vqc_model *m, const vqc_reduce_params *p, const TYPE *x, int64_t *y) {                            \
        launch(m, NAME##_task, p, x, y);                                                                              \
    }
ARG(vqc_arg_f32, float)
ARG(vqc_arg_s64, int64_t)

#define RUNNING(NAME, TYPE, SUM, COMBINE)                                                                             \
    static void NAME##_task(void *arg, int index, int worker) {                                                       \
        const reduce_job *j = (const reduce_job *)arg;                                                                \
        const vqc_reduce_params *p = j->p;                                                                            \
        (void)worker;                                                                                                 \
        for (ptrdiff_t r = index * j->rows; r < p->outer && r < (index + 1) * j->rows; r++)                           \
            for (ptrdiff_t i = 0; i < p->inner; i++) {                                                                \
                const ptrdiff_t first = r * p->count * p->inner + i;                                                  \
                const TYPE *x = (const TYPE *)j->x + first;                                                           \
                TYPE *y = (TYPE *)j->y + first;                                                                       \
                SUM value = (SUM)x[0];                                                                                \
                y[0] = x[0];                                                                                          \
                for (ptrdiff_t k = 1; k < p->count; k++) {                                                            \
                    value = COMBINE(p->kind, value, (SUM)x[k * p->inner]);                                            \
                    y[k * p->inner] = (TYPE)value;                                                                    \
                }                                                                                                     \
            }                                                                                                         \
    }                                                                                                                 \
    void NAME(const vqc_model *m, const vqc_reduce_params *p, const TYPE *x, TYPE *y) {                               \
        launch(m, NAME##_task, p, x, y);                                                                              \
    }
RUNNING(vqc_running_f32, float, double, combine_f64)
RUNNING(vqc_running_s64, int64_t, int64_t, combine_s64)

/* A row: its largest value, then exponentials and their sum in lanes, then the quotients. */
static void softmax_row(const vqc_reduce_params *p, const float *restrict x, float *restrict y) {
    const ptrdiff_t n = p->count;
    float top = row_max(x, n);
    if (p->safe && top == -INFINITY) top = 0.0f;
    for (ptrdiff_t i = 0; i < n; i++) y[i] = vqc_exp_wide(x[i] - top);
    float sum = (float)row_sum(y, n, 0.0f, 0);
    if (p->safe && sum == 0.0f) sum = 1.0f;
    if (p->log) {
        const float shift = logf(sum);
        for (ptrdiff_t i = 0; i < n; i++) y[i] = x[i] - top - shift;
        return;
    }
    for (ptrdiff_t i = 0; i < n; i++) y[i] /= sum;
}

#define SOFTMAX_WIDE 64 /* positions side by side when the axis is not the last */

static void softmax_columns(const vqc_reduce_params *p, const float *restrict x, float *restrict y) {
    for (ptrdiff_t start = 0; start < p->inner; start += SOFTMAX_WIDE) {
        const ptrdiff_t n = p->inner - start < SOFTMAX_WIDE ? p->inner - start : SOFTMAX_WIDE;
        const float *restrict v = x + start;
        float *restrict w = y + start;
        float top[SOFTMAX_WIDE], sum[SOFTMAX_WIDE];
        for (ptrdiff_t i = 0; i < n; i++) top[i] = v[i], sum[i] = 0.0f;
        for (ptrdiff_t r = 1; r < p->count; r++)
            for (ptrdiff_t i = 0; i < n; i++) top[i] = larger(v[r * p->inner + i], top[i]);
        if (p->safe)
            for (ptrdiff_t i = 0; i < n; i++) top[i] = top[i] == -INFINITY ? 0.0f : top[i];
        for (ptrdiff_t r = 0; r < p->count; r++)
            for (ptrdiff_t i = 0; i < n; i++) {
                const float e = vqc_exp_wide(v[r * p->inner + i] - top[i]);
                w[r * p->inner + i] = e;
                sum[i] += e;
            }
        if (p->log)
            for (ptrdiff_t i = 0; i < n; i++) sum[i] = logf(sum[i]);
        else if (p->safe)
            for (ptrdiff_t i = 0; i < n; i++) sum[i] = sum[i] == 0.0f ? 1.0f : sum[i];
        for (ptrdiff_t r = 0; r < p->count; r++) {
            float *restrict to = w + r * p->inner;
            if (p->log)
                for (ptrdiff_t i = 0; i < n; i++) to[i] = v[r * p->inner + i] - top[i] - sum[i];
            else
                for (ptrdiff_t i = 0; i < n; i++) to[i] /= sum[i];
        }
    }
}

static void softmax_task(void *arg, int index, int worker) {
    const reduce_job *j = (const reduce_job *)arg;
    const vqc_reduce_params *p = j->p;
    (void)worker;
    for (ptrdiff_t r = index * j->rows; r < p->outer && r < (index + 1) * j->rows; r++) {
        const ptrdiff_t first = r * p->count * p->inner;
        (p->inner == 1 ? softmax_row : softmax_columns)(p, (const float *)j->x + first, (float *)j->y + first);
    }
}

void vqc_softmax_f32(const vqc_model *m, const vqc_reduce_params *p, const float *x, float *y) {
    launch(m, softmax_task, p, x, y);
}

static void norm_row(const reduce_job *j, ptrdiff_t row) {
    const vqc_norm_params *p = j->norm;
    const float *restrict x = (const float *)j->x + row * p->count;
    float *restrict y = (float *)j->y + row * p->count;
    const double size = (double)p->count;
    const float mean = p->rms ? 0.0f : (float)(row_sum(x, p->count, 0.0f, 0) / size);
    const double variance = row_sum(x, p->count, mean, 1) / size;
    const float scale = (float)(1.0 / sqrt(variance + (double)p->eps));
    const ptrdiff_t channels = p->count / p->span, first = row % p->cycle * channels;
    if (p->span == 1) { /* every element has its own weight */
        const float *restrict w = j->weight != NULL ? j->weight + first : NULL, *restrict b = j->bias != NULL ? j->bias + first : NULL;
        if (w != NULL && b != NULL)
            for (ptrdiff_t i = 0; i < p->count; i++) y[i] = (x[i] - mean) * scale * w[i] + b[i];
        else if (w != NULL)
            for (ptrdiff_t i = 0; i < p->count; i++) y[i] = (x[i] - mean) * scale * w[i];
        else
            for (ptrdiff_t i = 0; i < p->count; i++) y[i] = (x[i] - mean) * scale + (b != NULL ? b[i] : 0.0f);
        return;
    }
    for (ptrdiff_t c = 0; c < channels; c++, x += p->span, y += p->span) {
        const float w = j->weight != NULL ? j->weight[first + c] : 1.0f, b = j->bias != NULL ? j->bias[first + c] : 0.0f;
        for (ptrdiff_t i = 0; i < p->span; i++) y[i] = (x[i] - mean) * scale * w + b;
    }
}

static void norm_task(void *arg, int index, int worker) {
    const reduce_job *j = (const reduce_job *)arg;
    (void)worker;
    for (ptrdiff_t r = index * j->rows; r < j->norm->rows && r < (index + 1) * j->rows; r++) norm_row(j, r);
}

void vqc_norm_f32(const vqc_model *m, const vqc_norm_params *p, const float *x, const float *weight, const float *bias,
                  float *y) {
    reduce_job j = {NULL, p, x, weight, bias, y, REDUCE_CHUNK / p->count + 1};
    vqc_for(m, norm_task, &j, (int)((p->rows + j.rows - 1) / j.rows));
}
