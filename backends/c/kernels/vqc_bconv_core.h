/* The body of every binary convolution: unpacked bands, blocks, epilogues. vqc_bconv.h has the meaning and the hook. */
#include <string.h>

#include "vqc_bconv_band.h"
#include "vqc_simd.h"

#if VQC_VL == 1
#define BC_ALL(x) (x)
#define BC_ALL_INT(x) (x)
#define BC_FLOAT(v) ((float)(v))
#define BC_LESS(a, b) (-(int32_t)((a) < (b)))
#define BC_SELECT(mask, a, b) (((const float[2]){b, a})[(mask) & 1]) /* signs are random: no branch */
#else
#define BC_ALL(x) ((x) - (vqc_vf){0}) /* x - 0 is x, -0 and NaN included */
#define BC_ALL_INT(x) ((x) + (vqc_vi){0})
#define BC_FLOAT(v) __builtin_convertvector(v, vqc_vf)
#define BC_LESS(a, b) ((vqc_vi)((a) < (b)))
#define BC_SELECT(mask, a, b) ((vqc_vf)(((vqc_vi)(a) & (mask)) | ((vqc_vi)(b) & ~(mask))))
#endif
#define BC_PIECE (BC_LANES < 32 ? BC_LANES < 8 ? 8 : BC_LANES : 32) /* positions that are left out together */
#define BC_BIT(o) ((int32_t)((uint32_t)1 << ((o) & 31)))

/* Where a tap's input starts among the rows of a word. */
static inline ptrdiff_t bc_tap(const vqc_bconv_params *p, const bc_shape *s, ptrdiff_t tap) {
    const ptrdiff_t ky = tap / p->kw, kx = tap % p->kw;
    return ky * p->dh * BC_PLANES * s->line + kx * p->dw % p->sw * s->pitch + kx * p->dw / p->sw;
}

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
    const ptrdiff_t rows = p->oh - first < p->rows ? p->oh - first : p->rows, line = BC_PLANES * s->line;
    const BC_E *last = e - s->in_rows * line; /* the word whose bits are put together; e stands behind it */
    for (ptrdiff_t t = 0; t < s->shared * s->taps && t < (ptrdiff_t)p->kh * p->kw; t++) {
        BC_E *to = e + t / s->taps * s->in_rows * line;
        const BC_E *from = last + bc_tap(p, s, t);
        for (ptrdiff_t r = 0; r < rows; r++, to += p->sh * line, from += p->sh * line)
            bc_join(to, from, s->line, t % s->taps, s->bits, s->columns);
    }
}

/* Where each step's input starts, and the columns' classes and taps inside. */
static void bc_tables(const bc_job *j, const bc_shape *s, int32_t *off, int32_t *column, int32_t *taps) {
    const vqc_bconv_params *p = j->p;
    const ptrdiff_t word = s->in_rows * BC_PLANES * s->line;
    for (ptrdiff_t g = 0; g < s->full; g++)
        for (ptrdiff_t t = 0; t < (ptrdiff_t)p->kh * p->kw; t++) *off++ = (int32_t)(g * word + bc_tap(p, s, t));
    for (ptrdiff_t g = 0; g < s->shared; g++) *off++ = (int32_t)((s->words + g) * word);
    for (ptrdiff_t i = 0; i < s->columns; i++) {
        column[i] = i < p->ow ? j->classes[p->oh + i] : 0;
        taps[i] = 0;
        for (ptrdiff_t kx = 0; kx < p->kw; kx++) {
            const ptrdiff_t x = i * p->sw - p->pw + kx * p->dw;
            taps[i] += x >= 0 && x < p->w;
        }
    }
}

/* A vector's first `some` lanes from or to memory. */
static BC_INLINE vqc_vf bc_load(const float *from, ptrdiff_t some) {
    float lanes[VQC_VL] = {0};
    if (some >= VQC_VL) return *(const vqc_vf_mem *)(const void *)from;
    for (ptrdiff_t e = 0; e < some; e++) lanes[e] = from[e];
    return *(const vqc_vf_mem *)(const void *)lanes;
}

