/* Concatenations, resizes and row programs that end in one tensor of the layout c4: nothing in between is stored. */
#include "vqc_c4_core.h"
#include "vqc_resize_row.h"

typedef struct parts_job {
    const vqc_parts_c4_params *p;
    const void *const *in;
    uint32_t *y;
    unsigned char *scratch;
} parts_job;

/* The two resized rows a channel holds; `have` says which rows of the source they are, -1: none. */
typedef struct parts_rows {
    float *row[2];
    int32_t have[2];
} parts_rows;

/* Rows r0 and r1 of a plane at the output's columns: top and bottom. */
static void parts_resize(const vqc_part *part, parts_rows *held, const float *plane, int32_t r0, int32_t r1,
                         const int32_t *cols, const float *weights, ptrdiff_t n) {
    const int32_t want[2] = {r0, r1};
    if (held->have[0] != r0 && (held->have[1] == r0 || held->have[0] == r1)) { /* one row on: it is the other one now */
        float *row = held->row[0];
        const int32_t have = held->have[0];
        held->row[0] = held->row[1], held->have[0] = held->have[1];
        held->row[1] = row, held->have[1] = have;
    }
    for (int i = 0; i < 2; i++)
        if (held->have[i] != want[i]) {
            vqc_resize_row(plane + (ptrdiff_t)want[i] * part->w, n, cols, weights, part->twice, held->row[i]);
            held->have[i] = want[i];
        }
}

/* The part a channel of the output belongs to. */
static const vqc_part *parts_find(const vqc_parts_c4_params *p, ptrdiff_t channel) {
    const vqc_part *part = p->parts;
    while (channel >= part->first + part->channels) part++;
    return part;
}

/* index: (batch, four channels, band of rows) */
static void parts_task(void *arg, int index, int worker) {
    const parts_job *j = (const parts_job *)arg;
    const vqc_parts_c4_params *p = j->p;
    const ptrdiff_t bands = (p->h + p->rows - 1) / p->rows, quads = (p->c + 3) / 4, positions = (ptrdiff_t)p->h * p->w;
    const ptrdiff_t quad = index / bands % quads, batch = index / bands / quads;
    const ptrdiff_t row0 = index % bands * p->rows, row1 = c4_min(row0 + p->rows, p->h);
    const ptrdiff_t channels = c4_min(4, p->c - 4 * quad);
    float *room = (float *)(void *)(j->scratch + (size_t)worker * p->scratch);
    const vqc_part *parts[4];
    parts_rows held[4];
    int32_t bytes[4][C4_RUN];
    int resized = 0;
    for (ptrdiff_t r = 0; r < channels; r++) {
        parts[r] = parts_find(p, 4 * quad + r);
        resized |= parts[r]->resized;
        for (int i = 0; i < 2; i++) held[r].row[i] = room + (2 * r + i) * p->w, held[r].have[i] = -1;
    }
    for (ptrdiff_t r = channels; r < 4; r++) memset(bytes[r], 0, sizeof bytes[r]);
    /* Rows one by one where one is resized, else all positions as one run. */
    const ptrdiff_t runs = resized ? row1 - row0 : 1, length = resized ? p->w : (row1 - row0) * p->w;
    for (ptrdiff_t run = 0; run < runs; run++) {
        const ptrdiff_t start = row0 * p->w + run * length, row = row0 + run;
        for (ptrdiff_t at = 0; at < length; at += C4_RUN) {
            const ptrdiff_t n = c4_min(C4_RUN, length - at);
            for (ptrdiff_t r = 0; r < channels; r++) {
                const vqc_part *part = parts[r];
                const vqc_rows *e = &part->rest;
                const void *const *in = j->in + part->in;
                const ptrdiff_t c = 4 * quad + r - part->first;
                const void *from[VQC_ROW_OPERANDS];
                void *to[1] = {bytes[r]};
                int first = 0;
                if (part->resized) {
                    const float *x = (const float *)in[e->inputs], *row_weights = (const float *)in[e->inputs + 2];
                    const int32_t *rows = (const int32_t *)in[e->inputs + 1];
                    if (at == 0)
                        parts_resize(part, &held[r], x + (batch * part->channels + c) * part->h * part->w, rows[row],
                                     rows[p->h + row], (const int32_t *)in[e->inputs + 3],
                                     (const float *)in[e->inputs + 4], p->w);
                    from[0] = held[r].row[0] + at;
                    from[1] = held[r].row[1] + at;
                    from[2] = row_weights + row;
                    from[3] = row_weights + p->h + row;
                    first = 4;
                }
                for (int i = 0; i < e->inputs; i++) {
                    const vqc_row_operand *o = &e->operands[i];
                    from[first + i] =
                        (const unsigned char *)in[i] + batch * o->batch + c * o->channel + (start + at) * o->position;
                }
                e->row(e->constants, from, to, n);
            }
            c4_words(j->y + (batch * quads + quad) * positions + start + at, (const int32_t(*)[C4_RUN])bytes, n);
        }
    }
}

void vqc_parts_c4(const vqc_model *m, const vqc_parts_c4_params *p, const void *const *in, void *y, void *scratch) {
    parts_job j = {p, in, (uint32_t *)y, (unsigned char *)scratch};
    vqc_for(m, parts_task, &j, p->n * ((p->c + 3) / 4) * ((p->h + p->rows - 1) / p->rows));
}
