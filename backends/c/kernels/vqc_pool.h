/* Pooling over windows of planes: [planes,h,w] -> [planes,oh,ow]. */
#ifndef VQC_POOL_H
#define VQC_POOL_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vqc_pool_params {
    int32_t planes, h, w, oh, ow;
} vqc_pool_params;

/* rows = first then last (not included) input row of every output row, 2 * oh; cols likewise.
 * Average: the window's values added in row-major order, times (float)(1 / (row_counts[r] * col_counts[c])). */
void vqc_avg_pool_f32(const vqc_model *m, const vqc_pool_params *p, const float *x, const int32_t *rows,
                      const int32_t *cols, const int32_t *row_counts, const int32_t *col_counts, float *y);
void vqc_max_pool_f32(const vqc_model *m, const vqc_pool_params *p, const float *x, const int32_t *rows,
                      const int32_t *cols, float *y);
void vqc_max_pool_u8(const vqc_model *m, const vqc_pool_params *p, const uint8_t *x, const int32_t *rows,
                     const int32_t *cols, uint8_t *y);
void vqc_max_pool_s8(const vqc_model *m, const vqc_pool_params *p, const int8_t *x, const int32_t *rows,
                     const int32_t *cols, int8_t *y);

typedef struct vqc_mean_params {
    int32_t planes;
    ptrdiff_t count; /* values of a plane */
} vqc_mean_params;

/* The mean of every plane in 16 lanes, the meaning of vqc::mean_hw. */
void vqc_mean_hw_f32(const vqc_model *m, const vqc_mean_params *p, const float *x, float *y);

#ifdef __cplusplus
}
#endif
#endif