static BC_INLINE void bc_store(float *to, vqc_vf v, ptrdiff_t some) {
    float lanes[VQC_VL];
    if (some >= VQC_VL) {
        *(vqc_vf_mem *)(void *)to = v;
        return;
    }
    *(vqc_vf_mem *)(void *)lanes = v;
    for (ptrdiff_t e = 0; e < some; e++) to[e] = lanes[e];
}

/* The float epilogue of one channel: n sums, the first one at y[at]; marks the channel's bit. `residual`: what is added,
 * or NULL. `keep`, unless NULL: -1 where the mask keeps a position, 0 where it does not. */
static BC_INLINE void bc_finish(const bc_job *j, ptrdiff_t o, ptrdiff_t at, ptrdiff_t n, int act, const int32_t *t,
                                const float *residual, const int32_t *keep, int32_t *word) {
    float *y = j->y != NULL ? j->y + at : NULL;
    const int sign = j->bits != NULL;
    const float bias = j->bias != NULL ? j->bias[o] : -0.0f; /* x + -0 is x, for every x */
    const vqc_vf scales = BC_ALL(j->scale[o]), biases = BC_ALL(bias), zero = BC_ALL(0.0f), one = BC_ALL(1.0f);
    const vqc_vf slopes = BC_ALL(act == VQC_BACT_PRELU ? j->slope[o] : 0.0f);
    const vqc_vf by = BC_ALL(j->p->residual_scale);
    const vqc_vf taus = BC_ALL(sign ? j->tau[j->p->taus > 1 ? o : 0] : 0.0f);
    for (ptrdiff_t i = 0; i < n; i += VQC_VL) {
        vqc_vf v = BC_FLOAT(*(const vqc_vi_mem *)(const void *)(t + i)) * scales + biases;
        if (residual != NULL) v += bc_load(residual + i, n - i) * by;
        if (act == VQC_BACT_PRELU) v *= BC_SELECT(BC_LESS(zero, v), one, slopes); /* v * 1 is v */
        if (act == VQC_BACT_RELU) v = BC_SELECT(BC_LESS(v, zero), zero, v);
        if (keep != NULL) v = BC_SELECT(*(const vqc_vi_mem *)(const void *)(keep + i), v, zero);
        if (y != NULL) bc_store(y + i, v, n - i);
        if (sign) *(vqc_vi_mem *)(void *)(word + i) |= BC_LESS(v, taus) & BC_BIT(o);
    }
}

/* The same for a binary result, all channels of a block: a bit is 1 where acc < threshold, turned round where flip is
 * set. */
static BC_INLINE void bc_decide(const bc_job *j, ptrdiff_t o, ptrdiff_t channels, ptrdiff_t n,
                                int32_t t[BC_BLOCK][BC_SEGMENT], int32_t *word) {
    int32_t threshold[BC_BLOCK], turned = 0;
    for (ptrdiff_t c = 0; c < BC_BLOCK; c++) {
        threshold[c] = c < channels ? j->threshold[o + c] : INT32_MIN; /* nothing is below that */
        if (c < channels && j->flip[o + c]) turned |= BC_BIT(o + c);
    }
    for (ptrdiff_t i = 0; i < n; i += VQC_VL) {
        vqc_vi bits = BC_ALL_INT(turned);
        BC_UNROLL for (ptrdiff_t c = 0; c < BC_BLOCK; c++) {
            const vqc_vi acc = *(const vqc_vi_mem *)(const void *)(t[c] + i);
            bits ^= BC_LESS(acc, BC_ALL_INT(threshold[c])) & BC_BIT(o + c);
        }
        *(vqc_vi_mem *)(void *)(word + i) = bits;
    }
}

#ifdef BC_OWN_BITS
/* The thresholds of a block of channels, in 16 bits as sums are. What is above all sums is below all of them, turned round.
 * Channels that do not exist have no bit. */
