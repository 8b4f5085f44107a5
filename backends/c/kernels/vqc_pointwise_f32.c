/* The interpreter of pointwise programs on floats. Compile with -ffp-contract=off: each operation is rounded once. */
#include "vqc_math.h"
#include "vqc_pointwise.h"

#define PW_OPERANDS 16

/* An output may be an input's memory, element on element: no iteration needs another one's result. */
#if defined(__clang__)
#define PW_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define PW_INDEPENDENT _Pragma("GCC ivdep")
#else
#define PW_INDEPENDENT
#endif

#define LOOP(EXPR)                                                                                                    \
    PW_INDEPENDENT for (ptrdiff_t k = 0; k < n; k++) d[k] = EXPR;
#define UNARY(CODE, EXPR)                                                                                             \
    case CODE: LOOP(EXPR) break;
#define LIBRARY(CODE, EXPR)                                                                                           \
    case CODE:                                                                                                        \
        for (ptrdiff_t k = 0; k < n; k++) d[k] = EXPR;                                                                \
        break;
#define BINARY(CODE, EXPR)                                                                                            \
    case CODE:                                                                                                        \
        if (i->b == VQC_PW_IMM) {                                                                                     \
            const float y = imm;                                                                                      \
            PW_INDEPENDENT for (ptrdiff_t k = 0; k < n; k++) {                                                        \
                const float x = a[k];                                                                                 \
                d[k] = EXPR;                                                                                          \
            }                                                                                                         \
        } else if (i->a == VQC_PW_IMM) {                                                                              \
            const float x = imm;                                                                                      \
            PW_INDEPENDENT for (ptrdiff_t k = 0; k < n; k++) {                                                        \
                const float y = b[k];                                                                                 \
                d[k] = EXPR;                                                                                          \
            }                                                                                                         \
        } else {                                                                                                      \
            PW_INDEPENDENT for (ptrdiff_t k = 0; k < n; k++) {                                                        \
                const float x = a[k], y = b[k];                                                                       \
                d[k] = EXPR;                                                                                          \
            }                                                                                                         \
        }                                                                                                             \
        break;
#define BINARY_LIBRARY(CODE, EXPR)                                                                                    \
    case CODE:                                                                                                        \
        for (ptrdiff_t k = 0; k < n; k++) {                                                                           \
            const float x = i->a == VQC_PW_IMM ? imm : a[k], y = i->b == VQC_PW_IMM ? imm : b[k];                     \
            d[k] = EXPR;                                                                                              \
        }                                                                                                             \
        break;

#define LOAD_AS(TYPE)                                                                                                 \
    {                                                                                                                 \
        const TYPE *s = (const TYPE *)(const void *)p;                                                                \
        if (stride == 1)                                                                                              \
            for (ptrdiff_t k = 0; k < n; k++) d[k] = (float)s[k];                                                     \
        else if (stride == 0)                                                                                         \
            for (ptrdiff_t k = 0; k < n; k++) d[k] = (float)s[0];                                                     \
        else                                                                                                          \
            for (ptrdiff_t k = 0; k < n; k++) d[k] = (float)s[k * stride];                                            \
    }                                                                                                                 \
    break;

static void load(const unsigned char *p, int32_t dtype, ptrdiff_t stride, float *restrict d, ptrdiff_t n) {
    switch (dtype) {
    case VQC_F32: LOAD_AS(float)
    case VQC_S8: LOAD_AS(int8_t)
    case VQC_S16: LOAD_AS(int16_t)
    case VQC_S32: LOAD_AS(int32_t)
    case VQC_S64: LOAD_AS(int64_t)
    default: LOAD_AS(uint8_t)
    }
}

#define STORE_AS(TYPE, EXPR)                                                                                          \
    {                                                                                                                 \
        TYPE *d = (TYPE *)(void *)p;                                                                                  \
        if (stride == 1)                                                                                              \
            for (ptrdiff_t k = 0; k < n; k++) d[k] = EXPR;                                                            \
        else                                                                                                          \
            for (ptrdiff_t k = 0; k < n; k++) d[k * stride] = EXPR;                                                   \
    }                                                                                                                 \
    break;

