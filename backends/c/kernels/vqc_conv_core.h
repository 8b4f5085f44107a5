/* The body of every convolution. Included once by each .c file, which defines before:
 *
 *   CV_E  element of the packed input (4 bytes)     CV_A  accumulator, one position       CV_V  a vector of CV_A
 *   CV_M  the same vector in memory, unaligned      CV_MAC(acc, x, w)  acc + x * w        CV_SMAC  the same on scalars
 *   CV_PAIR  input channels in one CV_E (1 or 2)    cv_job  the task's arguments
 *   cv_pack_row, cv_weights, cv_store, cv_direct    see where they are called
 *   CV_NEAR(job)  0, or: a task's outputs begin at y, channels so many elements apart, whichever band they are of
 *
 * How it works. A task computes `rows` output rows of all output channels of a group. It copies the input rows it needs
 * into scratch, padded, one plane for each phase of the stride, so that output position (r, c) of tap k reads
 * plane[off[k] + r * pitch + c]: rows and columns become one axis of positions and every tap a constant offset. The
 * positions are then a matrix product [8 channels] x [taps * channels] x [positions], done in register tiles. Positions
 * between the rows' ends (pitch - ow of them) are computed and dropped. A 1x1 convolution needs no copy.
 */
#include <string.h>

#include "vqc_phases.h"

static size_t cv_align(size_t bytes) { return (bytes + VQC_ALIGN - 1) / VQC_ALIGN * VQC_ALIGN; }
static ptrdiff_t cv_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

typedef struct cv_band {
    const CV_E *x;        /* first plane */
    ptrdiff_t planes;     /* planes (of CV_PAIR input channels) in one group */
    ptrdiff_t plane;      /* elements between planes */
    const int32_t *off;   /* offset of every tap */
    ptrdiff_t taps;
    ptrdiff_t rows, pitch, ow;
    ptrdiff_t group, og;  /* group, output channels of a group */
    ptrdiff_t w;          /* where the group's weights start, in CV_E */
    ptrdiff_t y;          /* where the first output channel of the group starts */
    ptrdiff_t y_plane, y_row, y_col;
} cv_band;

#define CV_TILE(NAME, OB, NV)                                                                                         \
    static void NAME(const CV_E *restrict x, ptrdiff_t planes, ptrdiff_t plane, const int32_t *restrict off,          \
                     ptrdiff_t taps, const CV_E *restrict w, CV_A *restrict t) {                                      \
        CV_V acc[OB][NV];                                                                                             \
        memset(acc, 0, sizeof acc);                                                                                   \
        for (ptrdiff_t c = 0; c < planes; c++, x += plane) {                                                          \
            for (ptrdiff_t k = 0; k < taps; k++, w += (OB)) {                                                         \
                const CV_E *xk = x + off[k];                                                                          \
                CV_V v[NV];                                                                                           \
                for (int i = 0; i < (NV); i++) v[i] = *(const CV_M *)(xk + i * VQC_VL);                               \
                for (int o = 0; o < (OB); o++)                                                                        \
                    for (int i = 0; i < (NV); i++) acc[o][i] = CV_MAC(acc[o][i], v[i], w[o]);                         \
            }                                                                                                         \
        }                                                                                                             \
        for (int o = 0; o < (OB); o++)                                                                                \
            for (int i = 0; i < (NV); i++) *(CV_M *)(t + (o * (NV) + i) * VQC_VL) = acc[o][i];                        \
    }

#define CV_WIDE_1 8
#define CV_WIDE_4 (VQC_TILE_VECTORS + 1)
#define CV_WIDE_8 VQC_TILE_VECTORS
CV_TILE(cv_tile_1, 1, 1)
CV_TILE(cv_tile_4, 4, 1)
CV_TILE(cv_tile_8, 8, 1)
CV_TILE(cv_wide_1, 1, CV_WIDE_1)
CV_TILE(cv_wide_4, 4, CV_WIDE_4)
CV_TILE(cv_wide_8, 8, CV_WIDE_8)
#define CV_TEMP (VQC_VL * (8 * CV_WIDE_8 + 4 * CV_WIDE_4)) /* at least as large as any tile, or 8 * VQC_VL points */

