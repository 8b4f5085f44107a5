/* Pooling of volumes (and of pictures with dilated windows) and resampling along single axes. */
#ifndef VQC_VOLUME_H
#define VQC_VOLUME_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vqc_volume_params {
    int32_t planes, d, h, w, od, oh, ow; /* x [planes,d,h,w], y [planes,od,oh,ow] */
    int32_t dd, dh, dw;                  /* steps between a window's values */
    size_t scratch;                      /* for one worker: a row of w floats */
} vqc_volume_params;

/* Tables of an axis: first then last (not included) input position of every output position. Maximum: NaN wins. */
void vqc_max_volume_f32(const vqc_model *m, const vqc_volume_params *p, const float *x, const int32_t *depths,
                        const int32_t *rows, const int32_t *cols, float *y, void *scratch);

/* The windows' sums times the product of three factors, one of each axis. */
void vqc_sum_volume_f32(const vqc_model *m, const vqc_volume_params *p, const float *x, const int32_t *depths,
                        const int32_t *rows, const int32_t *cols, const float *depth_factors, const float *row_factors,
                        const float *col_factors, float *y, void *scratch);

/* The largest value of every window and where it is in its plane (or volume), d * h * w counted through. */
void vqc_max_where_f32(const vqc_model *m, const vqc_volume_params *p, const float *x, const int32_t *depths,
                       const int32_t *rows, const int32_t *cols, float *y, int64_t *where);

typedef struct vqc_taps_params {
    ptrdiff_t outer, in, inner, out; /* x [outer,in,inner], y [outer,out,inner] */
    int32_t taps;
} vqc_taps_params;

/* y[o,i,n] = sum over t of x[o, index[i * taps + t], n] * weight[i * taps + t], added in the order of t. */
void vqc_taps_f32(const vqc_model *m, const vqc_taps_params *p, const float *x, const int32_t *index,
                  const float *weight, float *y);

#ifdef __cplusplus
}
#endif
#endif
