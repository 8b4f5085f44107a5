/* Integer linear layers: x [rows,k] times weights [o,k]. */
#ifndef VQC_QLINEAR_H
#define VQC_QLINEAR_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vqc_qlinear_params {
    int32_t rows, k, o;
    int32_t relu;       /* u8 output: whether the result is held above 0 */
    float inv_scale;    /* u8 output */
    int32_t zero_point; /* u8 output */
} vqc_qlinear_params;

/* acc = sum (x - zero) * w; y = (float)acc * scale[o] (+ bias[o]); u8: clamp(rint(y * inv_scale) + zero_point, 0, 255).
 * offset[o] = zero * (sum of the weights of o). bias may be NULL. */
#define VQC_QLINEAR(NAME, X, Y)                                                                                       \
    void NAME(const vqc_model *m, const vqc_qlinear_params *p, const X *x, const int8_t *w, const float *scale,       \
              const float *bias, const int32_t *offset, Y *y);
VQC_QLINEAR(vqc_qlinear_u8s8_f32, uint8_t, float)
VQC_QLINEAR(vqc_qlinear_u8s8_u8, uint8_t, uint8_t)
VQC_QLINEAR(vqc_qlinear_s8s8_f32, int8_t, float)
VQC_QLINEAR(vqc_qlinear_s8s8_u8, int8_t, uint8_t)

#ifdef __cplusplus
}
#endif
#endif