/* `count` positions (less than a vector) one by one; t is [block][count]. */
static void cv_points(const cv_band *b, const CV_E *restrict w, ptrdiff_t block, ptrdiff_t count, CV_A *restrict t) {
    for (ptrdiff_t i = 0; i < count; i++) {
        CV_A acc[8] = {0};
        const CV_E *wk = w;
        const CV_E *x = b->x + i;
        for (ptrdiff_t c = 0; c < b->planes; c++, x += b->plane) {
            for (ptrdiff_t k = 0; k < b->taps; k++, wk += block) {
                const CV_E v = x[b->off[k]];
                if (block == 8) {
                    for (int o = 0; o < 8; o++) acc[o] = CV_SMAC(acc[o], v, wk[o]);
                } else {
                    for (int o = 0; o < block; o++) acc[o] = CV_SMAC(acc[o], v, wk[o]);
                }
            }
        }
        for (ptrdiff_t o = 0; o < block; o++) t[o * count + i] = acc[o];
    }
}

#ifndef CV_STORE_TILE /* what cv_store is, inline */
#define CV_STORE_TILE cv_store
#endif

/* Bring a tile of positions [at, at + count) of channels [o, o + block) to the output, those of the band's rows; t is
 * [block][count]. */
static void cv_flush(const cv_job *j, const cv_band *b, ptrdiff_t o, ptrdiff_t block, ptrdiff_t at, ptrdiff_t count,
                     const CV_A *t) {
    ptrdiff_t row = at / b->pitch, col = at % b->pitch, left = b->og - o, done = 0;
    if (left > block) left = block;
    if (row >= b->rows) return;
    if (col + count <= b->ow && count == VQC_VL * CV_WIDE_8 && b->y_col == 1) { /* mostly; the length is a constant */
        for (ptrdiff_t i = 0; i < left; i++)
            CV_STORE_TILE(j, b->group * b->og + o + i, b->y + (o + i) * b->y_plane + row * b->y_row + col, 1,
                          t + i * count, VQC_VL * CV_WIDE_8);
        return;
    }
    while (done < count && row < b->rows) {
        ptrdiff_t len = (col < b->ow ? b->ow : b->pitch) - col;
        if (len > count - done) len = count - done;
        if (col < b->ow)
            for (ptrdiff_t i = 0; i < left; i++)
                cv_store(j, b->group * b->og + o + i, b->y + (o + i) * b->y_plane + row * b->y_row + col * b->y_col,
                         b->y_col, t + i * count + done, len);
        done += len;
        col += len;
        if (col == b->pitch) col = 0, row++;
    }
}

typedef void (*cv_tile)(const CV_E *restrict, ptrdiff_t, ptrdiff_t, const int32_t *restrict, ptrdiff_t,
                        const CV_E *restrict, CV_A *restrict);

/* Elements of one group's weights for `taps` taps of every output channel. */
static ptrdiff_t cv_group_weights(ptrdiff_t og, ptrdiff_t taps) {
    const ptrdiff_t rest = og % 8;
    return taps * (og - rest + (rest > 4 ? 8 : rest > 1 ? 4 : rest));
}

