/* Programs of pointwise operations, run over blocks that stay in the first cache. */
#ifndef VQC_POINTWISE_H
#define VQC_POINTWISE_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VQC_PW_REGS 12   /* registers of a program, each VQC_PW_BLOCK floats on the stack */
#define VQC_PW_BLOCK 256 /* elements */
#define VQC_PW_IMM 255   /* in place of a register: the instruction's constant */

/* Operations on registers of float (vqc_pointwise_f32) or of int64 (vqc_pointwise_s64, those marked *). A truth value
 * is 1 or 0. d, a, b, c are registers, i the constant. */
enum vqc_pw_code {
    VQC_PW_LOAD = 0,   /* * d = operand[b] */
    VQC_PW_STORE = 1,  /* * operand[b] = a */
    VQC_PW_CONST = 2,  /* * d = i */
    VQC_PW_ADD = 3,    /* * a + b */
    VQC_PW_SUB = 4,    /* * a - b */
    VQC_PW_MUL = 5,    /* * a * b */
    VQC_PW_DIV = 6,    /*   a / b */
    VQC_PW_MAX = 7,    /* * the larger; NaN if one is */
    VQC_PW_MIN = 8,    /* * the smaller; NaN if one is */
    VQC_PW_LT = 9,     /* * a < b */
    VQC_PW_LE = 10,    /* * a <= b */
    VQC_PW_EQ = 11,    /* * a == b */
    VQC_PW_NE = 12,    /* * a != b */
    VQC_PW_AND = 13,   /* * both not 0 */
    VQC_PW_OR = 14,    /* * one not 0 */
    VQC_PW_LEAKY = 15, /*   a > 0 ? a : a * b */
    VQC_PW_POW = 16,   /*   a to the power of b */
    VQC_PW_WHERE = 17, /* * a != 0 ? b : c */
    VQC_PW_NEG = 18,   /* * */
    VQC_PW_ABS = 19,   /* * */
    VQC_PW_SQRT = 20,
    VQC_PW_FLOOR = 21,
    VQC_PW_CEIL = 22,
    VQC_PW_TRUNC = 23,
    VQC_PW_RINT = 24,    /* half to even */
    VQC_PW_SIGN = 25,    /* * */
    VQC_PW_EXP = 26,
    VQC_PW_EXP_EXACT = 27, /* vqc::exp; sigmoid and tanh likewise */
    VQC_PW_SIGMOID = 28,
    VQC_PW_TANH = 29,
    VQC_PW_TANH_EXACT = 30,
    VQC_PW_EXPM1 = 31,
    VQC_PW_LOG = 32,
    VQC_PW_LOG1P = 33,
    VQC_PW_SIN = 34,
    VQC_PW_COS = 35,
    VQC_PW_ERF = 36,
    VQC_PW_NOT = 37,   /* * a == 0 */
    VQC_PW_MOD = 38,   /* * a - floor(a / b) * b, sign of b; integers: 0 where b is 0, as all their divisions */
    VQC_PW_ATAN2 = 39,
    VQC_PW_FMOD = 40,  /* * a - trunc(a / b) * b, sign of a */
    VQC_PW_LOG2 = 41,
    VQC_PW_LOG10 = 42,
    VQC_PW_EXP2 = 43,
    VQC_PW_TAN = 44,
    VQC_PW_ASIN = 45,
    VQC_PW_ACOS = 46,
    VQC_PW_ATAN = 47,
    VQC_PW_SINH = 48,
    VQC_PW_COSH = 49,
    VQC_PW_ASINH = 50,
    VQC_PW_ACOSH = 51,
    VQC_PW_ATANH = 52,
    VQC_PW_FLOORDIV = 53, /* * floor(a / b) */
    VQC_PW_TRUNCDIV = 54, /* * trunc(a / b) */
    VQC_PW_BITAND = 55,   /* * and the following only on integers */
    VQC_PW_BITOR = 56,
    VQC_PW_BITXOR = 57,
    VQC_PW_BITNOT = 58,
    VQC_PW_SHL = 59,
    VQC_PW_SHR = 60, /* of a negative number: towards minus infinity */
    VQC_PW_IPOW = 61 /* a to the power of b, b not negative */
};

typedef struct vqc_pw_op {
    uint8_t code, d, a, b, c;
    double i;
} vqc_pw_op;

/* A tensor the program loads or stores: element type and stride of every axis, in elements. */
typedef struct vqc_pw_operand {
    int32_t dtype;
    ptrdiff_t stride[VQC_MAX_DIMS];
} vqc_pw_operand;

typedef struct vqc_pw_params {
    int32_t dims; /* at least 1 */
    ptrdiff_t shape[VQC_MAX_DIMS];
    const vqc_pw_operand *operands;
    int32_t inputs, outputs; /* the operands are the inputs, then the outputs */
    const vqc_pw_op *ops;
    int32_t count;
} vqc_pw_params;

/* An output may be the same memory as an input of the same type and strides, else they must not overlap. */
void vqc_pointwise_f32(const vqc_model *m, const vqc_pw_params *p, const void *const *in, void *const *out);
void vqc_pointwise_s64(const vqc_model *m, const vqc_pw_params *p, const void *const *in, void *const *out);

#ifdef __cplusplus
}
#endif
#endif