static void bc_thresholds(const bc_job *j, ptrdiff_t o, bc_limits *limits) {
    limits->turned = 0;
    for (ptrdiff_t c = 0; c < BC_BLOCK; c++) {
        const int32_t given = o + c < j->p->o ? j->threshold[o + c] : INT16_MIN;
        limits->threshold[c] = given < INT16_MIN || given > INT16_MAX ? INT16_MIN : given;
        if (o + c < j->p->o && !j->flip[o + c] != !(given > INT16_MAX)) limits->turned |= 1 << c;
    }
}
#endif

/* n <= BC_SEGMENT positions of an output row from column `col` on, for one block of channels from o on; b->x, b->base
 * and b->inside must stand at that row already. */
static BC_INLINE void bc_row(const bc_job *j, const bc_band *b, ptrdiff_t image, ptrdiff_t o, ptrdiff_t row,
                             ptrdiff_t col, ptrdiff_t n, int masked) {
    const vqc_bconv_params *p = j->p;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow, at = row * p->ow + col;
    const ptrdiff_t channels = p->o - o < BC_BLOCK ? p->o - o : BC_BLOCK;
#ifdef BC_OWN_BITS
    if (j->threshold != NULL) {
        bc_bits(b, o, col, n, j->bits + (image * ((p->o + 31) / 32) + o / 32) * plane + at);
        return;
    }
#endif
#ifdef BC_OWN_FLOATS
    if (b->place != NULL) {
        bc_block(j, b, image, o, at, col, n, b->place);
        return;
    }
#endif
    BC_ALIGNED int32_t t[BC_BLOCK][BC_SEGMENT];
    BC_ALIGNED int32_t word[BC_SEGMENT] = {0};
    if (j->residual != NULL) {
        for (ptrdiff_t i = 0; i < channels; i++) {
            const float *next = bc_residual(j, image, o + i) + at;
            for (ptrdiff_t e = 0; e < n; e += 16) BC_PREFETCH(next + e);
        }
    }
    BC_ALIGNED int32_t keep[BC_SEGMENT] = {0};
    if (masked) {
        const uint8_t *mask = j->mask + image * plane + at;
        for (ptrdiff_t i = 0; i < n; i++) keep[i] = -(int32_t)(mask[i] != 0);
    }
    bc_sums(b, col, n, t[0], BC_SEGMENT);
    if (j->threshold != NULL) {
        bc_decide(j, o, channels, n, t, word);
    } else {
        for (ptrdiff_t i = 0; i < channels; i++) {
            const ptrdiff_t from = (image * p->o + o + i) * plane + at;
            const float *added = j->residual != NULL ? bc_residual(j, image, o + i) + at : NULL;
            if (masked) bc_finish(j, o + i, from, n, VQC_BACT_NONE, t[i], added, keep, word);
            else if (p->act == VQC_BACT_PRELU) bc_finish(j, o + i, from, n, VQC_BACT_PRELU, t[i], added, NULL, word);
            else if (p->act == VQC_BACT_RELU) bc_finish(j, o + i, from, n, VQC_BACT_RELU, t[i], added, NULL, word);
            else bc_finish(j, o + i, from, n, VQC_BACT_NONE, t[i], added, NULL, word);
        }
    }
    if (j->bits != NULL) {
        uint32_t *bits = j->bits + (image * ((p->o + 31) / 32) + o / 32) * plane + at;
        if (o % 32 == 0) {
            for (ptrdiff_t i = 0; i < n; i++) bits[i] = (uint32_t)word[i];
        } else {
            for (ptrdiff_t i = 0; i < n; i++) bits[i] |= (uint32_t)word[i];
        }
    }
}

/* Channels times taps inside for every column of a row; `known`: the rows of taps inside it was last computed for. */
static void bc_inside(const vqc_bconv_params *p, const bc_shape *s, ptrdiff_t row, const int32_t *taps, int32_t *known,
                      int32_t *inside) {
    int32_t rows = 0;
#ifdef BC_COUNTS_PADDING /* nobody asks */
    return;
#endif
    for (ptrdiff_t ky = 0; ky < p->kh; ky++) {
        const ptrdiff_t y = row * p->sh - p->ph + ky * p->dh;
        rows += y >= 0 && y < p->h;
    }
    if (rows == *known) return;
    *known = rows;
    for (ptrdiff_t i = 0; i < s->columns; i++) inside[i] = p->c * rows * taps[i];
}

