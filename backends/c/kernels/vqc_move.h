/* Moving elements without looking at them, for elements of 1, 2, 4 or 8 bytes. */
#ifndef VQC_MOVE_H
#define VQC_MOVE_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vqc_copy_params {
    int32_t size; /* bytes of an element */
    int32_t dims; /* at least 1 */
    ptrdiff_t shape[VQC_MAX_DIMS], src[VQC_MAX_DIMS], dst[VQC_MAX_DIMS]; /* strides in elements, may be negative */
} vqc_copy_params;

/* dst[i . dst strides] = src[i . src strides]; the two do not overlap. */
void vqc_copy(const vqc_model *m, const vqc_copy_params *p, const void *src, void *dst);

typedef struct vqc_gather_params {
    int32_t size;
    ptrdiff_t outer, h, w, oh, ow; /* src [outer,h,w], dst [outer,oh,ow] */
} vqc_gather_params;

/* dst[n,i,j] = src[n, rows[i], cols[j]]; an index of -1 gives the element `fill` points to. */
void vqc_gather(const vqc_model *m, const vqc_gather_params *p, const void *src, const int32_t *rows,
                const int32_t *cols, const void *fill, void *dst);

typedef struct vqc_lut_params {
    int32_t size; /* bytes of a table's element: 1 or 4 */
    ptrdiff_t count;
} vqc_lut_params;

/* dst[i] = table[src[i]], a table of 256. */
void vqc_lut_u8(const vqc_model *m, const vqc_lut_params *p, const uint8_t *src, const void *table, void *dst);

#ifdef __cplusplus
}
#endif
#endif
