/* 1x1 convolutions of row programs; products and sums of the convolution may be contracted. */
#define CV_RUN_ONLY
#include "vqc_conv_rows.h"

#include "vqc_conv_float.h"

typedef struct conv_rows_job {
    const vqc_conv_rows_params *p;
    const void *const *in;
    cv_job conv, first;
    unsigned char *scratch;
} conv_rows_job;

/* n positions of a 1x1 convolution: of planes `plane` apart, to y[at] in planes `y_plane` apart. */
static void conv_rows_some(const cv_job *j, const float *x, ptrdiff_t plane, ptrdiff_t at, ptrdiff_t y_plane,
                           ptrdiff_t n) {
    const int32_t off[1] = {0};
    const cv_band b = {x, j->p->c, plane, off, 1, 1, n, n, 0, j->p->o, 0, at, y_plane, n, 1};
    cv_run(j, &b, NULL);
}

/* index: (image, run of positions) */
static void conv_rows_task(void *arg, int index, int worker) {
    const conv_rows_job *j = (const conv_rows_job *)arg;
    const vqc_conv_params *p = &j->p->conv, *f = j->p->first;
    const vqc_rows *e = &j->p->rest;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow, runs = (plane + VQC_CONV_ROWS_RUN - 1) / VQC_CONV_ROWS_RUN;
    const ptrdiff_t batch = index / runs, start = index % runs * VQC_CONV_ROWS_RUN;
    const ptrdiff_t n = cv_min(VQC_CONV_ROWS_RUN, plane - start);
    float *middle = (float *)(void *)(j->scratch + (size_t)worker * j->p->scratch);
    float *room = f != NULL ? middle + (ptrdiff_t)f->o * VQC_CONV_ROWS_RUN : middle;
    if (f != NULL) {
        cv_job first = j->first;
        first.y = middle;
        conv_rows_some(&first, (const float *)j->in[j->p->at] + batch * f->c * plane + start, plane, 0,
                       VQC_CONV_ROWS_RUN, n);
    }
    for (ptrdiff_t c = 0; c < p->c; c++) {
        const void *from[VQC_ROW_OPERANDS];
        void *to[1] = {room + c * VQC_CONV_ROWS_RUN};
        for (int i = 0; i < e->inputs; i++) {
            const vqc_row_operand *o = &e->operands[i];
            from[i] = (const unsigned char *)j->in[i] + batch * o->batch + c * o->channel + start * o->position;
        }
        if (f != NULL) from[j->p->at] = middle + c * VQC_CONV_ROWS_RUN;
        e->row(e->constants, from, to, n);
    }
    conv_rows_some(&j->conv, room, VQC_CONV_ROWS_RUN, batch * p->o * plane + start, plane, n);
}

void vqc_conv_rows_f32(const vqc_model *m, const vqc_conv_rows_params *p, const void *const *in, const float *w,
                       const float *bias, const float *slope, const float *w0, const float *bias0, const float *slope0,
                       float *y, void *scratch) {
    const ptrdiff_t plane = (ptrdiff_t)p->conv.oh * p->conv.ow;
    conv_rows_job j = {p, in, {&p->conv, NULL, w, bias, slope, y, NULL, NULL},
                       {p->first, NULL, w0, bias0, slope0, NULL, NULL, NULL}, (unsigned char *)scratch};
    vqc_for(m, conv_rows_task, &j, (int)(p->conv.n * ((plane + VQC_CONV_ROWS_RUN - 1) / VQC_CONV_ROWS_RUN)));
}
