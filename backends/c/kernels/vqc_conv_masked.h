/* Convolutions under a mask: only positions where the mask is true are computed, the others are set to the inactive
 * value. Included by vqc_conv_core.h for the files that define CV_MASKED and the functions declared below.
 *
 * How it works. The active positions of a band are covered, from the first one on, by pieces of CV_PIECE neighbours. A
 * tile takes pieces from anywhere, CV_PIECES in each vector, so the work follows the mask and not the picture, and only
 * the columns that pieces read are packed. Where pieces would cover almost all of a band, the dense code runs instead
 * and the inactive positions are cleared behind it. Kept positions get the same sums as without a mask.
 */
#if VQC_VL == 16
#include <immintrin.h>
#define CV_PIECE 8
#define CV_PIECES 2
static inline CV_V cv_join(const CV_E *const *p, ptrdiff_t at) {
    const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)(p[0] + at)));
    return (CV_V)_mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i *)(const void *)(p[1] + at)), 1);
}
#else
#define CV_PIECE VQC_VL
#define CV_PIECES 1
static inline CV_V cv_join(const CV_E *const *p, ptrdiff_t at) { return *(const CV_M *)(p[0] + at); }
#endif

#define CV_SPREAD_WIDE VQC_TILE_VECTORS
#define CV_MOST 64 /* at least as many positions as a tile or a group (vqc_conv_gathered.h) has */
#define CV_ROOM 64
#define CV_GATHER_CHANNELS 32 /* output channels of a group from which on gathering may pay */

/* Outputs of a tile before they go to their places, as float or as u8. */
typedef union cv_room {
    float f[8 * CV_MOST];
    uint8_t b[8 * CV_MOST];
} cv_room;

static cv_job cv_redirect(const cv_job *j, cv_room *room); /* a copy of the job whose outputs go to `room` */
/* A piece of outputs from room[from] to y[at], the inactive value where its mask is 0. */
static inline void cv_keep(const cv_job *j, ptrdiff_t at, const cv_room *room, ptrdiff_t from, const uint8_t *mask);
/* n outputs from room[from] to y[at]; n is at most CV_COPY. */
static inline void cv_put(const cv_job *j, ptrdiff_t at, const cv_room *room, ptrdiff_t from, ptrdiff_t n);
static void cv_blank(const cv_job *j, ptrdiff_t at, ptrdiff_t n); /* the inactive value to n outputs from y[at] on */

/* What cv_keep is for float outputs. */
static inline void cv_keep_f32(float *y, const float *room, const uint8_t *mask) {
#if VQC_VL == 1
    *y = *mask ? *room : 0.0f;
#else
    typedef uint8_t bytes __attribute__((vector_size(CV_PIECE)));
    typedef int32_t lanes __attribute__((vector_size(4 * CV_PIECE)));
    typedef int32_t memory __attribute__((vector_size(4 * CV_PIECE), aligned(4), may_alias));
    bytes m;
    memcpy(&m, mask, sizeof m);
    *(memory *)(void *)y = *(const memory *)(const void *)room & (__builtin_convertvector(m, lanes) != 0);
#endif
}

/* And for u8. */
static inline void cv_keep_u8(uint8_t *y, const uint8_t *room, const uint8_t *mask, uint8_t inactive) {
#if VQC_VL == 1
    *y = *mask ? *room : inactive;
#else
    typedef uint8_t bytes __attribute__((vector_size(CV_PIECE)));
    bytes m, v;
    memcpy(&m, mask, sizeof m);
    memcpy(&v, room, sizeof v);
    m = (bytes)(m != 0);
    v = (v & m) | (inactive & ~m);
    memcpy(y, &v, sizeof v);
#endif
}