/* Of n marks: 0 if none is set, 2 if all are, else 1. */
static int bc_marks(const uint8_t *mask, ptrdiff_t n) {
    uint64_t some = 0, all = 0x0101010101010101u;
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint64_t eight;
        memcpy(&eight, mask + i, 8);
        some |= eight;
        all &= eight;
    }
    for (; i < n; i++) {
        some |= mask[i];
        all &= mask[i] ? all : 0;
    }
    return some == 0 ? 0 : all == 0x0101010101010101u ? 2 : 1;
}

/* A row under a mask, zero so far: pieces with a mark are computed; all of them unless there are few. Lengths are
 * constants, so that loops are unrolled. */
static void bc_row_masked(const bc_job *j, const bc_band *b, ptrdiff_t image, ptrdiff_t o, ptrdiff_t row, int few) {
    const vqc_bconv_params *p = j->p;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow, at = row * p->ow;
    const uint8_t *mask = j->mask + image * plane + at;
    ptrdiff_t from = 0;
    while (from < p->ow) {
        ptrdiff_t end = from;
        while (end + BC_PIECE <= p->ow && end < from + BC_SEGMENT && (!few || bc_marks(mask + end, BC_PIECE) != 0))
            end += BC_PIECE;
        const ptrdiff_t n = end - from;
        if (n == 0 && from + BC_PIECE <= p->ow) {
            from += BC_PIECE;
            continue;
        }
        if (n == BC_SEGMENT) bc_row(j, b, image, o, row, from, BC_SEGMENT, 1);
        else if (n == BC_SEGMENT / 2) bc_row(j, b, image, o, row, from, BC_SEGMENT / 2, 1);
        else if (n == BC_PIECE) bc_row(j, b, image, o, row, from, BC_PIECE, 1);
        else if (n != 0) bc_row(j, b, image, o, row, from, n, 1);
        else { /* the row's end */
            end = p->ow;
            bc_row(j, b, image, o, row, from, end - from, 1);
        }
        from = end;
    }
}

/* Whether leaving pieces out pays in rows [first, last): a piece by itself costs about 8/5 of its share of a segment. */
static int bc_few(const bc_job *j, ptrdiff_t image, ptrdiff_t first, ptrdiff_t last) {
    const vqc_bconv_params *p = j->p;
    ptrdiff_t pieces = 0, marked = 0;
    for (ptrdiff_t row = first; row < last; row++)
        for (ptrdiff_t col = 0; col + BC_PIECE <= p->ow; col += BC_PIECE, pieces++)
            marked += bc_marks(j->mask + (image * p->oh + row) * p->ow + col, BC_PIECE) != 0;
    return 8 * marked < 5 * pieces;
}

#include "vqc_bconv_rows.h"
#ifdef BC_OWN_MASK
#include "vqc_bconv_chosen.h"
#endif

