/* Float convolutions with three rows of taps at stride 1, two output rows at a time: 4 multiplications where 6 were.
 *
 * With input rows d0 to d3 and rows of taps g0, g1, g2 (whatever a tap of a row multiplies), two rows of outputs are
 *   y0 = m0 + m1 + m2      m0 = (d0 - d2) g0       m1 = (d1 + d2) (g0 + g1 + g2) / 2
 *   y1 = m1 - m2 - m3      m3 = (d1 - d3) g2       m2 = (d2 - d1) (g0 - g1 + g2) / 2
 * F(2, 3) of Winograd's minimal filtering, along the height alone (Lavin and Gray, Fast Algorithms for Convolutional Neural
 * Networks, 2016). Sums over channels and columns are made of the products, so the two steps around them cost little.
 * Products and sums may be contracted. A row's result does not depend on the band: pairs begin at even rows. */
#define CV_TASK_ONLY
#define CV_TILES_ONLY
#include "vqc_conv_winograd.h"

#include "vqc_conv_float.h"

#define CW_PARTS 4

/* Input rows 2 q to 2 q + 3 of one plane become row q of the four parts. */
static void cw_transform(const float *restrict raw, ptrdiff_t pitch, ptrdiff_t pairs, float *restrict to, ptrdiff_t part) {
    for (ptrdiff_t q = 0; q < pairs; q++, raw += 2 * pitch, to += pitch) {
        const float *restrict d0 = raw, *restrict d1 = raw + pitch, *restrict d2 = raw + 2 * pitch;
        const float *restrict d3 = raw + 3 * pitch;
        float *restrict t0 = to, *restrict t1 = to + part, *restrict t2 = to + 2 * part, *restrict t3 = to + 3 * part;
        for (ptrdiff_t i = 0; i < pitch; i++) {
            t0[i] = d0[i] - d2[i];
            t1[i] = d1[i] + d2[i];
            t2[i] = d2[i] - d1[i];
            t3[i] = d1[i] - d3[i];
        }
    }
}

/* The sums of the four parts, [4][n], become those of an even and an odd row, in the first two. */
static inline void cw_join(float *restrict t, ptrdiff_t n) {
    float *restrict m0 = t, *restrict m1 = t + CV_TEMP;
    const float *restrict m2 = t + 2 * CV_TEMP, *restrict m3 = t + 3 * CV_TEMP;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float even = m0[i] + m1[i] + m2[i], odd = m1[i] - m2[i] - m3[i];
        m0[i] = even;
        m1[i] = odd;
    }
}

/* All output channels of one group over the positions of a band of pairs. rows: of the output. */
static void cw_run(const cv_job *j, const cv_band *b, ptrdiff_t part, ptrdiff_t weights, ptrdiff_t rows) {
    const ptrdiff_t positions = (b->rows - 1) * b->pitch + b->ow, taps = b->planes * b->taps;
    float t[CW_PARTS * CV_TEMP];
    const float *w = j->w + b->w;
    cv_band even = *b, odd = *b;
    odd.y += j->p->ow;
    odd.rows = rows / 2;
    for (ptrdiff_t o = 0; o < b->og;) {
        const ptrdiff_t left = b->og - o, block = left > 4 ? 8 : left > 1 ? 4 : 1;
        const ptrdiff_t wide = VQC_VL * (block == 8 ? CV_WIDE_8 : block == 4 ? CV_WIDE_4 : CV_WIDE_1);
        const cv_tile big = block == 8 ? cv_wide_8 : block == 4 ? cv_wide_4 : cv_wide_1;
        const cv_tile small = block == 8 ? cv_tile_8 : block == 4 ? cv_tile_4 : cv_tile_1;
        for (ptrdiff_t p = 0; p < positions;) { /* the last tile may go back, as in cv_run */
            const ptrdiff_t rest = positions - p, many = (rest >= wide || (2 * rest > wide && positions >= wide));
            const ptrdiff_t count = positions < VQC_VL ? positions : many ? wide : VQC_VL;
            if (rest < count) p = positions - count;
            for (ptrdiff_t i = 0; i < CW_PARTS; i++) {
                cv_band one = *b;
                one.x += i * part + p;
                if (positions < VQC_VL) cv_points(&one, w + i * weights, block, count, t + i * CV_TEMP);
                else
                    (many ? big : small)(one.x, b->planes, b->plane, b->off, b->taps, w + i * weights, t + i * CV_TEMP);
            }
            cw_join(t, block * count);
            cv_flush(j, &even, o, block, p, count, t);
            cv_flush(j, &odd, o, block, p, count, t + CV_TEMP);
            p += count;
        }
        w += taps * block;
        o += block;
    }
}

/* index: (image, group, band of rows) */
static void cw_task(void *arg, int index, int worker) {
    const cv_job *j = (const cv_job *)arg;
    const vqc_conv_params *p = j->p;
    const ptrdiff_t bands = (p->oh + p->rows - 1) / p->rows, row0 = index % bands * p->rows;
    const ptrdiff_t group = index / bands % p->groups, batch = index / bands / p->groups;
    const ptrdiff_t cg = p->c / p->groups, hw = (ptrdiff_t)p->h * p->w, x0 = (batch * p->c + group * cg) * hw;
    const ptrdiff_t rows = cv_min(p->rows, p->oh - row0), pairs = (rows + 1) / 2;
    unsigned char *scratch = j->scratch + (size_t)worker * p->scratch;
    int32_t *off = (int32_t *)(void *)scratch;
    cv_band b;
    b.planes = cg;
    b.off = off;
    b.taps = p->kw;
    b.rows = pairs;
    b.ow = p->ow;
    b.pitch = p->ow + (ptrdiff_t)(p->kw - 1) * p->dw;
    b.plane = pairs * b.pitch;
    b.group = group;
    b.og = p->o / p->groups;
    b.y_plane = (ptrdiff_t)p->oh * p->ow;
    b.y_row = 2 * (ptrdiff_t)p->ow;
    b.y_col = 1;
    b.y = (batch * p->o + group * b.og) * b.y_plane + row0 * p->ow;
    const ptrdiff_t each = cv_group_weights(b.og, b.planes * b.taps), part = cg * b.plane;
    b.w = group * each;
    float *raw = (float *)(void *)(scratch + cv_align((size_t)p->kw * sizeof *off));
    float *parts = (float *)(void *)((unsigned char *)raw + cv_align((size_t)((2 * pairs + 2) * b.pitch) * sizeof *raw));
    b.x = parts;
    for (ptrdiff_t k = 0; k < p->kw; k++) off[k] = (int32_t)(k * p->dw);
    for (ptrdiff_t c = 0; c < cg; c++) {
        for (ptrdiff_t r = 0; r < 2 * pairs + 2; r++) {
            const ptrdiff_t y = row0 + r - p->ph, channel = group * cg + c;
            const ptrdiff_t from = y >= 0 && y < p->h ? x0 + c * hw + y * p->w : -1;
            cv_pack_row(j, raw + r * b.pitch, &from, &channel, -(ptrdiff_t)p->pw, 1, b.pitch);
        }
        cw_transform(raw, b.pitch, pairs, parts + c * b.plane, part);
    }
    cw_run(j, &b, part, p->groups * each, rows);
}

void vqc_conv_winograd_f32(const vqc_model *m, const vqc_conv_params *p, const float *x, const float *w, const float *bias,
                           const float *slope, float *y, void *scratch) {
    cv_job j = {p, x, w, bias, slope, y, (unsigned char *)scratch, NULL, 0};
    vqc_for(m, cw_task, &j, p->n * p->groups * ((p->oh + p->rows - 1) / p->rows));
}
