/* Elementary functions by single operations, each rounded once: compile with -ffp-contract=off.
 *
 * The constants of exp come from vqc_exact.h, which is generated from the operators' reference.
 */
#ifndef VQC_MATH_H
#define VQC_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "vqc_exact.h"

/* e^x, x held in [VQC_EXP_LOW, VQC_EXP_HIGH]; the meaning of vqc::exp. */
static inline float vqc_exp(float x) {
    x = x < VQC_EXP_LOW ? VQC_EXP_LOW : x;
    x = x > VQC_EXP_HIGH ? VQC_EXP_HIGH : x;
    const float k = rintf(x * VQC_LOG2E);
    const float r = (x - k * VQC_LN2_HI) - k * VQC_LN2_LO;
    float p = r * VQC_EXP_C0;
    p = (p + VQC_EXP_C1) * r;
    p = (p + VQC_EXP_C2) * r;
    p = (p + VQC_EXP_C3) * r;
    p = (p + VQC_EXP_C4) * r;
    p = (p + VQC_EXP_C5) * r;
    p = p + VQC_EXP_C6;
    const int32_t e = (int32_t)(k == k ? k : 0.0f) + 127; /* a NaN stays in p */
    const uint32_t bits = (uint32_t)e << 23;
    float two_k;
    memcpy(&two_k, &bits, sizeof two_k);
    return p * two_k;
}

/* 1 / (1 + e^-x); the meaning of vqc::sigmoid. */
static inline float vqc_sigmoid(float x) { return 1.0f / (vqc_exp(-x) + 1.0f); }

/* 1 - 2 / (e^2x + 1); the meaning of vqc::tanh: its error is absolute, about 1e-7. */
static inline float vqc_tanh(float x) { return 1.0f - 2.0f / (vqc_exp(x * 2.0f) + 1.0f); }

/* e^x over the whole range of float, relative error about 3e-7. */
static inline float vqc_exp_wide(float x) {
    const float h = vqc_exp(x * 0.5f);
    return h * h;
}

/* tanh with a relative error of about 1e-7: a fitted odd polynomial near 0. */
static inline float vqc_tanh_near(float x) {
    const float z = x * x;
    float p = -0x1.75e19ap-8f;
    p = p * z + 0x1.5226a2p-6f;
    p = p * z - 0x1.b83c60p-5f;
    p = p * z + 0x1.110728p-3f;
    p = p * z - 0x1.555532p-2f;
    const float small = p * z * x + x, large = vqc_tanh(x);
    return x > -0.625f && x < 0.625f ? small : large;
}

/* erf, error about 3e-7: an odd rational function where it is not yet 1. */
static inline float vqc_erf(float x) {
    x = x < -4.0f ? -4.0f : x;
    x = x > 4.0f ? 4.0f : x;
    const float z = x * x;
    float p = -2.72614225801306e-10f, q = -1.45660718464996e-05f;
    p = p * z + 2.77068142495902e-08f;
    p = p * z - 2.10102402082508e-06f;
    p = p * z - 5.69250639462346e-05f;
    p = p * z - 7.34990630326855e-04f;
    p = p * z - 2.95459980854025e-03f;
    p = p * z - 1.60960333262415e-02f;
    q = q * z - 2.13374055278905e-04f;
    q = q * z - 1.68282697438203e-03f;
    q = q * z - 7.37332916720468e-03f;
    q = q * z - 1.42647390514189e-02f;
    return p * x / q;
}

#endif
