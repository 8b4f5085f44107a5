/* How a pointwise program walks over its tensors; included by the float and by the integer interpreter.
 *
 * Defined before: pw_block(params, pointers of the operands at the block, element count).
 */
#include <string.h>

#define PW_CHUNK 32 /* blocks of one task */

typedef struct pw_job {
    const vqc_pw_params *p;
    const void *const *in;
    void *const *out;
} pw_job;

static size_t pw_size(int32_t dtype) {
    switch (dtype) {
    case VQC_F32:
    case VQC_S32: return 4;
    case VQC_S64: return 8;
    case VQC_S16: return 2;
    default: return 1;
    }
}

static void pw_task(void *arg, int index, int worker) {
    const pw_job *j = (const pw_job *)arg;
    const vqc_pw_params *p = j->p;
    const int operands = p->inputs + p->outputs, inner = p->dims - 1;
    const ptrdiff_t length = p->shape[inner], per_row = (length + VQC_PW_BLOCK - 1) / VQC_PW_BLOCK;
    ptrdiff_t rows = 1, at[VQC_MAX_DIMS] = {0};
    (void)worker;
    for (int d = 0; d < inner; d++) rows *= p->shape[d];
    ptrdiff_t unit = (ptrdiff_t)index * PW_CHUNK, last = unit + PW_CHUNK;
    if (last > rows * per_row) last = rows * per_row;
    ptrdiff_t row = unit / per_row, block = unit % per_row;
    for (int d = inner - 1; d >= 0; d--) at[d] = row % p->shape[d], row /= p->shape[d];
    for (; unit < last; unit++) {
        const ptrdiff_t start = block * VQC_PW_BLOCK, n = length - start < VQC_PW_BLOCK ? length - start : VQC_PW_BLOCK;
        unsigned char *here[PW_OPERANDS];
        for (int o = 0; o < operands; o++) {
            const vqc_pw_operand *t = &p->operands[o];
            ptrdiff_t offset = start * t->stride[inner];
            for (int d = 0; d < inner; d++) offset += at[d] * t->stride[d];
            unsigned char *base = o < p->inputs ? (unsigned char *)(uintptr_t)j->in[o] : (unsigned char *)j->out[o - p->inputs];
            here[o] = base + offset * (ptrdiff_t)pw_size(t->dtype);
        }
        pw_block(p, here, n);
        if (++block == per_row) {
            block = 0;
            for (int d = inner - 1; d >= 0 && ++at[d] == p->shape[d]; d--) at[d] = 0;
        }
    }
}

static void pw_launch(const vqc_model *m, const vqc_pw_params *p, const void *const *in, void *const *out) {
    pw_job j = {p, in, out};
    ptrdiff_t units = (p->shape[p->dims - 1] + VQC_PW_BLOCK - 1) / VQC_PW_BLOCK;
    for (int d = 0; d < p->dims - 1; d++) units *= p->shape[d];
    vqc_for(m, pw_task, &j, (int)((units + PW_CHUNK - 1) / PW_CHUNK));
}
