/* 1x1 convolutions of row programs; products and sums of the convolutions may be contracted. */
#define CV_MASKED
#define CV_TASK_ONLY
#include "vqc_conv_rows.h"

#include "vqc_conv_float.h"

typedef struct conv_rows_job {
    const vqc_conv_rows_params *p;
    const void *const *in;
    cv_job conv, first, masked;
    unsigned char *scratch;
} conv_rows_job;

/* Where in a worker's scratch a band of the masked result lies, and behind it what making it takes. */
static size_t conv_rows_near(const vqc_conv_rows_params *p) {
    const ptrdiff_t channels = p->conv.c + (p->first != NULL ? p->first->o : 0);
    return cv_align((size_t)(channels * VQC_CONV_ROWS_RUN) * sizeof(float));
}

/* n positions of a 1x1 convolution: of planes `plane` apart, to y[at] in planes `y_plane` apart. */
static void conv_rows_some(const cv_job *j, const float *x, ptrdiff_t plane, ptrdiff_t at, ptrdiff_t y_plane,
                           ptrdiff_t n) {
    const int32_t off[1] = {0};
    const cv_band b = {x, j->p->c, plane, off, 1, 1, n, n, 0, j->p->o, 0, at, y_plane, n, 1};
    cv_run(j, &b, NULL);
}

/* n positions of an image. near: the masked result there, planes near_plane apart, or NULL. */
static void conv_rows_run(const conv_rows_job *j, ptrdiff_t batch, ptrdiff_t start, ptrdiff_t n, const float *near,
                          ptrdiff_t near_plane, unsigned char *scratch) {
    const vqc_conv_params *p = &j->p->conv, *f = j->p->first;
    const vqc_rows *e = &j->p->rest;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow;
    float *middle = (float *)(void *)scratch;
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
            if (f != NULL && i == j->p->at) from[i] = middle + c * VQC_CONV_ROWS_RUN;
            else if (near != NULL && i == j->p->masked_at) from[i] = near + c * near_plane;
            else from[i] = (const unsigned char *)j->in[i] + batch * o->batch + c * o->channel + start * o->position;
        }
        e->row(e->constants, from, to, n);
    }
    conv_rows_some(&j->conv, room, VQC_CONV_ROWS_RUN, batch * p->o * plane + start, plane, n);
}

/* index: (image, run of positions) */
static void conv_rows_task(void *arg, int index, int worker) {
    const conv_rows_job *j = (const conv_rows_job *)arg;
    const ptrdiff_t plane = (ptrdiff_t)j->p->conv.oh * j->p->conv.ow;
    const ptrdiff_t runs = (plane + VQC_CONV_ROWS_RUN - 1) / VQC_CONV_ROWS_RUN, start = index % runs * VQC_CONV_ROWS_RUN;
    conv_rows_run(j, index / runs, start, cv_min(VQC_CONV_ROWS_RUN, plane - start), NULL, 0,
                  j->scratch + (size_t)worker * j->p->scratch);
}

/* index: (image, band of rows of the masked convolution) */
static void conv_rows_masked_task(void *arg, int index, int worker) {
    const conv_rows_job *j = (const conv_rows_job *)arg;
    const vqc_conv_params *q = j->p->masked;
    const ptrdiff_t bands = (q->oh + q->rows - 1) / q->rows, row = index % bands * q->rows;
    const ptrdiff_t positions = cv_min(q->rows, q->oh - row) * q->ow;
    unsigned char *scratch = j->scratch + (size_t)worker * j->p->scratch;
    float *near = (float *)(void *)(scratch + conv_rows_near(j->p));
    cv_job masked = j->masked;
    masked.y = near;
    masked.near = (ptrdiff_t)q->rows * q->ow;
    masked.scratch = (unsigned char *)near + cv_align((size_t)(q->o * masked.near) * sizeof(float));
    cv_task(&masked, index, 0);
    for (ptrdiff_t at = 0; at < positions; at += VQC_CONV_ROWS_RUN)
        conv_rows_run(j, index / bands, row * q->ow + at, cv_min(VQC_CONV_ROWS_RUN, positions - at), near + at,
                      masked.near, scratch);
}

void vqc_conv_rows_f32(const vqc_model *m, const vqc_conv_rows_params *p, const void *const *in, const float *w,
                       const float *bias, const float *slope, const float *w0, const float *bias0, const float *slope0,
                       const float *w1, const float *bias1, const uint8_t *mask, float *y, void *scratch) {
    const ptrdiff_t plane = (ptrdiff_t)p->conv.oh * p->conv.ow;
    const float *x = p->masked != NULL ? (const float *)in[p->masked_at] : NULL;
    conv_rows_job j = {p, in, {&p->conv, NULL, w, bias, slope, y, NULL, NULL, 0},
                       {p->first, NULL, w0, bias0, slope0, NULL, NULL, NULL, 0},
                       {p->masked, x, w1, bias1, NULL, NULL, NULL, mask, 0}, (unsigned char *)scratch};
    if (p->masked != NULL)
        vqc_for(m, conv_rows_masked_task, &j, (int)(p->conv.n * ((p->conv.oh + p->masked->rows - 1) / p->masked->rows)));
    else
        vqc_for(m, conv_rows_task, &j, (int)(p->conv.n * ((plane + VQC_CONV_ROWS_RUN - 1) / VQC_CONV_ROWS_RUN)));
}
