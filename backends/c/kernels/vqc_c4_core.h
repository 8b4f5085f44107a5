/* What the c4 convolutions share: the packed band, and the way of sums through the row program. */
#ifndef VQC_C4_CORE_H
#define VQC_C4_CORE_H

#include <string.h>

#include "vqc_c4.h"
#include "vqc_simd.h"

#define VQC_ROW_WORDS 4     /* outputs in the layout c4, at most */

#define C4_RUN 384 /* positions that go through the row program at once: 8 channels of sums stay in the first cache */

typedef struct c4_job {
    const vqc_qconv_c4_params *p;
    const uint32_t *x;
    const int8_t *w;
    const int32_t *offset;
    const uint32_t *zero;
    const void *const *in;
    void *const *out;
    unsigned char *scratch;
} c4_job;

/* Input rows of a task. Output position (r, c) of tap k reads x[plane * q + off[k] + r * pitch + c] for channels 4q to
 * 4q + 3: rows and columns are one axis of positions, and pitch - ow of them between rows belong to nobody. */
typedef struct c4_band {
    const uint32_t *x;
    ptrdiff_t plane, pitch, ow, rows;
    const int32_t *off;
    ptrdiff_t taps;
    ptrdiff_t first; /* output position of (0, 0) */
} c4_band;

static inline ptrdiff_t c4_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static inline size_t c4_align(size_t n) { return (n + 63) / 64 * 64; }

/* a + b modulo 2^32, as vectors add: sums over x before its zero point is taken out may pass what 32 bits hold. */
static inline int32_t c4_add(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }

/* Words from one place to another; rows are short, so that a call of memcpy would cost more than they do. */
static inline void c4_copy(uint32_t *restrict dst, const uint32_t *restrict src, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + VQC_VL <= n; i += VQC_VL)
        *(vqc_vi_mem *)(void *)(dst + i) = *(const vqc_vi_mem *)(const void *)(src + i);
    if (i < n && n >= VQC_VL) { /* the last vector, moved back */
        *(vqc_vi_mem *)(void *)(dst + n - VQC_VL) = *(const vqc_vi_mem *)(const void *)(src + n - VQC_VL);
        return;
    }
    for (; i < n; i++) dst[i] = src[i];
}

/* One row into words: column left + t * step for every t in [0, count), `zero` outside the row. src NULL: all outside. */
static inline void c4_pack_row(uint32_t *restrict dst, const uint32_t *src, ptrdiff_t w, ptrdiff_t left, ptrdiff_t step,
                               ptrdiff_t count, uint32_t zero) {
    ptrdiff_t lo = left < 0 ? (-left + step - 1) / step : 0, hi = left < w ? (w - 1 - left) / step + 1 : 0;
    if (hi > count) hi = count;
    if (lo > hi || src == NULL) lo = hi = 0;
    for (ptrdiff_t t = 0; t < lo; t++) dst[t] = zero;
    for (ptrdiff_t t = hi; t < count; t++) dst[t] = zero;
    if (lo == hi) return;
    const uint32_t *restrict s = src + left + lo * step;
    if (step == 1)
        c4_copy(dst + lo, s, hi - lo);
    else if (step == 2)
        for (ptrdiff_t t = 0; t < hi - lo; t++) dst[lo + t] = s[2 * t];
    else
        for (ptrdiff_t t = 0; t < hi - lo; t++) dst[lo + t] = s[step * t];
}

/* The band of `rows` output rows from row0 on, planes [q0, q0 + planes) of the input; packed into `room` unless the
 * input can be read in place. */
static inline c4_band c4_pack(const c4_job *j, ptrdiff_t batch, ptrdiff_t q0, ptrdiff_t planes, ptrdiff_t row0,
                              int32_t *off, uint32_t *room) {
    const vqc_qconv_c4_params *p = j->p;
    const ptrdiff_t hw = (ptrdiff_t)p->h * p->w, quads = (p->c + 3) / 4;
    const uint32_t *x = j->x + (batch * quads + q0) * hw;
    c4_band b;
    b.rows = c4_min(p->rows, p->oh - row0);
    b.ow = p->ow;
    b.off = off;
    b.taps = (ptrdiff_t)p->kh * p->kw;
    b.first = row0 * p->ow;
    if (b.taps == 1 && p->sh == 1 && p->sw == 1 && p->ph == 0 && p->pw == 0) {
        off[0] = 0;
        b.x = x + row0 * p->w;
        b.plane = hw;
        b.ow = b.pitch = b.rows * p->w; /* all rows are one */
        b.rows = 1;
        return b;
    }
    const ptrdiff_t reach_h = (p->kh - 1) * (ptrdiff_t)p->dh, reach_w = (p->kw - 1) * (ptrdiff_t)p->dw;
    const ptrdiff_t phases_h = c4_min(p->sh, reach_h + 1), phases_w = c4_min(p->sw, reach_w + 1);
    const ptrdiff_t rows = b.rows + reach_h / p->sh;
    b.pitch = p->ow + reach_w / p->sw;
    b.plane = phases_h * phases_w * rows * b.pitch;
    b.x = room;
    for (ptrdiff_t k = 0; k < b.taps; k++) {
        const ptrdiff_t y = k / p->kw * p->dh, c = k % p->kw * p->dw;
        off[k] = (int32_t)(((y % p->sh * phases_w + c % p->sw) * rows + y / p->sh) * b.pitch + c / p->sw);
    }
    for (ptrdiff_t q = 0; q < planes; q++)
        for (ptrdiff_t f = 0; f < phases_h * phases_w; f++)
            for (ptrdiff_t r = 0; r < rows; r++) {
                const ptrdiff_t y = (row0 + r) * p->sh + f / phases_w - p->ph;
                const uint32_t *src = y >= 0 && y < p->h ? x + q * hw + y * p->w : NULL;
                c4_pack_row(room + q * b.plane + (f * rows + r) * b.pitch, src, p->w, f % phases_w - p->pw, p->sw,
                            b.pitch, j->zero[q0 + q]);
            }
    return b;
}