#ifndef CV_TILES_ONLY
/* All output channels of one group over the positions of one band. */
static void cv_run(const cv_job *j, const cv_band *b, CV_E *expanded) {
    const ptrdiff_t positions = (b->rows - 1) * b->pitch + b->ow, taps = b->planes * b->taps;
    CV_A t[CV_TEMP];
    ptrdiff_t at = b->w;
    if (positions <= 0) return;
    for (ptrdiff_t o = 0; o < b->og;) {
        const ptrdiff_t left = b->og - o, block = left > 4 ? 8 : left > 1 ? 4 : 1;
        const ptrdiff_t wide = VQC_VL * (block == 8 ? CV_WIDE_8 : block == 4 ? CV_WIDE_4 : CV_WIDE_1);
        const cv_tile big = block == 8 ? cv_wide_8 : block == 4 ? cv_wide_4 : cv_wide_1;
        const cv_tile small = block == 8 ? cv_tile_8 : block == 4 ? cv_tile_4 : cv_tile_1;
        const CV_E *w = cv_weights(j, at, taps * block, expanded); /* block weights from element `at` on */
        ptrdiff_t p = 0;
        if (positions < VQC_VL) {
            cv_points(b, w, block, positions, t);
            cv_flush(j, b, o, block, 0, positions, t);
            p = positions;
        }
        while (p < positions) { /* the last tile may go back over positions already done: the values are the same */
            const ptrdiff_t rest = positions - p, many = (rest >= wide || (2 * rest > wide && positions >= wide));
            const ptrdiff_t count = many ? wide : VQC_VL;
            if (rest < count) p = positions - count;
#ifdef CV_AHEAD
            if (o == 0) CV_AHEAD(b, p + CV_TILES_AHEAD * count, cv_min(count, positions - p - CV_TILES_AHEAD * count));
#endif
            (many ? big : small)(b->x + p, b->planes, b->plane, b->off, b->taps, w, t);
            cv_flush(j, b, o, block, p, count, t);
            p += count;
        }
        at += taps * block;
        o += block;
    }
}

#ifdef CV_MASKED
#include "vqc_conv_masked.h"
#endif

#ifndef CV_NEAR
#define CV_NEAR(j) 0
#endif

/* The worker's scratch: offsets of the taps, room for one block of weights, the packed planes. */
static CV_E *cv_scratch(const cv_job *j, int worker, ptrdiff_t taps, ptrdiff_t block, int32_t **off, CV_E **expanded) {
    unsigned char *s = j->scratch + (size_t)worker * j->p->scratch;
    *off = (int32_t *)(void *)s;
    s += cv_align((size_t)taps * sizeof(int32_t));
    *expanded = (CV_E *)(void *)s;
    return (CV_E *)(void *)(s + (CV_PAIR == 2 ? cv_align((size_t)block * sizeof(CV_E)) : 0));
}

