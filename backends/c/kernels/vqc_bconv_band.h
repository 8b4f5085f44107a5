/* What a binary convolution's hook and body share: the job, a band of unpacked rows, and how scratch is divided. */
#ifndef VQC_BCONV_BAND_H
#define VQC_BCONV_BAND_H

#include <string.h>

#include "vqc_bconv.h"

#define BC_BLOCK 8    /* output channels computed together */
#define BC_SEGMENT 64 /* most positions computed together */

#ifdef __GNUC__
#define BC_ALIGNED __attribute__((aligned(64)))
#define BC_INLINE inline __attribute__((always_inline))
#define BC_NOINLINE __attribute__((noinline))
#define BC_PREFETCH(p) __builtin_prefetch(p)
#define BC_UNROLL _Pragma("GCC unroll 16")
#else
#define BC_ALIGNED
#define BC_INLINE inline
#define BC_NOINLINE
#define BC_PREFETCH(p) (void)(p)
#define BC_UNROLL
#endif

typedef struct bc_job {
    const vqc_bconv_params *p;
    const uint32_t *x, *w;
    const int32_t *base;
    const uint8_t *classes;
    const float *scale, *bias, *residual, *slope, *tau; /* float result, or */
    const int32_t *threshold;
    const uint8_t *flip;
    float *y;
    uint32_t *bits;
    unsigned char *scratch;
    const uint8_t *mask; /* positions that count, [n][oh][ow]; NULL: all */
    const vqc_rows *rest; /* instead of the float epilogue, where the mask keeps a position; elsewhere y is as `start` */
    vqc_row pieces;
    const void *const *in;
    const float *start;
} bc_job;

/* What is added to a channel of the result: [oh][ow], NULL where nothing is. */
static inline const float *bc_residual(const bc_job *j, ptrdiff_t image, ptrdiff_t o) {
    const ptrdiff_t channels = j->p->residuals, plane = (ptrdiff_t)j->p->oh * j->p->ow;
    const ptrdiff_t from = channels == j->p->o ? o : o % channels; /* seldom divided */
    return j->residual == NULL ? NULL : j->residual + (image * channels + from) * plane;
}

/* What bc_sums reads: channel j of the block at column i has
 *   count = sum over steps k of differing bits of x[off[k] + i ..] and w's channel j, and
 *   acc   = base[j * base_step + column[i]] - 2 * count   when padded taps were counted,
 *   acc   = inside[i] - 2 * count                         when they were not. */
typedef struct bc_band {
    const BC_E *x;       /* the output row's first position */
    ptrdiff_t line;      /* elements between the BC_PLANES rows of one step */
    const int32_t *off;  /* where each step's input starts */
    ptrdiff_t steps;     /* words times taps */
    const void *w;       /* the block's weights, as bc_weights made them */
    const int32_t *base; /* of the row's class */
    ptrdiff_t base_step; /* between channels */
    const int32_t *column, *inside; /* class, and channels times taps inside, of every column */
    const struct bc_limits *limits; /* of the block and the row, for hooks with BC_OWN_BITS */
    struct bc_place *place; /* of the block, for hooks with BC_OWN_FLOATS; NULL: the epilogue is bc_finish */
    const int32_t *differ; /* of every column what bc_differ makes, for hooks with BC_PAIRS */
} bc_band;

/* Thresholds of a block as hooks with BC_OWN_BITS take them: bc_limit fills `start`, for a row's class of padding. */
typedef struct bc_limits {
    BC_ALIGNED int32_t start[BC_BLOCK][16]; /* of the counts, by column class */
    int32_t threshold[BC_BLOCK];
    int32_t turned; /* bits 0 to 7: channels whose bit is turned round */
} bc_limits;

/* Sizes of a band in elements, and where scratch is divided (in bytes). */
typedef struct bc_shape {
    ptrdiff_t words, steps, in_rows, phases, pitch, line, columns;
    ptrdiff_t full;               /* words that hold 32 channels, or whose taps share nothing */
    ptrdiff_t bits, taps, shared; /* bits of a tap in a word that taps share, taps in such a word, and how many there are */
    size_t prepared, differ, input;
} bc_shape;

static inline ptrdiff_t bc_up(ptrdiff_t size, ptrdiff_t to) { return (size + to - 1) / to * to; }

/* Elements of a band's unpacked input: its words, and those that taps share. */
static inline ptrdiff_t bc_elements(const bc_shape *s) {
    return (s->words + s->shared) * s->in_rows * BC_PLANES * s->line;
}

static inline bc_shape bc_shape_of(const vqc_bconv_params *p) {
    bc_shape s;
    const ptrdiff_t reach = (ptrdiff_t)(p->kw - 1) * p->dw;
    s.words = (p->c + 31) / 32;
    const ptrdiff_t left = p->c % 32, all = (ptrdiff_t)p->kh * p->kw;
    s.bits = bc_up(left, 4);
    s.taps = left == 0 ? 1 : 32 / s.bits < all ? 32 / s.bits : all;
    s.shared = s.taps > 1 ? (all + s.taps - 1) / s.taps : 0;
    s.full = s.words - (s.shared > 0);
    s.steps = s.full * all + s.shared;
    s.in_rows = (ptrdiff_t)(p->rows - 1) * p->sh + (ptrdiff_t)(p->kh - 1) * p->dh + 1;
    s.phases = p->sw < reach + 1 ? p->sw : reach + 1;
    s.columns = bc_up(p->ow, BC_LANES);
    s.pitch = bc_up(s.columns + reach / p->sw, 16);
    s.line = s.phases * s.pitch;
    s.prepared = (size_t)bc_up((s.steps + 3 * s.columns) * 4, 64);
    s.differ = s.prepared + (size_t)bc_up(BC_PREPARED(s.steps), 64);
    s.input = s.differ;
#ifdef BC_PAIRS
    s.input += (size_t)bc_up((ptrdiff_t)p->rows * s.columns * 4, 64);
#endif
    return s;
}

#endif