/* Held in the type's range first: a conversion from outside has no meaning in C. NaN becomes the low end. */
static inline float held(float v, float low, float high) {
    v = v > low ? v : low;
    return v < high ? v : high;
}

static void store(unsigned char *p, int32_t dtype, ptrdiff_t stride, const float *restrict s, ptrdiff_t n) {
    switch (dtype) {
    case VQC_F32: STORE_AS(float, s[k])
    case VQC_U8: STORE_AS(uint8_t, (uint8_t)(int32_t)held(s[k], 0.0f, 255.0f))
    case VQC_S8: STORE_AS(int8_t, (int8_t)(int32_t)held(s[k], -128.0f, 127.0f))
    case VQC_S16: STORE_AS(int16_t, (int16_t)(int32_t)held(s[k], -32768.0f, 32767.0f))
    case VQC_S32: STORE_AS(int32_t, (int32_t)held(s[k], -2147483648.0f, 2147483520.0f))
    case VQC_S64: STORE_AS(int64_t, (int64_t)held(s[k], -9223372036854775808.0f, 9223371487098961920.0f))
    default: STORE_AS(uint8_t, (uint8_t)(s[k] != 0.0f))
    }
}

/* What is left of a division, with the sign of y: exact, where x - floor(x / y) * y is not. */
static float modulo(float x, float y) {
    const float rest = fmodf(x, y);
    return rest != 0.0f && (rest < 0.0f) != (y < 0.0f) ? rest + y : rest;
}

/* floor(x / y) of the exact quotient, as PyTorch finds it. */
static float floor_quotient(float x, float y) {
    if (y == 0.0f) return x / y;
    const float rest = fmodf(x, y);
    float q = (x - rest) / y;
    if (rest != 0.0f && (rest < 0.0f) != (y < 0.0f)) q -= 1.0f;
    if (q == 0.0f) return copysignf(0.0f, x / y);
    const float whole = floorf(q);
    return q - whole > 0.5f ? whole + 1.0f : whole;
}