/* As CV_TILE, but every vector's positions come from CV_PIECES pieces that start at any position. */
#define CV_SPREAD(NAME, OB, NV)                                                                                       \
    static void NAME(const CV_E *restrict x, const int32_t *restrict start, ptrdiff_t planes, ptrdiff_t plane,        \
                     const int32_t *restrict off, ptrdiff_t taps, const CV_E *restrict w, CV_A *restrict t) {         \
        CV_V acc[OB][NV];                                                                                             \
        const CV_E *p[(NV) * CV_PIECES];                                                                              \
        memset(acc, 0, sizeof acc);                                                                                   \
        for (int i = 0; i < (NV) * CV_PIECES; i++) p[i] = x + start[i];                                               \
        for (ptrdiff_t c = 0; c < planes; c++) {                                                                      \
            for (ptrdiff_t k = 0; k < taps; k++, w += (OB)) {                                                         \
                const ptrdiff_t at = c * plane + off[k];                                                              \
                CV_V v[NV];                                                                                           \
                for (int i = 0; i < (NV); i++) v[i] = cv_join(p + i * CV_PIECES, at);                                 \
                for (int o = 0; o < (OB); o++)                                                                        \
                    for (int i = 0; i < (NV); i++) acc[o][i] = CV_MAC(acc[o][i], v[i], w[o]);                         \
            }                                                                                                         \
        }                                                                                                             \
        for (int o = 0; o < (OB); o++)                                                                                \
            for (int i = 0; i < (NV); i++) *(CV_M *)(t + (o * (NV) + i) * VQC_VL) = acc[o][i];                        \
    }

CV_SPREAD(cv_spread_1, 1, 1)
CV_SPREAD(cv_spread_4, 4, 1)
CV_SPREAD(cv_spread_8, 8, 1)
CV_SPREAD(cv_spread_wide_1, 1, CV_SPREAD_WIDE)
CV_SPREAD(cv_spread_wide_4, 4, CV_SPREAD_WIDE)
CV_SPREAD(cv_spread_wide_8, 8, CV_SPREAD_WIDE)

typedef void (*cv_spread)(const CV_E *restrict, const int32_t *restrict, ptrdiff_t, ptrdiff_t,
                          const int32_t *restrict, ptrdiff_t, const CV_E *restrict, CV_A *restrict);

/* The active part of a band, in a worker's scratch. */
typedef struct cv_active {
    const uint8_t *mask;  /* of the band, [rows][ow] */
    int32_t *start;       /* position where each piece starts, some repeats behind the last one */
    int32_t *to;          /* its place in the mask and in an output channel; -1: it goes over the end of a row */
    int32_t *length;      /* of runs, which there are instead of pieces when `runs` */
    int32_t *off;         /* room for offsets of the taps among gathered inputs, */
    void *gathered;       /* and for these */
    uint64_t *read;       /* for every packed row, one bit for each 2^shift columns: whether a piece reads there */
    int shift;
    ptrdiff_t count;      /* pieces */
    int dense;            /* compute every position instead */
    int runs;
} cv_active;

static ptrdiff_t cv_next_active(const uint8_t *mask, ptrdiff_t c, ptrdiff_t n) {
    uint64_t word = 0;
    for (; c + 8 <= n; c += 8) {
        memcpy(&word, mask + c, 8);
        if (word != 0) break;
    }
    while (c < n && mask[c] == 0) c++;
    return c;
}

static void cv_mark(cv_active *a, ptrdiff_t row, ptrdiff_t first, ptrdiff_t end) {
    for (ptrdiff_t k = first >> a->shift; k <= (end - 1) >> a->shift; k++) a->read[row] |= (uint64_t)1 << k;
}

/* The number of the lowest bit that is set; 64 when there is none. */
static int cv_lowest(uint64_t v) {
#ifdef __GNUC__
    return v == 0 ? 64 : __builtin_ctzll(v);
#else
    int k = 0;
    while (k < 64 && (v >> k & 1) == 0) k++;
    return k;
#endif
}

/* The next stretch of columns to pack in a row, behind [*first, *end); 0 when there is none. */
static int cv_columns(const cv_active *a, ptrdiff_t row, ptrdiff_t pitch, ptrdiff_t *first, ptrdiff_t *end) {
    if (*end >= pitch) return 0;
    if (a->mask == NULL || a->dense) {
        *end = pitch;
        return 1;
    }
    int k = (int)(*end >> a->shift);
    const uint64_t rest = a->read[row] >> k;
    if (rest == 0) return 0;
    k += cv_lowest(rest);
    *first = (ptrdiff_t)k << a->shift;
    k += cv_lowest(~(a->read[row] >> k));
    *end = cv_min((ptrdiff_t)k << a->shift, pitch);
    return 1;
}

