/* Sampling at computed positions in every mode: grids over pictures and volumes, deformable convolution's columns. */
#ifndef VQC_SAMPLE_H
#define VQC_SAMPLE_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum vqc_sample_mode { VQC_SAMPLE_LINEAR = 0, VQC_SAMPLE_NEAREST = 1, VQC_SAMPLE_CUBIC = 2 };
enum vqc_sample_edge { VQC_EDGE_ZEROS = 0, VQC_EDGE_BORDER = 1, VQC_EDGE_REFLECT = 2 };

typedef struct vqc_sample_params {
    int32_t n, c, dims; /* 2 or 3 axes of space */
    int32_t size[3];    /* of x: depth, height, width; depth 1 for pictures */
    ptrdiff_t points;   /* output positions of one of n */
    int32_t mode, edge, align_corners;
} vqc_sample_params;

/* x [n,c,size...], grid [n,points,dims] with the last axis x, y (, z) in [-1, 1]; y [n,c,points]. The meaning of
 * aten.grid_sampler; cubic for pictures only. */
void vqc_sample_f32(const vqc_model *m, const vqc_sample_params *p, const float *x, const float *grid, float *y);

typedef struct vqc_deform_params {
    int32_t n, c, h, w, oh, ow, top, rows; /* output rows top to top + rows are made */
    int32_t kh, kw, sh, sw, ph, pw, dh, dw;
    int32_t groups; /* of offsets */
} vqc_deform_params;

/* x [n,c,h,w], offset [n, groups * kh * kw * 2, oh, ow] with (y, x) pairs, mask [n, groups * kh * kw, oh, ow] or NULL;
 * columns [n, c * kh * kw, rows * ow]: bilinear, zeros outside, times the mask. */
void vqc_deform_columns_f32(const vqc_model *m, const vqc_deform_params *p, const float *x, const float *offset,
                            const float *mask, float *columns);

#ifdef __cplusplus
}
#endif
#endif