static void pw_block(const vqc_pw_params *p, unsigned char **at, ptrdiff_t n) {
    float own[VQC_PW_REGS][VQC_PW_BLOCK];
    const float *reg[VQC_PW_REGS];
    const int inner = p->dims - 1;
    for (const vqc_pw_op *i = p->ops; i < p->ops + p->count; i++) {
        const float imm = (float)i->i;
        const float *a = i->a < VQC_PW_REGS ? reg[i->a] : NULL, *b = i->b < VQC_PW_REGS ? reg[i->b] : NULL;
        const float *c = i->code == VQC_PW_WHERE ? reg[i->c] : NULL; /* all before d, which may be one of them */
        if (i->code == VQC_PW_STORE) {
            const vqc_pw_operand *t = &p->operands[i->b];
            if (!(t->dtype == VQC_F32 && (const float *)(void *)at[i->b] == a && t->stride[inner] == 1))
                store(at[i->b], t->dtype, t->stride[inner], a, n);
            continue;
        }
        if (i->code == VQC_PW_LOAD) {
            const vqc_pw_operand *t = &p->operands[i->b];
            if (t->dtype == VQC_F32 && t->stride[inner] == 1) { /* read where it is */
                reg[i->d] = (const float *)(const void *)at[i->b];
            } else {
                load(at[i->b], t->dtype, t->stride[inner], own[i->d], n);
                reg[i->d] = own[i->d];
            }
            continue;
        }
        float *d = own[i->d];
        if (i + 1 < p->ops + p->count && i[1].code == VQC_PW_STORE && i[1].a == i->d) { /* write where it goes */
            const vqc_pw_operand *t = &p->operands[i[1].b];
            if (t->dtype == VQC_F32 && t->stride[inner] == 1) d = (float *)(void *)at[i[1].b];
        }
        reg[i->d] = d;
        switch (i->code) {
            UNARY(VQC_PW_CONST, imm)
            BINARY(VQC_PW_ADD, x + y)
            BINARY(VQC_PW_SUB, x - y)
            BINARY(VQC_PW_MUL, x * y)
            BINARY(VQC_PW_DIV, x / y)
            BINARY(VQC_PW_MAX, (x > y || x != x ? x : y))
            BINARY(VQC_PW_MIN, (x < y || x != x ? x : y))
            BINARY(VQC_PW_LT, (x < y ? 1.0f : 0.0f))
            BINARY(VQC_PW_LE, (x <= y ? 1.0f : 0.0f))
            BINARY(VQC_PW_EQ, (x == y ? 1.0f : 0.0f))
            BINARY(VQC_PW_NE, (x != y ? 1.0f : 0.0f))
            BINARY(VQC_PW_AND, (x != 0.0f && y != 0.0f ? 1.0f : 0.0f))
            BINARY(VQC_PW_OR, (x != 0.0f || y != 0.0f ? 1.0f : 0.0f))
            BINARY(VQC_PW_LEAKY, (x > 0.0f ? x : x * y))
            BINARY_LIBRARY(VQC_PW_POW, powf(x, y))
            BINARY_LIBRARY(VQC_PW_ATAN2, atan2f(x, y))
            BINARY_LIBRARY(VQC_PW_MOD, modulo(x, y))
            BINARY_LIBRARY(VQC_PW_FMOD, fmodf(x, y))
            BINARY_LIBRARY(VQC_PW_FLOORDIV, floor_quotient(x, y))
            BINARY(VQC_PW_TRUNCDIV, truncf(x / y))
            UNARY(VQC_PW_WHERE, (a[k] != 0.0f ? b[k] : c[k]))
            UNARY(VQC_PW_NEG, -a[k])
            UNARY(VQC_PW_ABS, fabsf(a[k]))
            UNARY(VQC_PW_SQRT, sqrtf(a[k]))
            UNARY(VQC_PW_FLOOR, floorf(a[k]))
            UNARY(VQC_PW_CEIL, ceilf(a[k]))
            UNARY(VQC_PW_TRUNC, truncf(a[k]))
            UNARY(VQC_PW_RINT, rintf(a[k]))
            UNARY(VQC_PW_SIGN, (float)((a[k] > 0.0f) - (a[k] < 0.0f)))
            UNARY(VQC_PW_NOT, (a[k] == 0.0f ? 1.0f : 0.0f))
            UNARY(VQC_PW_EXP, vqc_exp_wide(a[k]))
            UNARY(VQC_PW_EXP_EXACT, vqc_exp(a[k]))
            UNARY(VQC_PW_SIGMOID, vqc_sigmoid(a[k]))
            UNARY(VQC_PW_TANH, vqc_tanh_near(a[k]))
            UNARY(VQC_PW_TANH_EXACT, vqc_tanh(a[k]))
            LIBRARY(VQC_PW_EXPM1, expm1f(a[k]))
            LIBRARY(VQC_PW_LOG, logf(a[k]))
            LIBRARY(VQC_PW_LOG1P, log1pf(a[k]))
            LIBRARY(VQC_PW_SIN, sinf(a[k]))
            LIBRARY(VQC_PW_COS, cosf(a[k]))
            UNARY(VQC_PW_ERF, vqc_erf(a[k]))
            LIBRARY(VQC_PW_LOG2, log2f(a[k]))
            LIBRARY(VQC_PW_LOG10, log10f(a[k]))
            LIBRARY(VQC_PW_EXP2, exp2f(a[k]))
            LIBRARY(VQC_PW_TAN, tanf(a[k]))
            LIBRARY(VQC_PW_ASIN, asinf(a[k]))
            LIBRARY(VQC_PW_ACOS, acosf(a[k]))
            LIBRARY(VQC_PW_ATAN, atanf(a[k]))
            LIBRARY(VQC_PW_SINH, sinhf(a[k]))
            LIBRARY(VQC_PW_COSH, coshf(a[k]))
            LIBRARY(VQC_PW_ASINH, asinhf(a[k]))
            LIBRARY(VQC_PW_ACOSH, acoshf(a[k]))
            LIBRARY(VQC_PW_ATANH, atanhf(a[k]))
        default: break;
        }
    }
}

#include "vqc_pointwise_loop.h"

void vqc_pointwise_f32(const vqc_model *m, const vqc_pw_params *p, const void *const *in, void *const *out) {
    pw_launch(m, p, in, out);
}