/* Set the band's inactive outputs; all of them when `every`. */
static void cv_clear(const cv_job *j, const cv_band *b, const cv_active *a, ptrdiff_t o, ptrdiff_t channels, int every) {
    const ptrdiff_t n = b->rows * b->ow;
    for (ptrdiff_t i = o; i < o + channels; i++) {
        const ptrdiff_t y = b->y + i * b->y_plane;
        if (every) {
            cv_blank(j, y, n);
            continue;
        }
        for (ptrdiff_t p = 0; p < n;) {
            const unsigned char *hole = (const unsigned char *)memchr(a->mask + p, 0, (size_t)(n - p));
            if (hole == NULL) break;
            const ptrdiff_t from = hole - a->mask;
            p = cv_next_active(a->mask, from, n);
            cv_blank(j, y + from, p - from);
        }
    }
}

#include "vqc_conv_gathered.h"

/* Cover the active positions of a band. The taps go `down` rows and `reach` columns further. `room`: numbers for three
 * times all positions, two times the packed rows, the taps, and CV_ROOM more; then, for layers of CV_GATHER_CHANNELS or
 * more, room for gathered inputs. */
static cv_active cv_cover(const cv_band *b, const uint8_t *mask, ptrdiff_t down, ptrdiff_t reach, int32_t *room) {
    const ptrdiff_t positions = (b->rows - 1) * b->pitch + b->ow, rows = b->rows + down;
    const ptrdiff_t most = b->rows * b->pitch;
    int32_t *const to = room + 2 * (rows + 1), *const off = to + 3 * most + CV_ROOM / 2;
    cv_active a = {mask, to + 2 * most, to, to + most, off, off + b->taps, (uint64_t *)(void *)room, 6, 0, 0, 0};
    const int narrow = b->pitch < CV_PIECE + reach || positions < CV_PIECE; /* a piece might reach over two rows' ends */
    ptrdiff_t next = 0; /* the first position no piece covers yet */
    while (b->pitch >> a.shift >= 64) a.shift++;
    memset(a.read, 0, (size_t)(rows + 1) * sizeof(uint64_t));
    for (ptrdiff_t r = 0; r < b->rows; r++) {
        ptrdiff_t c = next > r * b->pitch ? next - r * b->pitch : 0;
        while ((c = cv_next_active(mask + r * b->ow, c, b->ow)) < b->ow) {
            ptrdiff_t at = r * b->pitch + c, row = r, col = c;
            if (narrow) {
                a.count = 1;
                a.dense = 1;
                return a;
            }
            if (at > positions - CV_PIECE) {
                at = positions - CV_PIECE;
                row = at / b->pitch;
                col = at % b->pitch;
            }
            const ptrdiff_t end = col + CV_PIECE + reach, over = end - b->pitch;
            a.start[a.count] = (int32_t)at;
            a.to[a.count++] = (int32_t)(col + CV_PIECE <= b->ow ? row * b->ow + col : -1);
            cv_mark(&a, row, col, over > 0 ? b->pitch : end);
            if (over > 0) cv_mark(&a, row + 1, 0, over);
            c = at + CV_PIECE - r * b->pitch;
        }
        if (c > next - r * b->pitch) next = r * b->pitch + c;
    }
    if (a.count == 0) return a;
    for (ptrdiff_t i = 0; i < CV_SPREAD_WIDE * CV_PIECES; i++) a.start[a.count + i] = a.start[a.count - 1];
    a.dense = 16 * a.count * CV_PIECE >= 15 * positions;
    cv_choose_runs(b, &a, down, reach);
    for (ptrdiff_t r = rows - 1; r > 0; r--) /* a packed row serves the taps of several rows of outputs */
        for (ptrdiff_t k = r - 1; k >= 0 && k >= r - down; k--) a.read[r] |= a.read[k];
    return a;
}

/* Whether some pieces lie side by side, given where they start. */
static int cv_beside(const int32_t *start, ptrdiff_t pieces) {
    for (ptrdiff_t p = 1; p < pieces; p++)
        if (start[p] != start[p - 1] + CV_PIECE) return 0;
    return 1;
}