/* Four rows of levels, each in [0, 255], become one row of words. */
static inline void c4_words(uint32_t *restrict y, const int32_t (*restrict rows)[C4_RUN], ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++)
        y[i] = (uint32_t)rows[0][i] | (uint32_t)rows[1][i] << 8 | (uint32_t)rows[2][i] << 16 | (uint32_t)rows[3][i] << 24;
}

/* The row program on four channels from `channel` on, positions [at, at + n), n <= C4_RUN. sums: [4][pitch], or NULL for
 * a program without sums. `channels`: all channels of the output. */
static inline void c4_rest(const vqc_rows *e, const void *const *in, void *const *out, ptrdiff_t batch,
                           ptrdiff_t channel, ptrdiff_t channels, ptrdiff_t at, ptrdiff_t n, const int32_t *sums,
                           ptrdiff_t pitch) {
    int32_t bytes[VQC_ROW_WORDS][4][C4_RUN];
    const void *from[VQC_ROW_OPERANDS];
    void *to[VQC_ROW_OPERANDS];
    const int first = sums != NULL;
    for (int r = 0; r < 4; r++) {
        const ptrdiff_t c = channel + r;
        if (c >= channels) {
            for (int i = 0; i < VQC_ROW_WORDS && e->words >> i != 0; i++) memset(bytes[i][r], 0, (size_t)n * sizeof bytes[i][r][0]);
            continue;
        }
        if (first) from[0] = sums + r * pitch;
        for (int i = 0; i < e->inputs; i++) {
            const vqc_row_operand *o = &e->operands[i];
            from[first + i] = (const unsigned char *)in[i] + batch * o->batch + c * o->channel + at * o->position;
        }
        for (int i = 0; i < e->outputs; i++) {
            const vqc_row_operand *o = &e->operands[e->inputs + i];
            to[i] = e->words >> i & 1 ? (void *)bytes[i][r]
                                      : (unsigned char *)out[i] + batch * o->batch + c * o->channel + at * o->position;
        }
        e->row(e->constants, from, to, n);
    }
    for (int i = 0; e->words >> i != 0; i++) {
        if (!(e->words >> i & 1)) continue;
        const vqc_row_operand *o = &e->operands[e->inputs + i];
        unsigned char *y = (unsigned char *)out[i] + batch * o->batch + channel / 4 * o->channel + at * o->position;
        c4_words((uint32_t *)(void *)y, (const int32_t(*)[C4_RUN])bytes[i], n);
    }
}

/* Positions that are worked on at once, so that no rest is short: a multiple of `step`, C4_RUN at most. */
static inline ptrdiff_t c4_run(ptrdiff_t positions, ptrdiff_t step) {
    const ptrdiff_t most = C4_RUN / step * step, runs = (positions + most - 1) / most;
    const ptrdiff_t each = (positions + runs - 1) / runs;
    return (each + step - 1) / step * step;
}

/* Sums of `count` positions of a band from position `at` on, t: [channels][C4_RUN], through the row program. */
static inline void c4_flush(const c4_job *j, const c4_band *b, ptrdiff_t batch, ptrdiff_t channel, ptrdiff_t channels,
                            ptrdiff_t at, ptrdiff_t count, const int32_t *t) {
    const ptrdiff_t row = at / b->pitch, col = at % b->pitch;
    ptrdiff_t kept = count, begin = row * b->ow + (col < b->ow ? col : b->ow);
    int32_t closed[8 * C4_RUN];
    if (b->pitch != b->ow) { /* close the gaps between rows: what remains is one run of the output */
        for (ptrdiff_t o = 0; o < channels; o++) {
            uint32_t *to = (uint32_t *)(closed + o * C4_RUN);
            ptrdiff_t c = col, done = 0;
            kept = 0;
            while (done < count) {
                const ptrdiff_t len = c4_min((c < b->ow ? b->ow : b->pitch) - c, count - done);
                if (c < b->ow) {
                    c4_copy(to + kept, (const uint32_t *)(t + o * C4_RUN + done), len);
                    kept += len;
                }
                done += len;
                c += len;
                if (c == b->pitch) c = 0;
            }
        }
        t = closed;
    }
    if (kept == 0) return;
    for (ptrdiff_t o = 0; o < channels; o += 4)
        c4_rest(&j->p->rest, j->in, j->out, batch, channel + o, j->p->o, b->first + begin, kept, t + o * C4_RUN, C4_RUN);
}

#endif
