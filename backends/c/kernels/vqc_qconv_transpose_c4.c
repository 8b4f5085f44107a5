/* Transposed convolution of u8 in the layout c4.
 *
 * The outputs y = a + sh * r, x = e + sw * c of one phase (a, e) are a plain convolution at stride 1 with the taps that
 * reach them. The sums of all phases of a row are put side by side, so that the row program sees a run of positions.
 */
#include "vqc_c4_tiles.h"
#include "vqc_phases.h"

/* index: (batch, group, band of rows of a phase) */
static void transpose_task(void *arg, int index, int worker) {
    const c4_job *j = (const c4_job *)arg;
    const vqc_qconv_c4_params *p = j->p;
    const ptrdiff_t most = (p->oh + p->sh - 1) / p->sh, bands = (most + p->rows - 1) / p->rows;
    const ptrdiff_t row0 = index % bands * p->rows, rows = c4_min(p->rows, most - row0);
    const ptrdiff_t group = index / bands % p->groups, batch = index / bands / p->groups;
    const ptrdiff_t all = (ptrdiff_t)p->kh * p->kw, planes = (p->c / p->groups + 3) / 4, og = p->o / p->groups;
    const ptrdiff_t columns = (p->ow + p->sw - 1) / p->sw, hw = (ptrdiff_t)p->h * p->w;
    unsigned char *s = j->scratch + (size_t)worker * p->scratch;
    int32_t *off = (int32_t *)(void *)s, *dy = off + all, *dx = dy + p->kh;
    int32_t *room = (int32_t *)(void *)(s + c4_align((size_t)(all + p->kh + p->kw) * 4));
    uint32_t *packed = (uint32_t *)(void *)((unsigned char *)room + c4_align((size_t)(planes * all * 64)));
    ptrdiff_t lo_h, hi_h, lo_w, hi_w; /* rows and columns around (r, c) that any tap reads */
    vqc_phase_reach(p->kh, p->sh, p->ph, p->dh, dy, &lo_h, &hi_h);
    vqc_phase_reach(p->kw, p->sw, p->pw, p->dw, dx, &lo_w, &hi_w);
    const ptrdiff_t pitch = columns + hi_w - lo_w, plane = (rows + hi_h - lo_h) * pitch;
    const uint32_t *x = j->x + (batch * ((p->c + 3) / 4) + group * planes) * hw;
    for (ptrdiff_t q = 0; q < planes; q++)
        for (ptrdiff_t r = 0; r < rows + hi_h - lo_h; r++) {
            const ptrdiff_t y = row0 + r + lo_h;
            c4_pack_row(packed + q * plane + r * pitch, y >= 0 && y < p->h ? x + q * hw + y * p->w : NULL, p->w, lo_w, 1,
                        pitch, j->zero[group * planes + q]);
        }
    const ptrdiff_t padded = (og + 3) / 4 * 4, run = C4_RUN / p->sw;
    const int8_t *w = j->w;
    int32_t t[8 * C4_RUN], side[8 * C4_RUN];
    for (ptrdiff_t a = 0; a < p->sh; a++) {
        const ptrdiff_t ny = vqc_phase_taps(a, p->kh, p->sh, p->ph, p->dh, dy);
        for (ptrdiff_t o = 0; o < og;) {
            const ptrdiff_t block = og - o > 4 ? 8 : 4, left = c4_min(block, og - o);
            for (ptrdiff_t r = 0; r < rows && a + (row0 + r) * p->sh < p->oh; r++) {
                for (ptrdiff_t at = 0; at < columns; at += run) {
                    const ptrdiff_t count = c4_min(run, columns - at), first = at * p->sw;
                    const int8_t *we = w;
                    for (ptrdiff_t e = 0; e < p->sw; e++) {
                        const ptrdiff_t nx = vqc_phase_taps(e, p->kw, p->sw, p->pw, p->dw, dx), taps = ny * nx;
                        const int32_t *offset = j->offset + ((a * p->sw + e) * 2 + C4_SIGNED) * p->o + group * og + o;
                        const int8_t *wb = we + c4_bytes((group * padded + o) * planes * taps * 4, p->bits);
                        int32_t start[8] = {0};
                        for (ptrdiff_t i = 0; i < left; i++) start[i] = offset[i];
                        for (ptrdiff_t k = 0; k < taps; k++)
                            off[k] = (int32_t)((dy[k / nx] - lo_h) * pitch + dx[k % nx] - lo_w);
                        c4_sums(packed + r * pitch + at, planes, plane, off, taps,
                                c4_weights(wb, planes * taps * block, p->bits, room), block, start, count, t);
                        for (ptrdiff_t i = 0; i < left; i++)
                            for (ptrdiff_t c = 0; c < count; c++)
                                side[i * C4_RUN + c * p->sw + e] = t[i * C4_RUN + c];
                        we += c4_bytes(p->groups * padded * planes * taps * 4, p->bits);
                    }
                    const ptrdiff_t n = c4_min(count * p->sw, p->ow - first);
                    for (ptrdiff_t i = 0; i < left; i += 4)
                        c4_rest(&p->rest, j->in, j->out, batch, group * og + o + i, p->o,
                                (a + (row0 + r) * p->sh) * p->ow + first, n, side + i * C4_RUN, C4_RUN);
                }
            }
            o += block;
        }
        for (ptrdiff_t e = 0; e < p->sw; e++) {
            const ptrdiff_t taps = ny * vqc_phase_taps(e, p->kw, p->sw, p->pw, p->dw, dx);
            w += c4_bytes(p->groups * padded * planes * taps * 4, p->bits);
        }
    }
}

void vqc_qconv_transpose_c4(const vqc_model *m, const vqc_qconv_c4_params *p, const void *x, const int8_t *w,
                            const int32_t *offset, const uint32_t *zero, const void *const *in, void *const *out,
                            void *scratch) {
    c4_job j = {p, (const uint32_t *)x, w, offset, zero, in, out, (unsigned char *)scratch};
    vqc_for(m, transpose_task, &j, p->n * p->groups * (((p->oh + p->sh - 1) / p->sh + p->rows - 1) / p->rows));
}