/* One task of a convolution: index is ((batch * groups + group) * od + depth) * bands + band. */
static void cv_task(void *arg, int index, int worker) {
    const cv_job *j = (const cv_job *)arg;
    const vqc_conv_params *p = j->p;
    const ptrdiff_t bands = (p->oh + p->rows - 1) / p->rows, band = index % bands, cg = p->c / p->groups;
    const ptrdiff_t depth = index / bands % p->od, group = index / bands / p->od % p->groups;
    const ptrdiff_t batch = index / bands / p->od / p->groups, row0 = band * p->rows;
    const ptrdiff_t taps = (ptrdiff_t)p->kh * p->kw, planes = (cg * p->kd + CV_PAIR - 1) / CV_PAIR;
    const ptrdiff_t hw = (ptrdiff_t)p->h * p->w, x0 = (batch * p->c + group * cg) * p->d * hw;
    int32_t *off;
    CV_E *expanded, *packed = cv_scratch(j, worker, taps, planes * taps * 8, &off, &expanded);
    cv_band b;
    b.planes = planes;
    b.taps = taps;
    b.off = off;
    b.rows = cv_min(p->rows, p->oh - row0);
    b.ow = p->ow;
    b.group = group;
    b.og = p->o / p->groups;
    b.w = group * cv_group_weights(b.og, planes * taps);
    b.y_plane = CV_NEAR(j) != 0 ? CV_NEAR(j) : (ptrdiff_t)p->od * p->oh * p->ow;
    b.y_row = p->ow;
    b.y_col = 1;
    b.y = group * b.og * b.y_plane;
    if (CV_NEAR(j) == 0) b.y += batch * p->o * b.y_plane + (depth * p->oh + row0) * p->ow;
    if (cv_direct(j)) {
        off[0] = 0;
        b.x = (const CV_E *)j->x + x0 + depth * hw + row0 * p->w;
        b.plane = p->d * hw;
        b.pitch = p->w;
#ifdef CV_MASKED
        if (j->mask != NULL) {
            const cv_active a = cv_cover(&b, j->mask + (batch * p->oh + row0) * p->ow, 0, 0, (int32_t *)(void *)packed);
            cv_run_masked(j, &b, &a, expanded);
            return;
        }
#endif
        cv_run(j, &b, expanded);
        return;
    }
    const ptrdiff_t reach_h = (p->kh - 1) * (ptrdiff_t)p->dh, reach_w = (p->kw - 1) * (ptrdiff_t)p->dw;
    const ptrdiff_t phases_h = cv_min(p->sh, reach_h + 1), phases_w = cv_min(p->sw, reach_w + 1);
    const ptrdiff_t rows = b.rows + reach_h / p->sh;
    b.pitch = p->ow + reach_w / p->sw;
    b.plane = phases_h * phases_w * rows * b.pitch;
    b.x = packed;
#ifdef CV_MASKED
    cv_active a = {0};
    if (j->mask != NULL) {
        int32_t *room = (int32_t *)(void *)((unsigned char *)packed + cv_align((size_t)(planes * b.plane) * sizeof(CV_E)));
        a = cv_cover(&b, j->mask + (batch * p->oh + row0) * p->ow, reach_h / p->sh, reach_w / p->sw, room);
    }
#endif
    for (ptrdiff_t k = 0; k < taps; k++) {
        const ptrdiff_t y = k / p->kw * p->dh, x = k % p->kw * p->dw;
        off[k] = (int32_t)(((y % p->sh * phases_w + x % p->sw) * rows + y / p->sh) * b.pitch + x / p->sw);
    }
    for (ptrdiff_t v = 0; v < planes; v++) {
        for (ptrdiff_t f = 0; f < phases_h * phases_w; f++) {
            for (ptrdiff_t r = 0; r < rows; r++) {
                const ptrdiff_t y = (row0 + r) * p->sh + f / phases_w - p->ph, left = f % phases_w - p->pw;
                ptrdiff_t from[CV_PAIR]; /* where the row of each input channel of the plane starts, -1: zeros */
                ptrdiff_t channel[CV_PAIR];
                for (ptrdiff_t i = 0; i < CV_PAIR; i++) {
                    const ptrdiff_t virt = v * CV_PAIR + i, c = virt / p->kd; /* (channel, depth of the kernel) */
                    const ptrdiff_t z = depth * p->sd - p->pd + virt % p->kd * p->dd;
                    const int inside = c < cg && z >= 0 && z < p->d && y >= 0 && y < p->h;
                    from[i] = inside ? x0 + (c * p->d + z) * hw + y * p->w : -1;
                    channel[i] = group * cg + (c < cg ? c : 0);
                }
#ifdef CV_MASKED
                for (ptrdiff_t first = 0, end = 0; cv_columns(&a, r, b.pitch, &first, &end);)
                    cv_pack_row(j, packed + v * b.plane + (f * rows + r) * b.pitch + first, from, channel,
                                left + first * p->sw, p->sw, end - first);
#else
                cv_pack_row(j, packed + v * b.plane + (f * rows + r) * b.pitch, from, channel, left, p->sw, b.pitch);
#endif
            }
        }
    }
#ifdef CV_MASKED
    if (j->mask != NULL) {
        cv_run_masked(j, &b, &a, expanded);
        return;
    }
#endif
    cv_run(j, &b, expanded);
}
#endif

#ifndef CV_TASK_ONLY /* who calls cv_task needs nothing that starts tasks */
/* One task of a transposed convolution: index is (batch * groups + group) * bands + band, a band of rows of every phase.
 *
 * Phase (a, e) is the outputs y = a + sh * r, x = e + sw * c: a plain convolution at stride 1 with the taps that hit. */
