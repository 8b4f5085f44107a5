/* The body of every binary convolution: unpacked bands, blocks, epilogues. vqc_bconv.h has the meaning and the hook. */
#include <string.h>

#include "vqc_bconv_band.h"

/* Unpack the input rows of a band that begins at output row `first`. */
static void bc_unpack(const bc_job *j, const bc_shape *s, ptrdiff_t image, ptrdiff_t first, BC_E *e) {
    const vqc_bconv_params *p = j->p;
    for (ptrdiff_t g = 0; g < s->words; g++) {
        const uint32_t *plane = j->x + (image * s->words + g) * p->h * p->w;
        for (ptrdiff_t r = 0; r < s->in_rows; r++, e += BC_PLANES * s->line) {
            const ptrdiff_t y = first * p->sh - p->ph + r;
            const uint32_t *row = y >= 0 && y < p->h ? plane + y * p->w : NULL;
            for (ptrdiff_t f = 0; f < s->phases; f++)
                bc_expand(e + f * s->pitch, s->line, row, f - p->pw, p->sw, s->pitch, p->w);
        }
    }
}

/* Where each step's input starts, and the columns' classes and taps inside. */
static void bc_tables(const bc_job *j, const bc_shape *s, int32_t *off, int32_t *column, int32_t *taps) {
    const vqc_bconv_params *p = j->p;
    for (ptrdiff_t g = 0; g < s->words; g++)
        for (ptrdiff_t ky = 0; ky < p->kh; ky++)
            for (ptrdiff_t kx = 0; kx < p->kw; kx++)
                *off++ = (int32_t)((g * s->in_rows + ky * p->dh) * BC_PLANES * s->line +
                                   kx * p->dw % p->sw * s->pitch + kx * p->dw / p->sw);
    for (ptrdiff_t i = 0; i < s->columns; i++) {
        column[i] = i < p->ow ? j->classes[p->oh + i] : 0;
        taps[i] = 0;
        for (ptrdiff_t kx = 0; kx < p->kw; kx++) {
            const ptrdiff_t x = i * p->sw - p->pw + kx * p->dw;
            taps[i] += x >= 0 && x < p->w;
        }
    }
}

/* One segment of the float epilogue: n sums of channel o, the first one at y[at]; marks the channel's bits. */
static inline void bc_finish(const bc_job *j, ptrdiff_t o, ptrdiff_t at, ptrdiff_t n, const int32_t *restrict t,
                             uint32_t *restrict word) {
    const vqc_bconv_params *p = j->p;
    const float scale = j->scale[o], bias = j->bias != NULL ? j->bias[o] : -0.0f; /* x + -0 is x, for every x */
    const uint32_t bit = (uint32_t)1 << (o & 31);
    float v[BC_SEGMENT];
    for (ptrdiff_t i = 0; i < n; i++) v[i] = (float)t[i] * scale + bias;
    if (j->residual != NULL) {
        const float *residual = j->residual + at;
        for (ptrdiff_t i = 0; i < n; i++) v[i] += residual[i];
    }
    if (p->act == VQC_BACT_PRELU) {
        const float slope = j->slope[o];
        for (ptrdiff_t i = 0; i < n; i++) v[i] = v[i] > 0.0f ? v[i] : v[i] * slope;
    } else if (p->act == VQC_BACT_RELU) {
        for (ptrdiff_t i = 0; i < n; i++) v[i] = v[i] < 0.0f ? 0.0f : v[i];
    }
    if (j->y != NULL) {
        float *y = j->y + at;
        for (ptrdiff_t i = 0; i < n; i++) y[i] = v[i];
    }
    if (j->bits != NULL) {
        const float tau = j->tau[p->taus > 1 ? o : 0];
        for (ptrdiff_t i = 0; i < n; i++) word[i] |= v[i] < tau ? bit : 0;
    }
}

