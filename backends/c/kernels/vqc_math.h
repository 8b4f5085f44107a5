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

/* erf, error about 2e-7: its series near 0, else 1 - e^-x^2 times a polynomial in 1 / (1 + 0.3275911 x), Abramowitz and
 * Stegun 7.1.26. */
static inline float vqc_erf(float x) {
    const float z = x * x, t = 1.0f / (1.0f + 0.3275911f * fabsf(x));
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const float large = 1.0f - p * t * vqc_exp(-z);
    float s = -1.49258e-5f;
    s = s * z + 1.20553e-4f;
    s = s * z - 0.00085483270f;
    s = s * z + 0.00522397762f;
    s = s * z - 0.02686617064f;
    s = s * z + 0.11283791671f;
    s = s * z - 0.37612638903f;
    s = s * z + 1.12837916710f;
    const float small = s * x, far = x < 0.0f ? -large : large;
    return x > -0.75f && x < 0.75f ? small : far;
}

#endif
