/* Binary convolutions, and the way between tensors and bits. */
#include "vqc_bconv.h"

#include <string.h>

#if defined(VQC_GENERIC) || !defined(__GNUC__)
#include "vqc_bconv_generic.h"
#elif defined(__AVX512VPOPCNTDQ__)
#include "vqc_bconv_popcnt.h"
#elif defined(__SSSE3__)
#include "vqc_bconv_lut.h"
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include "vqc_bconv_neon.h"
#else
#include "vqc_bconv_generic.h"
#endif

#ifdef BC_OWN_MASK
#include "vqc_bconv_masked.h"
#endif
#include "vqc_bconv_core.h"
#ifdef BC_OWN_TASK
#include "vqc_bconv_task_neon.h"
#endif

void vqc_bconv2d(const vqc_model *m, const vqc_bconv_params *p, const uint32_t *x, const uint32_t *w,
                 const int32_t *base, const uint8_t *classes, const float *scale, const float *bias,
                 const float *residual, const float *slope, const float *tau, float *y, uint32_t *bits, void *scratch) {
    bc_job j = {p, x, w, base, classes, scale, bias, residual, slope, tau, NULL, NULL, y, bits,
                (unsigned char *)scratch, NULL, NULL, NULL, NULL, NULL};
    bc_launch(m, &j);
}

void vqc_masked_bconv2d(const vqc_model *m, const vqc_bconv_params *p, const uint32_t *x, const uint32_t *w,
                        const int32_t *base, const uint8_t *classes, const float *scale, const float *bias,
                        const uint8_t *mask, float *y, void *scratch) {
    bc_job j = {p, x, w, base, classes, scale, bias, NULL, NULL, NULL, NULL, NULL, y, NULL,
                (unsigned char *)scratch, mask, NULL, NULL, NULL, NULL};
    bc_launch(m, &j);
}

void vqc_masked_bconv2d_rows(const vqc_model *m, const vqc_bconv_rows_params *p, const uint32_t *x, const uint32_t *w,
                             const int32_t *base, const uint8_t *classes, const uint8_t *mask, const float *start,
                             const void *const *in, float *y, void *scratch) {
    vqc_bconv_params conv = p->conv;
    bc_job j = {&conv, x, w, base, classes, NULL, NULL, NULL, NULL, NULL, NULL, NULL, y, NULL,
                (unsigned char *)scratch, mask, &p->rest, p->pieces, in, start};
    conv.scratch = p->scratch;
    bc_launch(m, &j);
}

void vqc_bconv2d_threshold(const vqc_model *m, const vqc_bconv_params *p, const uint32_t *x, const uint32_t *w,
                           const int32_t *base, const uint8_t *classes, const int32_t *threshold, const uint8_t *flip,
                           uint32_t *bits, void *scratch) {
    bc_job j = {p,    x,    w,         base, classes, NULL, NULL, NULL, NULL,
                NULL, threshold, flip, NULL, bits,    (unsigned char *)scratch, NULL, NULL, NULL, NULL, NULL};
    bc_launch(m, &j);
}

/* ---- bits ------------------------------------------------------------------------------------------------------- */

typedef struct bc_pack {
    const vqc_bits_params *p;
    const float *x, *tau;
    const int8_t *s;
    const uint32_t *from;
    uint32_t *bits;
    int8_t *back;
} bc_pack;

/* One word of channels of one image, in segments that stay in registers. */
static void bits_task(void *arg, int index, int worker) {
    const bc_pack *j = (const bc_pack *)arg;
    const vqc_bits_params *p = j->p;
    const ptrdiff_t words = (p->c + 31) / 32, image = index / words, c0 = index % words * 32, plane = p->plane;
    const ptrdiff_t channels = p->c - c0 < 32 ? p->c - c0 : 32;
    const ptrdiff_t from = (image * p->c + c0) * plane;
    (void)worker;
    for (ptrdiff_t at = 0; at < plane; at += BC_SEGMENT) {
        const ptrdiff_t n = plane - at < BC_SEGMENT ? plane - at : BC_SEGMENT;
        uint32_t word[BC_SEGMENT] = {0};
        for (ptrdiff_t c = 0; c < channels; c++) {
            const uint32_t bit = (uint32_t)1 << c;
            if (j->x != NULL) {
                const float *restrict x = j->x + from + c * plane + at, tau = j->tau[p->taus > 1 ? c0 + c : 0];
                for (ptrdiff_t i = 0; i < n; i++) word[i] |= x[i] < tau ? bit : 0;
            } else {
                const int8_t *restrict s = j->s + from + c * plane + at;
                for (ptrdiff_t i = 0; i < n; i++) word[i] |= s[i] < 0 ? bit : 0;
            }
        }
        memcpy(j->bits + index * plane + at, word, (size_t)n * sizeof *word);
    }
}

void vqc_binarize(const vqc_model *m, const vqc_bits_params *p, const float *x, const float *tau, uint32_t *bits) {
    bc_pack j = {p, x, tau, NULL, NULL, bits, NULL};
    vqc_for(m, bits_task, &j, p->n * ((p->c + 31) / 32));
}

void vqc_bits_pack(const vqc_model *m, const vqc_bits_params *p, const int8_t *x, uint32_t *bits) {
    bc_pack j = {p, NULL, NULL, x, NULL, bits, NULL};
    vqc_for(m, bits_task, &j, p->n * ((p->c + 31) / 32));
}

static void unpack_task(void *arg, int index, int worker) {
    const bc_pack *j = (const bc_pack *)arg;
    const vqc_bits_params *p = j->p;
    const ptrdiff_t image = index / p->c, c = index % p->c, plane = p->plane;
    const uint32_t *restrict bits = j->from + (image * ((p->c + 31) / 32) + c / 32) * plane;
    int8_t *restrict x = j->back + index * plane;
    (void)worker;
    for (ptrdiff_t i = 0; i < plane; i++) x[i] = (int8_t)(1 - 2 * (int32_t)(bits[i] >> (c & 31) & 1u));
}

void vqc_bits_unpack(const vqc_model *m, const vqc_bits_params *p, const uint32_t *bits, int8_t *x) {
    bc_pack j = {p, NULL, NULL, NULL, bits, NULL, x};
    vqc_for(m, unpack_task, &j, p->n * p->c);
}