static void cv_task_transposed(void *arg, int index, int worker) {
    const cv_job *j = (const cv_job *)arg;
    const vqc_conv_params *p = j->p;
    const ptrdiff_t most = (p->oh + p->sh - 1) / p->sh, bands = (most + p->rows - 1) / p->rows;
    const ptrdiff_t row0 = index % bands * p->rows, rows = cv_min(p->rows, most - row0);
    const ptrdiff_t group = index / bands % p->groups, batch = index / bands / p->groups, cg = p->c / p->groups;
    const ptrdiff_t all = (ptrdiff_t)p->kh * p->kw, planes = (cg + CV_PAIR - 1) / CV_PAIR, hw = (ptrdiff_t)p->h * p->w;
    const ptrdiff_t x0 = (batch * p->c + group * cg) * hw, og = p->o / p->groups;
    int32_t *off;
    CV_E *expanded, *packed = cv_scratch(j, worker, all + p->kh + p->kw, planes * all * 8, &off, &expanded);
    int32_t *dy = off + all, *dx = dy + p->kh;
    ptrdiff_t lo_h, hi_h, lo_w, hi_w, w = 0;
    vqc_phase_reach(p->kh, p->sh, p->ph, p->dh, dy, &lo_h, &hi_h);
    vqc_phase_reach(p->kw, p->sw, p->pw, p->dw, dx, &lo_w, &hi_w);
    cv_band b;
    b.x = packed;
    b.planes = planes;
    b.off = off;
    b.pitch = (p->ow + p->sw - 1) / p->sw + hi_w - lo_w;
    b.plane = (rows + hi_h - lo_h) * b.pitch;
    b.group = group;
    b.og = og;
    b.y_plane = (ptrdiff_t)p->oh * p->ow;
    b.y_row = (ptrdiff_t)p->sh * p->ow;
    b.y_col = p->sw;
    for (ptrdiff_t v = 0; v < planes; v++)
        for (ptrdiff_t r = 0; r < rows + hi_h - lo_h; r++) {
            const ptrdiff_t y = row0 + r + lo_h;
            ptrdiff_t from[CV_PAIR], channel[CV_PAIR];
            for (ptrdiff_t i = 0; i < CV_PAIR; i++) {
                const ptrdiff_t c = v * CV_PAIR + i;
                from[i] = c < cg && y >= 0 && y < p->h ? x0 + c * hw + y * p->w : -1;
                channel[i] = group * cg + (c < cg ? c : 0);
            }
            cv_pack_row(j, packed + v * b.plane + r * b.pitch, from, channel, lo_w, 1, b.pitch);
        }
    for (ptrdiff_t a = 0; a < p->sh; a++)
        for (ptrdiff_t e = 0; e < p->sw; e++) {
            const ptrdiff_t ny = vqc_phase_taps(a, p->kh, p->sh, p->ph, p->dh, dy);
            const ptrdiff_t nx = vqc_phase_taps(e, p->kw, p->sw, p->pw, p->dw, dx);
            b.taps = ny * nx;
            for (ptrdiff_t k = 0; k < b.taps; k++) off[k] = (int32_t)((dy[k / nx] - lo_h) * b.pitch + dx[k % nx] - lo_w);
            b.rows = cv_min(rows, (p->oh - a + p->sh - 1) / p->sh - row0);
            b.ow = (p->ow - e + p->sw - 1) / p->sw;
            b.w = w + group * cv_group_weights(og, planes * b.taps);
            b.y = (batch * p->o + group * og) * b.y_plane + (row0 * p->sh + a) * p->ow + e;
            if (b.rows > 0 && b.ow > 0) cv_run(j, &b, expanded);
            w += p->groups * cv_group_weights(og, planes * b.taps);
        }
}

/* Run all tasks of a job. */
static void cv_launch(const vqc_model *m, cv_job *j, int transposed) {
    const vqc_conv_params *p = j->p;
    if (transposed) {
        const int rows = (p->oh + p->sh - 1) / p->sh, bands = (rows + p->rows - 1) / p->rows;
        vqc_for(m, cv_task_transposed, j, p->n * p->groups * bands);
    } else {
        vqc_for(m, cv_task, j, p->n * p->groups * p->od * ((p->oh + p->rows - 1) / p->rows));
    }
}
#endif
