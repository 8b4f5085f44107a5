/* The interpreter of pointwise programs on integers of up to 64 bits (and truth values). */
#include "vqc_pointwise.h"

#define PW_OPERANDS 16

#define LOAD_AS(TYPE)                                                                                                 \
    for (ptrdiff_t k = 0; k < n; k++) d[k] = ((const TYPE *)(const void *)p)[k * stride];                             \
    break;
#define STORE_AS(TYPE, EXPR)                                                                                          \
    for (ptrdiff_t k = 0; k < n; k++) ((TYPE *)(void *)p)[k * stride] = (TYPE)(EXPR);                                 \
    break;

static void load(const unsigned char *p, int32_t dtype, ptrdiff_t stride, int64_t *restrict d, ptrdiff_t n) {
    switch (dtype) {
    case VQC_S8: LOAD_AS(int8_t)
    case VQC_S16: LOAD_AS(int16_t)
    case VQC_S32: LOAD_AS(int32_t)
    case VQC_S64: LOAD_AS(int64_t)
    default: LOAD_AS(uint8_t)
    }
}

/* The low bits, as PyTorch's conversions between integers; a float is rounded to nearest. */
static void store(unsigned char *p, int32_t dtype, ptrdiff_t stride, const int64_t *restrict s, ptrdiff_t n) {
    switch (dtype) {
    case VQC_F32: STORE_AS(float, s[k])
    case VQC_U8: STORE_AS(uint8_t, (uint64_t)s[k] & 0xffu)
    case VQC_S8: STORE_AS(int8_t, (uint8_t)((uint64_t)s[k] & 0xffu))
    case VQC_S16: STORE_AS(int16_t, (uint16_t)((uint64_t)s[k] & 0xffffu))
    case VQC_S32: STORE_AS(int32_t, (uint32_t)((uint64_t)s[k] & 0xffffffffu))
    case VQC_S64: STORE_AS(int64_t, s[k])
    default: STORE_AS(uint8_t, s[k] != 0)
    }
}

/* Quotients towards minus infinity (down) or zero, and what is left. Dividing by 0 gives 0, by -1 the negative, wrapped. */
static int64_t quotient(int64_t x, int64_t y, int down) {
    if (y == 0) return 0;
    if (y == -1) return (int64_t)(0u - (uint64_t)x);
    return x / y - (down && x % y != 0 && (x < 0) != (y < 0) ? 1 : 0);
}

static int64_t remaining(int64_t x, int64_t y, int down) {
    if (y == 0 || y == -1) return 0;
    const int64_t rest = x % y;
    return down && rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}

static int64_t shifted(int64_t x, int64_t by, int left) {
    if (by < 0 || by > 63) return left || x >= 0 ? 0 : -1;
    if (left) return (int64_t)((uint64_t)x << by);
    return x >= 0 ? (int64_t)((uint64_t)x >> by) : (int64_t)~(~(uint64_t)x >> by);
}

static int64_t power(int64_t x, int64_t y) {
    uint64_t result = 1, base = (uint64_t)x;
    for (; y > 0; y /= 2, base *= base)
        if (y % 2 != 0) result *= base;
    return (int64_t)result;
}

/* Sums and products wrap, as PyTorch's: signed overflow has no meaning in C, so they are done unsigned. */
#define WRAP(OP) (int64_t)((uint64_t)x OP (uint64_t) y)
#define OPERATION(CODE, EXPR)                                                                                         \
    case CODE:                                                                                                        \
        for (ptrdiff_t k = 0; k < n; k++) {                                                                           \
            const int64_t x = i->a == VQC_PW_IMM ? imm : a[k], y = i->b == VQC_PW_IMM ? imm : b[k];                   \
            d[k] = EXPR;                                                                                              \
        }                                                                                                             \
        break;

static void pw_block(const vqc_pw_params *p, unsigned char **at, ptrdiff_t n) {
    int64_t reg[VQC_PW_REGS][VQC_PW_BLOCK];
    const int inner = p->dims - 1;
    for (const vqc_pw_op *i = p->ops; i < p->ops + p->count; i++) {
        const int64_t imm = (int64_t)i->i;
        int64_t *d = reg[i->d < VQC_PW_REGS ? i->d : 0];
        const int64_t *a = reg[i->a < VQC_PW_REGS ? i->a : 0], *b = reg[i->b < VQC_PW_REGS ? i->b : 0], *c = reg[i->c];
        switch (i->code) {
        case VQC_PW_LOAD: load(at[i->b], p->operands[i->b].dtype, p->operands[i->b].stride[inner], d, n); break;
        case VQC_PW_STORE: store(at[i->b], p->operands[i->b].dtype, p->operands[i->b].stride[inner], a, n); break;
        case VQC_PW_CONST:
            for (ptrdiff_t k = 0; k < n; k++) d[k] = imm;
            break;
            OPERATION(VQC_PW_ADD, WRAP(+))
            OPERATION(VQC_PW_SUB, WRAP(-))
            OPERATION(VQC_PW_MUL, WRAP(*))
            OPERATION(VQC_PW_MAX, x > y ? x : y)
            OPERATION(VQC_PW_MIN, x < y ? x : y)
            OPERATION(VQC_PW_LT, x < y)
            OPERATION(VQC_PW_LE, x <= y)
            OPERATION(VQC_PW_EQ, x == y)
            OPERATION(VQC_PW_NE, x != y)
            OPERATION(VQC_PW_AND, x != 0 && y != 0)
            OPERATION(VQC_PW_OR, x != 0 || y != 0)
            OPERATION(VQC_PW_FLOORDIV, quotient(x, y, 1))
            OPERATION(VQC_PW_TRUNCDIV, quotient(x, y, 0))
            OPERATION(VQC_PW_MOD, remaining(x, y, 1))
            OPERATION(VQC_PW_FMOD, remaining(x, y, 0))
            OPERATION(VQC_PW_BITAND, (int64_t)((uint64_t)x & (uint64_t)y))
            OPERATION(VQC_PW_BITOR, (int64_t)((uint64_t)x | (uint64_t)y))
            OPERATION(VQC_PW_BITXOR, (int64_t)((uint64_t)x ^ (uint64_t)y))
            OPERATION(VQC_PW_SHL, shifted(x, y, 1))
            OPERATION(VQC_PW_SHR, shifted(x, y, 0))
            OPERATION(VQC_PW_IPOW, power(x, y))
        case VQC_PW_WHERE:
            for (ptrdiff_t k = 0; k < n; k++) d[k] = a[k] != 0 ? b[k] : c[k];
            break;
        case VQC_PW_NEG:
            for (ptrdiff_t k = 0; k < n; k++) d[k] = (int64_t)(0u - (uint64_t)a[k]);
            break;
        case VQC_PW_ABS:
            for (ptrdiff_t k = 0; k < n; k++) d[k] = a[k] < 0 ? (int64_t)(0u - (uint64_t)a[k]) : a[k];
            break;
        case VQC_PW_SIGN:
            for (ptrdiff_t k = 0; k < n; k++) d[k] = (a[k] > 0) - (a[k] < 0);
            break;
        case VQC_PW_BITNOT:
            for (ptrdiff_t k = 0; k < n; k++) d[k] = (int64_t)~(uint64_t)a[k];
            break;
        case VQC_PW_NOT:
            for (ptrdiff_t k = 0; k < n; k++) d[k] = a[k] == 0;
            break;
        default: break;
        }
    }
}

#include "vqc_pointwise_loop.h"

void vqc_pointwise_s64(const vqc_model *m, const vqc_pw_params *p, const void *const *in, void *const *out) {
    pw_launch(m, p, in, out);
}
