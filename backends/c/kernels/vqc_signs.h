/* Signs of pictures put together along channels, some of them resized on the way: nothing in between is stored. */
#ifndef VQC_SIGNS_H
#define VQC_SIGNS_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Channels of one source: f32, planes without gaps, `batch` elements from image to image. resized: bilinear, from
 * [h][w], with the tables of vqc_resize_bilinear_f32; then rows, row weights, columns and column weights follow the
 * source in `in`, whose place is `in`. */
typedef struct vqc_sign_part {
    int32_t first, channels; /* in the result */
    int32_t in, resized, h, w, twice;
    ptrdiff_t batch;
} vqc_sign_part;

typedef struct vqc_signs_params {
    int32_t n, c, h, w;  /* the result */
    int32_t rows;        /* of one task */
    int32_t taus, taus2; /* thresholds of each result: 1 or c */
    const vqc_sign_part *parts;
    size_t scratch; /* bytes of scratch for one worker */
} vqc_signs_params;

/* bits, bits2 (unless NULL): x < tau, x < tau2, in words of 32 channels (vqc_bconv.h). */
void vqc_signs(const vqc_model *m, const vqc_signs_params *p, const void *const *in, const float *tau,
               const float *tau2, uint32_t *bits, uint32_t *bits2, void *scratch);

#ifdef __cplusplus
}
#endif
#endif
