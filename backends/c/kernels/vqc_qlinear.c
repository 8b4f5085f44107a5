/* Integer linear layers: plain dot products, which compilers turn into pairs of 16-bit products. */
#include "vqc_qlinear.h"

#include <math.h>

typedef struct ql_job {
    const vqc_qlinear_params *p;
    const void *x;
    const int8_t *w;
    const float *scale, *bias;
    const int32_t *offset;
    float *real; /* output, or */
    uint8_t *byte;
    int x_signed;
} ql_job;

/* Unsigned sums: they may wrap on the way, and wrap back when the zero point's part is taken off. */
#define DOT(TYPE)                                                                                                     \
    {                                                                                                                 \
        const TYPE *restrict x = (const TYPE *)j->x + row * p->k;                                                     \
        for (ptrdiff_t k = 0; k < p->k; k++) sum += (uint32_t)((int32_t)x[k] * (int32_t)w[k]);                        \
    }

static void ql_task(void *arg, int row, int worker) {
    const ql_job *j = (const ql_job *)arg;
    const vqc_qlinear_params *p = j->p;
    (void)worker;
    for (ptrdiff_t o = 0; o < p->o; o++) {
        const int8_t *restrict w = j->w + o * p->k;
        uint32_t sum = 0u;
        if (j->x_signed) DOT(int8_t)
        else DOT(uint8_t)
        const int32_t acc = (int32_t)(sum - (uint32_t)j->offset[o]);
        float v = (float)acc * j->scale[o];
        if (j->bias != NULL) v += j->bias[o];
        if (j->real != NULL) {
            j->real[(ptrdiff_t)row * p->o + o] = v;
            continue;
        }
        if (p->relu) v = v > 0.0f ? v : 0.0f;
        v = rintf(v * p->inv_scale) + (float)p->zero_point;
        v = v > 0.0f ? v : 0.0f;
        v = v < 255.0f ? v : 255.0f;
        j->byte[(ptrdiff_t)row * p->o + o] = (uint8_t)(int32_t)v;
    }
}

#define QL_ENTRY(NAME, X, Y, REAL, BYTE, SIGNED)                                                                      \
    void NAME(const vqc_model *m, const vqc_qlinear_params *p, const X *x, const int8_t *w, const float *scale,       \
              const float *bias, const int32_t *offset, Y *y) {                                                       \
        ql_job j = {p, x, w, scale, bias, offset, REAL, BYTE, SIGNED};                                                \
        vqc_for(m, ql_task, &j, p->rows);                                                                             \
    }

QL_ENTRY(vqc_qlinear_u8s8_f32, uint8_t, float, y, NULL, 0)
QL_ENTRY(vqc_qlinear_u8s8_u8, uint8_t, uint8_t, NULL, y, 0)
QL_ENTRY(vqc_qlinear_s8s8_f32, int8_t, float, y, NULL, 1)
QL_ENTRY(vqc_qlinear_s8s8_u8, int8_t, uint8_t, NULL, y, 1)
