/* Bilinear resizing and sampling at given positions; float, NCHW. */
#ifndef VQC_RESAMPLE_H
#define VQC_RESAMPLE_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vqc_resize_params {
    int32_t planes, h, w, oh, ow; /* x [planes,h,w], y [planes,oh,ow] */
    int32_t twice;                /* columns are doubled (vqc_resize_row.h) */
    size_t scratch;               /* for one worker: two rows of the output */
} vqc_resize_params;

/* t = x[y0,x0] * wx0 + x[y0,x1] * wx1;  b = the same in row y1;  y = t * wy0 + b * wy1.
 * Tables: rows = y0 then y1, row_weights = wy0 then wy1 (2 * oh each), cols and col_weights likewise (2 * ow). */
void vqc_resize_bilinear_f32(const vqc_model *m, const vqc_resize_params *p, const float *x, const int32_t *rows,
                             const float *row_weights, const int32_t *cols, const float *col_weights, float *y,
                             void *scratch);

typedef struct vqc_grid_params {
    int32_t n, c, h, w, oh, ow;
    int32_t nearest, border, align_corners; /* truth values; not border: zeros outside */
    size_t scratch;                         /* for one worker: 24 bytes for each of ow */
} vqc_grid_params;

/* Samples of x [n,c,h,w] at grid [n,oh,ow,2], (x, y) in [-1, 1]; y [n,c,oh,ow]. */
void vqc_grid_sample_f32(const vqc_model *m, const vqc_grid_params *p, const float *x, const float *grid, float *y,
                         void *scratch);

#ifdef __cplusplus
}
#endif
#endif