static void bc_task(void *arg, int index, int worker) {
    const bc_job *j = (const bc_job *)arg;
    const vqc_bconv_params *p = j->p;
    const bc_shape s = bc_shape_of(p);
#ifdef BC_OWN_TASK
    if (j->mask == NULL && bc_own_task(j, index, worker)) return;
#endif
    const ptrdiff_t bands = (p->oh + p->rows - 1) / p->rows, image = index / bands, first = index % bands * p->rows;
    const ptrdiff_t last = first + p->rows < p->oh ? first + p->rows : p->oh;
    unsigned char *scratch = j->scratch + (size_t)worker * p->scratch;
    int32_t *off = (int32_t *)(void *)scratch, *column = off + s.steps, *taps = column + s.columns;
    int32_t *inside = taps + s.columns;
    unsigned char *prepared = scratch + s.prepared;
    BC_E *e = (BC_E *)(void *)(scratch + s.input);
    const ptrdiff_t classes = (ptrdiff_t)p->row_classes * p->column_classes;
    bc_band b = {e, s.line, off, s.steps, NULL, NULL, classes, column, inside, NULL, NULL, NULL};
    const ptrdiff_t positions = (last - first) * p->ow;
    const int marks = j->mask == NULL ? 2 : bc_marks(j->mask + (image * p->oh + first) * p->ow, positions);
#ifdef BC_OWN_MASK
    int compact = 0;
    const int packed = marks == 1 && (j->rest != NULL ? bc_chooses(j, &b, image, first, last, &compact)
                                                      : bc_packs(j, &b, image, first, last));
#else
    const int packed = 0;
#endif
    const int few = marks == 1 && !packed && j->rest == NULL && bc_few(j, image, first, last);
    if (j->rest != NULL) bc_begin(j, image, first, last);
    else if (marks == 0 || few)
        for (ptrdiff_t o = 0; o < p->o; o++)
            memset(j->y + ((image * p->o + o) * p->oh + first) * p->ow, 0, (size_t)positions * sizeof *j->y);
    if (marks == 0) return;
    bc_tables(j, &s, off, column, taps);
    bc_unpack(j, &s, image, first, e);
#ifdef BC_OWN_MASK
    if (packed) {
        int32_t *kept = (int32_t *)(void *)(e + bc_up(bc_elements(&s), 16));
        uint32_t *room = (uint32_t *)(void *)(kept + bc_up(s.steps, 16));
        if (j->rest != NULL) bc_chosen_band(j, &s, &b, image, first, last, compact, kept, room, prepared);
        else bc_masked_band(j, &s, &b, image, first, last, kept, room, prepared);
        return;
    }
#endif
    bc_prepare(prepared);
#ifdef BC_PAIRS
    int32_t *differ = (int32_t *)(void *)(scratch + s.differ);
    for (ptrdiff_t row = 0; row < last - first; row++) {
        b.x = e + row * p->sh * BC_PLANES * s.line;
        bc_differ(&b, 0, s.columns, differ + row * s.columns);
    }
#endif
    int32_t rows_inside = -1;
#ifdef BC_OWN_BITS
    bc_limits limits;
    b.limits = &limits;
#endif
#ifdef BC_OWN_FLOATS
    bc_place place;
#endif
    for (ptrdiff_t o = 0; o < p->o; o += BC_BLOCK) {
        b.w = bc_weights(j->w + o * s.steps, s.steps, prepared);
#ifdef BC_OWN_BITS
        if (j->threshold != NULL) bc_thresholds(j, o, &limits);
#endif
#ifdef BC_OWN_FLOATS
        b.place = bc_place_block(j, image, o, &place) ? &place : NULL;
#endif
        for (ptrdiff_t row = first; row < last; row++) {
            bc_inside(p, &s, row, taps, &rows_inside, inside);
            b.x = e + (row - first) * p->sh * BC_PLANES * s.line;
            const int32_t *base = j->base + o * b.base_step + j->classes[row] * p->column_classes;
#ifdef BC_OWN_BITS
            const int same = b.base == base;
#endif
            b.base = base;
#ifdef BC_OWN_BITS
            if (j->threshold != NULL && !same) bc_limit(&b, &limits);
#endif
#ifdef BC_PAIRS
            b.differ = differ + (row - first) * s.columns;
#endif
            ptrdiff_t col = 0;
            if (j->rest != NULL) {
                bc_row_rest(j, &b, image, o, row, marks == 2);
                continue;
            }
            if (marks == 1) {
                bc_row_masked(j, &b, image, o, row, few);
                continue;
            }
            for (; col + BC_SEGMENT <= p->ow; col += BC_SEGMENT) bc_row(j, &b, image, o, row, col, BC_SEGMENT, 0);
            if (p->ow - col == BC_SEGMENT / 2) bc_row(j, &b, image, o, row, col, BC_SEGMENT / 2, 0);
            else if (col < p->ow) bc_row(j, &b, image, o, row, col, p->ow - col, 0);
        }
    }
}

static void bc_launch(const vqc_model *m, bc_job *j) {
    const vqc_bconv_params *p = j->p;
    vqc_for(m, bc_task, j, p->n * ((p->oh + p->rows - 1) / p->rows));
}
