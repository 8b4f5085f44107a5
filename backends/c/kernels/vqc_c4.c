/* The layout c4: conversions, and row programs over whole tensors. */
#include "vqc_c4_core.h"

typedef struct rows_job {
    const vqc_rows_c4_params *p;
    const void *const *in;
    void *const *out;
} rows_job;

/* index: (batch, four channels, chunk of positions) */
#define CHUNK (16 * C4_RUN)
static void rows_task(void *arg, int index, int worker) {
    const rows_job *j = (const rows_job *)arg;
    const vqc_rows_c4_params *p = j->p;
    const ptrdiff_t chunks = (p->positions + CHUNK - 1) / CHUNK, quads = (p->c + 3) / 4;
    const ptrdiff_t start = index % chunks * CHUNK, end = c4_min(start + CHUNK, p->positions);
    (void)worker;
    for (ptrdiff_t at = start; at < end; at += C4_RUN)
        c4_rest(&p->rest, j->in, j->out, index / chunks / quads, index / chunks % quads * 4, p->c, at,
                c4_min(C4_RUN, end - at), NULL, 0);
}

void vqc_rows_c4(const vqc_model *m, const vqc_rows_c4_params *p, const void *const *in, void *const *out) {
    rows_job j = {p, in, out};
    vqc_for(m, rows_task, &j, p->n * ((p->c + 3) / 4) * (int)((p->positions + CHUNK - 1) / CHUNK));
}

void vqc_pack_c4(const vqc_model *m, const vqc_c4_params *p, const uint8_t *x, void *y) {
    uint32_t *words = (uint32_t *)y;
    (void)m;
    for (ptrdiff_t n = 0; n < p->n; n++)
        for (ptrdiff_t c = 0; c < p->c; c += 4, words += p->positions) {
            const uint8_t *rows[4];
            for (ptrdiff_t r = 0; r < 4; r++) rows[r] = x + (n * p->c + (c + r < p->c ? c + r : c)) * p->positions;
            for (ptrdiff_t i = 0; i < p->positions; i++)
                words[i] = (uint32_t)rows[0][i] | (uint32_t)rows[1][i] << 8 | (uint32_t)rows[2][i] << 16 |
                           (uint32_t)rows[3][i] << 24;
        }
}

void vqc_unpack_c4(const vqc_model *m, const vqc_c4_params *p, const void *x, uint8_t *y) {
    const ptrdiff_t quads = (p->c + 3) / 4;
    (void)m;
    for (ptrdiff_t n = 0; n < p->n; n++)
        for (ptrdiff_t c = 0; c < p->c; c++, y += p->positions) {
            const uint32_t *words = (const uint32_t *)x + (n * quads + c / 4) * p->positions;
            for (ptrdiff_t i = 0; i < p->positions; i++) y[i] = (uint8_t)(words[i] >> 8 * (c % 4) & 255u);
        }
}
