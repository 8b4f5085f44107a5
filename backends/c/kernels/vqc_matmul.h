/* Matrix products: y [batch..., m, n] = a [batch..., m, k] b [batch..., k, n] (+ bias [n]), a and b strided. */
#ifndef VQC_MATMUL_H
#define VQC_MATMUL_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VQC_MM_PANEL 48 /* columns of a panel of b; the last panel may be 16 or 32 wide */

typedef struct vqc_matmul_params {
    int32_t m, k, n, rows; /* rows: of y in one task */
    int32_t packed;        /* b is one constant matrix in panels: [panel][k][width], zeros after column n */
    int32_t dims;          /* batch axes, 0 to VQC_MAX_DIMS */
    ptrdiff_t shape[VQC_MAX_DIMS], a_step[VQC_MAX_DIMS], b_step[VQC_MAX_DIMS]; /* steps may be 0: broadcast */
    ptrdiff_t a_row, a_col, b_row, b_col;
    ptrdiff_t y_row; /* at least n; the batches of y follow each other, m rows each */
    size_t scratch; /* for one worker: a panel of b unless packed, and 8 x 1024 floats of a unless a_col is 1 */
} vqc_matmul_params;

/* bias may be NULL. Sums may be contracted to fused multiply-adds. */
void vqc_matmul_f32(const vqc_model *m, const vqc_matmul_params *p, const float *a, const float *b, const float *bias,
                    float *y, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
