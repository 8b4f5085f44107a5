/* Sorting along rows, and reading and writing at positions computed at run time. */
#ifndef VQC_ORDER_H
#define VQC_ORDER_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vqc_sort_params {
    ptrdiff_t rows, count, kept; /* x [rows,count]; the first `kept` of every sorted row are given */
    int32_t descending;          /* truth value */
    size_t scratch;              /* for one worker: 2 * count indices of 4 bytes */
} vqc_sort_params;

/* Stable; a NaN is larger than all numbers. values, indices [rows,kept]. */
void vqc_sort_f32(const vqc_model *m, const vqc_sort_params *p, const float *x, float *values, int64_t *indices,
                  void *scratch);
void vqc_sort_s64(const vqc_model *m, const vqc_sort_params *p, const int64_t *x, int64_t *values, int64_t *indices,
                  void *scratch);

typedef struct vqc_search_params {
    ptrdiff_t rows, sorted, count; /* boundaries [rows or 1, sorted], x and y [rows, count] */
    int32_t right, shared;         /* shared: one row of boundaries for all */
} vqc_search_params;

/* Where each value would be inserted: before equal boundaries, or after them (`right`). */
void vqc_search_f32(const vqc_model *m, const vqc_search_params *p, const float *boundaries, const float *x, int64_t *y);

#define VQC_INDEX_MAX 8

enum vqc_index_mode {
    VQC_INDEX_READ = 0, /* other = table[...] */
    VQC_INDEX_WRITE,    /* table[...] = other, in order */
    VQC_INDEX_ADD,      /* table[...] += other; float, or int64 for elements of 8 bytes */
    VQC_INDEX_MUL,
    VQC_INDEX_MAX_OF,
    VQC_INDEX_MIN_OF
};

/* For every point i of `shape`: the element of the table at  sum(i[d] * step[d]) + sum over k of index_k(i) * jump[k],
 * index_k(i) = index k at sum(i[d] * walk[k * dims + d]); negative indices count from the end, others are held inside.
 * The other tensor is walked by `other`. All strides in elements. */
typedef struct vqc_index_params {
    int32_t mode, size, dims, indices; /* size: bytes of an element */
    ptrdiff_t shape[VQC_MAX_DIMS], step[VQC_MAX_DIMS], other[VQC_MAX_DIMS];
    ptrdiff_t limit[VQC_INDEX_MAX], jump[VQC_INDEX_MAX];
    ptrdiff_t walk[VQC_INDEX_MAX * VQC_MAX_DIMS];
} vqc_index_params;

/* VQC_INDEX_READ: reads `table`, writes `other`. */
void vqc_index_read(const vqc_model *m, const vqc_index_params *p, const void *table, const void *const *index,
                    void *other);
/* All other modes: `table` already holds what is not written. */
void vqc_index_write(const vqc_model *m, const vqc_index_params *p, const void *other, const void *const *index,
                     void *table);

#ifdef __cplusplus
}
#endif
#endif
