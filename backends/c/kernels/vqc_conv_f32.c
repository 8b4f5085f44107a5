/* Float convolutions whose products and sums may be contracted. */
#define CV_MASKED
#include "vqc_conv_float.h"

CV_ENTRY(vqc_conv_f32, 0)
CV_ENTRY(vqc_conv_transpose_f32, 1)

void vqc_masked_conv_f32(const vqc_model *m, const vqc_conv_params *p, const float *x, const float *w,
                         const float *bias, const float *slope, const uint8_t *mask, float *y, void *scratch) {
    cv_job j = {p, x, w, bias, slope, y, (unsigned char *)scratch, mask, 0};
    cv_launch(m, &j, 0);
}
