/* Stable merge sort of indices, binary search, and strided access through index tensors. */
#include "vqc_order.h"

#include <string.h>

typedef struct order_job {
    const void *p, *x, *boundaries;
    void *values;
    int64_t *indices;
    unsigned char *scratch;
} order_job;

/* Whether a stands before b; equal ones keep their order. A NaN is the largest. */
#define SORT(NAME, TYPE)                                                                                              \
    static int NAME##_before(TYPE a, TYPE b, int32_t descending) {                                                    \
        return descending ? a > b || (a != a && b == b) : a < b || (b != b && a == a);                                \
    }                                                                                                                 \
    static void NAME##_task(void *arg, int row, int worker) {                                                         \
        const order_job *j = (const order_job *)arg;                                                                  \
        const vqc_sort_params *p = (const vqc_sort_params *)j->p;                                                     \
        const TYPE *x = (const TYPE *)j->x + row * p->count;                                                          \
        int32_t *from = (int32_t *)(void *)(j->scratch + (size_t)worker * p->scratch), *to = from + p->count;         \
        for (ptrdiff_t i = 0; i < p->count; i++) from[i] = (int32_t)i;                                                \
        for (ptrdiff_t run = 1; run < p->count; run *= 2) {                                                           \
            for (ptrdiff_t start = 0; start < p->count; start += 2 * run) {                                           \
                ptrdiff_t a = start, b = start + run < p->count ? start + run : p->count, at = start;                 \
                const ptrdiff_t middle = b, end = middle + run < p->count ? middle + run : p->count;                  \
                while (a < middle && b < end)                                                                         \
                    to[at++] = NAME##_before(x[from[b]], x[from[a]], p->descending) ? from[b++] : from[a++];          \
                while (a < middle) to[at++] = from[a++];                                                              \
                while (b < end) to[at++] = from[b++];                                                                 \
            }                                                                                                         \
            int32_t *swap = from;                                                                                     \
            from = to, to = swap;                                                                                     \
        }                                                                                                             \
        for (ptrdiff_t i = 0; i < p->kept; i++) {                                                                     \
            j->indices[row * p->kept + i] = from[i];                                                                  \
            ((TYPE *)j->values)[row * p->kept + i] = x[from[i]];                                                      \
        }                                                                                                             \
    }                                                                                                                 \
    void NAME(const vqc_model *m, const vqc_sort_params *p, const TYPE *x, TYPE *values, int64_t *indices,            \
              void *scratch) {                                                                                        \
        order_job j = {p, x, NULL, values, indices, (unsigned char *)scratch};                                        \
        vqc_for(m, NAME##_task, &j, (int)p->rows);                                                                    \
    }
SORT(vqc_sort_f32, float)
SORT(vqc_sort_s64, int64_t)

static void search_task(void *arg, int row, int worker) {
    const order_job *j = (const order_job *)arg;
    const vqc_search_params *p = (const vqc_search_params *)j->p;
    const float *edge = (const float *)j->boundaries + (p->shared ? 0 : row * p->sorted);
    const float *x = (const float *)j->x + row * p->count;
    (void)worker;
    for (ptrdiff_t i = 0; i < p->count; i++) {
        ptrdiff_t low = 0, high = p->sorted;
        while (low < high) {
            const ptrdiff_t middle = low + (high - low) / 2;
            const int after = p->right ? !(edge[middle] > x[i]) : !(edge[middle] >= x[i]);
            if (after) low = middle + 1;
            else high = middle;
        }
        j->indices[row * p->count + i] = low;
    }
}

void vqc_search_f32(const vqc_model *m, const vqc_search_params *p, const float *boundaries, const float *x, int64_t *y) {
    order_job j = {p, x, boundaries, NULL, y, NULL};
    vqc_for(m, search_task, &j, (int)p->rows);
}

/* Where a point's element lies in the table, without the last axis. */
static ptrdiff_t index_of(const vqc_index_params *p, const void *const *index, const ptrdiff_t *at) {
    ptrdiff_t offset = 0;
    for (int d = 0; d < p->dims; d++) offset += at[d] * p->step[d];
    for (int k = 0; k < p->indices; k++) {
        ptrdiff_t where = 0;
        for (int d = 0; d < p->dims; d++) where += at[d] * p->walk[k * p->dims + d];
        int64_t value = ((const int64_t *)index[k])[where];
        if (value < 0) value += p->limit[k];
        value = value < 0 ? 0 : value < p->limit[k] ? value : p->limit[k] - 1; /* never outside the table */
        offset += (ptrdiff_t)value * p->jump[k];
    }
    return offset;
}

/* Whether the last axis lies in one piece on both sides, so that rows can be copied whole. */
static int index_rows(const vqc_index_params *p) {
    const int last = p->dims - 1;
    for (int k = 0; k < p->indices; k++)
        if (p->walk[k * p->dims + last] != 0) return 0;
    return p->step[last] == 1 && p->other[last] == 1;
}

/* Calls for every point, or for every row when `rows`: where it is in the table and in the other tensor. */
#define POINTS(BODY)                                                                                                  \
    {                                                                                                                 \
        const int rows = index_rows(p), dims = p->dims - rows;                                                        \
        const ptrdiff_t length = rows ? p->shape[dims] : 1;                                                           \
        ptrdiff_t at[VQC_MAX_DIMS] = {0}, points = 1;                                                                 \
        for (int d = 0; d < dims; d++) points *= p->shape[d];                                                         \
        for (ptrdiff_t i = 0; i < points; i++) {                                                                      \
            ptrdiff_t there = index_of(p, index, at), here = 0;                                                       \
            for (int d = 0; d < dims; d++) here += at[d] * p->other[d];                                               \
            BODY;                                                                                                     \
            for (int d = dims - 1; d >= 0 && ++at[d] == p->shape[d]; d--) at[d] = 0;                                  \
        }                                                                                                             \
    }

static void move(unsigned char *to, const unsigned char *from, ptrdiff_t n, int32_t size) {
    if (n == 1 && size == 4) memcpy(to, from, 4);
    else if (n == 1 && size == 8) memcpy(to, from, 8);
    else memcpy(to, from, (size_t)(n * size));
}

void vqc_index_read(const vqc_model *m, const vqc_index_params *p, const void *table, const void *const *index,
                    void *other) {
    const unsigned char *from = (const unsigned char *)table;
    unsigned char *to = (unsigned char *)other;
    (void)m;
    POINTS(move(to + here * p->size, from + there * p->size, length, p->size))
}

static float merged_f32(int32_t mode, float a, float b) {
    switch (mode) {
    case VQC_INDEX_ADD: return a + b;
    case VQC_INDEX_MUL: return a * b;
    case VQC_INDEX_MAX_OF: return b > a || b != b ? b : a;
    default: return b < a || b != b ? b : a;
    }
}

static int64_t merged_s64(int32_t mode, int64_t a, int64_t b) {
    switch (mode) {
    case VQC_INDEX_ADD: return (int64_t)((uint64_t)a + (uint64_t)b);
    case VQC_INDEX_MUL: return (int64_t)((uint64_t)a * (uint64_t)b);
    case VQC_INDEX_MAX_OF: return b > a ? b : a;
    default: return b < a ? b : a;
    }
}

void vqc_index_write(const vqc_model *m, const vqc_index_params *p, const void *other, const void *const *index,
                     void *table) {
    const unsigned char *from = (const unsigned char *)other;
    unsigned char *to = (unsigned char *)table;
    (void)m; /* one after the other: two points may be the same element */
    if (p->mode == VQC_INDEX_WRITE) {
        POINTS(move(to + there * p->size, from + here * p->size, length, p->size))
    } else if (p->size == 8) {
        POINTS(int64_t *t = (int64_t *)table + there; const int64_t *s = (const int64_t *)other + here;
               for (ptrdiff_t k = 0; k < length; k++) t[k] = merged_s64(p->mode, t[k], s[k]))
    } else {
        POINTS(float *t = (float *)table + there; const float *s = (const float *)other + here;
               for (ptrdiff_t k = 0; k < length; k++) t[k] = merged_f32(p->mode, t[k], s[k]))
    }
}
