/* 1x1 convolutions of row programs; products and sums of the convolution may be contracted. */
#define CV_RUN_ONLY
#include "vqc_conv_rows.h"

#include "vqc_conv_float.h"

typedef struct conv_rows_job {
    const vqc_conv_rows_params *p;
    const void *const *in;
    cv_job conv;
    unsigned char *scratch;
} conv_rows_job;

/* index: (image, run of positions) */
static void conv_rows_task(void *arg, int index, int worker) {
    const conv_rows_job *j = (const conv_rows_job *)arg;
    const vqc_conv_params *p = &j->p->conv;
    const vqc_rows *e = &j->p->rest;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow, runs = (plane + VQC_CONV_ROWS_RUN - 1) / VQC_CONV_ROWS_RUN;
    const ptrdiff_t batch = index / runs, start = index % runs * VQC_CONV_ROWS_RUN;
    const ptrdiff_t n = cv_min(VQC_CONV_ROWS_RUN, plane - start);
    float *room = (float *)(void *)(j->scratch + (size_t)worker * j->p->scratch);
    const int32_t off[1] = {0};
    for (ptrdiff_t c = 0; c < p->c; c++) {
        const void *from[VQC_ROW_OPERANDS];
        void *to[1] = {room + c * VQC_CONV_ROWS_RUN};
        for (int i = 0; i < e->inputs; i++) {
            const vqc_row_operand *o = &e->operands[i];
            from[i] = (const unsigned char *)j->in[i] + batch * o->batch + c * o->channel + start * o->position;
        }
        e->row(e->constants, from, to, n);
    }
    const cv_band b = {room, p->c, VQC_CONV_ROWS_RUN, off, 1, 1, n, n, 0, p->o, 0, batch * p->o * plane + start,
                       plane, n, 1};
    cv_run(&j->conv, &b, NULL);
}

void vqc_conv_rows_f32(const vqc_model *m, const vqc_conv_rows_params *p, const void *const *in, const float *w,
                       const float *bias, const float *slope, float *y, void *scratch) {
    const ptrdiff_t plane = (ptrdiff_t)p->conv.oh * p->conv.ow;
    conv_rows_job j = {p, in, {&p->conv, NULL, w, bias, slope, y, NULL, NULL}, (unsigned char *)scratch};
    vqc_for(m, conv_rows_task, &j, (int)(p->conv.n * ((plane + VQC_CONV_ROWS_RUN - 1) / VQC_CONV_ROWS_RUN)));
}