/* The same for a binary result: a bit is 1 where acc < threshold, turned round where flip is set. */
static inline void bc_decide(const bc_job *j, ptrdiff_t o, ptrdiff_t n, const int32_t *restrict t,
                             uint32_t *restrict word) {
    const uint32_t bit = (uint32_t)1 << (o & 31), flip = j->flip[o] ? bit : 0;
    const int32_t threshold = j->threshold[o];
    for (ptrdiff_t i = 0; i < n; i++) word[i] |= (t[i] < threshold ? bit : 0) ^ flip;
}

/* n <= BC_SEGMENT positions of an output row from column `col` on, for one block of channels from o on. `row`: the
 * output row; b->x and b->base must stand at that row already. */
static inline void bc_row(const bc_job *j, const bc_band *b, ptrdiff_t image, ptrdiff_t o, ptrdiff_t row, ptrdiff_t col,
                          ptrdiff_t n) {
    const vqc_bconv_params *p = j->p;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow, at = row * p->ow + col;
    const ptrdiff_t blocks = p->o - o < BC_BLOCK ? p->o - o : BC_BLOCK;
    BC_ALIGNED int32_t t[BC_BLOCK][BC_SEGMENT];
    BC_ALIGNED uint32_t word[BC_SEGMENT];
    bc_sums(b, col, n, t);
    memset(word, 0, sizeof word);
    for (ptrdiff_t i = 0; i < blocks; i++) {
        if (j->threshold != NULL) bc_decide(j, o + i, n, t[i], word);
        else bc_finish(j, o + i, (image * p->o + o + i) * plane + at, n, t[i], word);
    }
    if (j->bits != NULL) {
        uint32_t *bits = j->bits + (image * ((p->o + 31) / 32) + o / 32) * plane + at;
        if (o % 32 == 0) {
            for (ptrdiff_t i = 0; i < n; i++) bits[i] = word[i];
        } else {
            for (ptrdiff_t i = 0; i < n; i++) bits[i] |= word[i];
        }
    }
}

static void bc_task(void *arg, int index, int worker) {
    const bc_job *j = (const bc_job *)arg;
    const vqc_bconv_params *p = j->p;
    const bc_shape s = bc_shape_of(p);
    const ptrdiff_t bands = (p->oh + p->rows - 1) / p->rows, image = index / bands, first = index % bands * p->rows;
    const ptrdiff_t last = first + p->rows < p->oh ? first + p->rows : p->oh;
    unsigned char *scratch = j->scratch + (size_t)worker * p->scratch;
    int32_t *off = (int32_t *)(void *)scratch, *column = off + s.steps, *taps = column + s.columns;
    int32_t *inside = taps + s.columns;
    unsigned char *prepared = scratch + s.prepared;
    BC_E *e = (BC_E *)(void *)(scratch + s.input);
    bc_band b = {e, s.line, off, s.steps, NULL, NULL, (ptrdiff_t)p->row_classes * p->column_classes, column, inside};
    bc_tables(j, &s, off, column, taps);
    bc_unpack(j, &s, image, first, e);
    bc_prepare(prepared);
    for (ptrdiff_t o = 0; o < p->o; o += BC_BLOCK) {
        b.w = bc_weights(j->w + o * s.steps, s.steps, prepared);
        for (ptrdiff_t row = first; row < last; row++) {
            int32_t rows_inside = 0;
            for (ptrdiff_t ky = 0; ky < p->kh; ky++) {
                const ptrdiff_t y = row * p->sh - p->ph + ky * p->dh;
                rows_inside += y >= 0 && y < p->h;
            }
            for (ptrdiff_t i = 0; i < s.columns; i++) inside[i] = p->c * rows_inside * taps[i];
            b.x = e + (row - first) * p->sh * BC_PLANES * s.line;
            b.base = j->base + o * b.base_step + j->classes[row] * p->column_classes;
            for (ptrdiff_t col = 0; col < p->ow; col += BC_SEGMENT)
                bc_row(j, &b, image, o, row, col, p->ow - col < BC_SEGMENT ? p->ow - col : BC_SEGMENT);
        }
    }
}

static void bc_launch(const vqc_model *m, bc_job *j) {
    const vqc_bconv_params *p = j->p;
    vqc_for(m, bc_task, j, p->n * ((p->oh + p->rows - 1) / p->rows));
}