/* Whether some pieces lie side by side in one row with every position active. */
static int cv_solid(const cv_active *a, ptrdiff_t piece, ptrdiff_t pieces) {
    const int32_t *to = a->to + piece;
    return to[0] >= 0 && cv_beside(to, pieces) && memchr(a->mask + to[0], 0, (size_t)(pieces * CV_PIECE)) == NULL;
}

/* Bring the pieces of a tile of channels [o, o + block) to the output; t is [block][count]. */
static void cv_place(const cv_job *j, const cv_band *b, const cv_active *a, ptrdiff_t o, ptrdiff_t block,
                     ptrdiff_t piece, ptrdiff_t pieces, ptrdiff_t count, const CV_A *t) {
    cv_room room;
    const ptrdiff_t left = cv_min(b->og - o, block), y = b->y + o * b->y_plane, channel = b->group * b->og + o;
    if (cv_solid(a, piece, pieces)) {
        for (ptrdiff_t i = 0; i < left; i++)
            cv_store(j, channel + i, y + i * b->y_plane + a->to[piece], 1, t + i * count, pieces * CV_PIECE);
        return;
    }
    const cv_job aside = cv_redirect(j, &room);
    for (ptrdiff_t i = 0; i < left; i++) cv_store(&aside, channel + i, i * count, 1, t + i * count, count);
    for (ptrdiff_t p = 0; p < pieces; p++) {
        const ptrdiff_t to = a->to[piece + p];
        if (to >= 0) {
            for (ptrdiff_t i = 0; i < left; i++)
                cv_keep(j, y + i * b->y_plane + to, &room, i * count + p * CV_PIECE, a->mask + to);
            continue;
        }
        const ptrdiff_t row = a->start[piece + p] / b->pitch, col = a->start[piece + p] % b->pitch;
        for (ptrdiff_t k = 0; k < CV_PIECE; k++) {
            const ptrdiff_t over = col + k >= b->pitch, c = col + k - over * b->pitch, at = (row + over) * b->ow + c;
            if (c >= b->ow || a->mask[at] == 0) continue;
            for (ptrdiff_t i = 0; i < left; i++)
                cv_put(j, y + i * b->y_plane + at, &room, i * count + p * CV_PIECE + k, 1);
        }
    }
}

/* All output channels of one group over the active positions of one band, and the inactive value elsewhere. */
static void cv_run_masked(const cv_job *j, const cv_band *b, const cv_active *a, CV_E *expanded) {
    const ptrdiff_t taps = b->planes * b->taps;
    ptrdiff_t at = b->w;
    CV_A t[8 * VQC_VL * CV_SPREAD_WIDE];
    if (a->count == 0) {
        cv_clear(j, b, a, 0, b->og, 1);
        return;
    }
    if (a->dense) {
        cv_run(j, b, expanded);
        cv_clear(j, b, a, 0, b->og, 0);
        return;
    }
    if (a->runs) {
        cv_run_gathered(j, b, a, expanded);
        return;
    }
    for (ptrdiff_t o = 0; o < b->og;) {
        const ptrdiff_t left = b->og - o, block = left > 4 ? 8 : left > 1 ? 4 : 1;
        const cv_spread big = block == 8 ? cv_spread_wide_8 : block == 4 ? cv_spread_wide_4 : cv_spread_wide_1;
        const cv_spread small = block == 8 ? cv_spread_8 : block == 4 ? cv_spread_4 : cv_spread_1;
        const CV_E *w = cv_weights(j, at, taps * block, expanded);
        cv_clear(j, b, a, o, cv_min(left, block), 1);
        for (ptrdiff_t p = 0; p < a->count;) {
            const ptrdiff_t rest = a->count - p, many = rest > CV_PIECES, take = CV_PIECES * (many ? CV_SPREAD_WIDE : 1);
            if (many && block == 8 && cv_beside(a->start + p, take))
                cv_wide_8(b->x + a->start[p], b->planes, b->plane, b->off, b->taps, w, t);
            else
                (many ? big : small)(b->x, a->start + p, b->planes, b->plane, b->off, b->taps, w, t);
            cv_place(j, b, a, o, block, p, cv_min(rest, take), take * CV_PIECE, t);
            p += take;
        }
        at += taps * block;
        o += block;
    }
}
