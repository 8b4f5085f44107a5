/* Counting with AVX-512's popcount of 32-bit lanes: 16 positions in a vector, a word of weights in every lane.
 *
 * Four instructions for two steps of 512 bits (pairs, see vqc_bconv.h: xor, select, popcount, add) where counting each by itself
 * takes six; a tile keeps up to 16 counters in registers so that loads hide behind them. Padded taps are counted, `base`
 * repairs it: a row's classes are at most 16 numbers, one permutation. A threshold becomes a limit of the count itself, by
 * class as `base` is, and its bits never leave registers; nor do the sums of a float result, but under a mask. */
#include <immintrin.h>

#define BC_E uint32_t
#define BC_PLANES 1
#define BC_LANES 16
#define BC_PAD 0u
#define BC_COUNTS_PADDING 1
#define BC_PREPARED(steps) (((steps) + 1) * BC_BLOCK * 4) /* the block's weights in pairs, and what they add */
#define BC_OWN_WEIGHTS 1
#define BC_PAIRS 1
#define BC_OWN_BITS 1
#define BC_OWN_FLOATS 1
#define BC_OWN_MASK 1

#include "vqc_bconv_band.h"
#include "vqc_bconv_words.h"

/* Weights of a pair of steps as w1 and ~(w1 ^ w2), of a last one as they are; behind them twice the ones of w1 ^ w2 and of
 * the last. */
static void bc_prepare(unsigned char *prepared) { (void)prepared; }

static const void *bc_weights(const uint32_t *w, ptrdiff_t steps, unsigned char *prepared) {
    const __m256i ones = _mm256_set1_epi32(-1);
    __m256i *to = (__m256i *)(void *)prepared, count = _mm256_setzero_si256();
    ptrdiff_t k = 0;
    for (; k + 2 <= steps; k += 2, w += 2 * BC_BLOCK, to += 2) {
        const __m256i first = _mm256_loadu_si256((const __m256i *)(const void *)w);
        const __m256i differ = _mm256_xor_si256(first, _mm256_loadu_si256((const __m256i *)(const void *)(w + BC_BLOCK)));
        _mm256_storeu_si256(to, first);
        _mm256_storeu_si256(to + 1, _mm256_xor_si256(differ, ones));
        count = _mm256_add_epi32(count, _mm256_popcnt_epi32(differ));
    }
    if (k < steps) {
        const __m256i last = _mm256_loadu_si256((const __m256i *)(const void *)w);
        _mm256_storeu_si256(to++, last);
        count = _mm256_add_epi32(count, _mm256_popcnt_epi32(last));
    }
    _mm256_storeu_si256(to, _mm256_slli_epi32(count, 1));
    return prepared;
}

/* What bc_weights put behind a block's weights. */
static inline const int32_t *bc_added(const bc_band *b) { return (const int32_t *)b->w + b->steps * BC_BLOCK; }

/* to[i] = twice the ones of x1 ^ x2, of all pairs and of a last step, at n positions from column `col` on. */
static void bc_differ(const bc_band *b, ptrdiff_t col, ptrdiff_t n, int32_t *to) {
    for (ptrdiff_t i = 0; i < n; i += 16) {
        const uint32_t *x = b->x + col + i;
        __m512i even = _mm512_setzero_si512(), odd = even;
        ptrdiff_t k = 0;
        for (; k + 4 <= b->steps; k += 4) {
            const __m512i p = _mm512_xor_si512(_mm512_loadu_si512(x + b->off[k]), _mm512_loadu_si512(x + b->off[k + 1]));
            const __m512i q = _mm512_xor_si512(_mm512_loadu_si512(x + b->off[k + 2]), _mm512_loadu_si512(x + b->off[k + 3]));
            even = _mm512_add_epi32(even, _mm512_popcnt_epi32(p));
            odd = _mm512_add_epi32(odd, _mm512_popcnt_epi32(q));
        }
        for (; k < b->steps; k += 2) {
            __m512i p = _mm512_loadu_si512(x + b->off[k]);
            if (k + 1 < b->steps) p = _mm512_xor_si512(p, _mm512_loadu_si512(x + b->off[k + 1]));
            even = _mm512_add_epi32(even, _mm512_popcnt_epi32(p));
        }
        _mm512_storeu_si512(to + i, _mm512_slli_epi32(_mm512_add_epi32(even, odd), 1));
    }
}

#define BC_SELECT3 0xca /* the second where the first is 1, else the third */

/* Add to counters of P vectors of positions and a block of channels. */
#define BC_COUNT(P)                                                                                                   \
    const uint32_t *w = (const uint32_t *)b->w, *start = b->x + col;                                                  \
    const int32_t *off = b->off, *end = off + b->steps;                                                               \
    for (; off + 2 <= end; off += 2, w += 2 * BC_BLOCK) {                                                             \
        __m512i second[P], differ[P];                                                                                 \
        BC_UNROLL for (int i = 0; i < P; i++) {                                                                       \
            second[i] = _mm512_loadu_si512(start + off[1] + 16 * i);                                                  \
            differ[i] = _mm512_xor_si512(second[i], _mm512_loadu_si512(start + off[0] + 16 * i));                     \
        }                                                                                                             \
        BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {                                                                       \
            const __m512i wj = _mm512_set1_epi32((int32_t)w[j]), same = _mm512_set1_epi32((int32_t)w[BC_BLOCK + j]);  \
            BC_UNROLL for (int i = 0; i < P; i++) {                                                                   \
                const __m512i by = _mm512_xor_si512(second[i], wj);                                                   \
                const __m512i both = _mm512_ternarylogic_epi32(by, same, differ[i], BC_SELECT3);                      \
                count[j][i] = _mm512_add_epi32(count[j][i], _mm512_popcnt_epi32(both));                               \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    for (int left = off < end; left; left = 0) {                                                                      \
        __m512i v[P];                                                                                                 \
        BC_UNROLL for (int i = 0; i < P; i++) v[i] = _mm512_loadu_si512(start + *off + 16 * i);                       \
        BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {                                                                       \
            const __m512i wj = _mm512_set1_epi32((int32_t)w[j]);                                                      \
            BC_UNROLL for (int i = 0; i < P; i++)                                                                     \
                count[j][i] = _mm512_add_epi32(count[j][i], _mm512_popcnt_epi32(_mm512_andnot_si512(wj, v[i])));      \
        }                                                                                                             \
    }

/* Words with the sign of s as one more bit at the lower end. */
static inline __m512i bc_push_sign(__m512i word, __m512i s) {
#ifdef __AVX512VBMI2__
    return _mm512_shldi_epi32(word, s, 1);
#else
    return _mm512_or_si512(_mm512_add_epi32(word, word), _mm512_srli_epi32(s, 31));
#endif
}

/* What a float epilogue needs, with nothing left to ask: numbers of the block's channels, where they are added from and go
 * to at the tile's first position. What a job lacks adds -0, multiplies by 1 and writes to a room nobody reads. */
typedef struct bc_place {
    float scale[BC_BLOCK], bias[BC_BLOCK], slope[BC_BLOCK], tau[BC_BLOCK], residual_scale;
    const float *added[BC_BLOCK], *residual[BC_BLOCK]; /* from the image's beginning; from the tile's */
    float *made[BC_BLOCK], *y[BC_BLOCK];
    uint32_t *bits; /* of the tile */
    __mmask16 last; /* which of the last 16 positions there are */
} bc_place;

/* The float epilogue of one channel and P vectors of positions, as bc_finish computes it; marks the channel's bit. Numbers
 * are read once: stores in between could change them, for all the compiler knows. */
#define BC_FINISH(P, channel, COUNT)                                                                                  \
    {                                                                                                                 \
        const __m512i base = _mm512_sub_epi32(_mm512_loadu_si512(b->base + (channel) * b->base_step),                 \
                                              _mm512_set1_epi32(bc_added(b)[channel]));                               \
        const __m512 scale = _mm512_set1_ps(at->scale[channel]), bias = _mm512_set1_ps(at->bias[channel]);            \
        const __m512 slope = _mm512_set1_ps(at->slope[channel]), tau = _mm512_set1_ps(at->tau[channel]);              \
        const __m512i bit = _mm512_set1_epi32(1 << (channel));                                                        \
        const float *from = at->residual[channel] + first;                                                            \
        float *to = at->y[channel] + first;                                                                           \
        BC_UNROLL for (int i = 0; i < P; i++) {                                                                       \
            const int all = whole || i < P - 1;                                                                       \
            const __m512i all_base = _mm512_add_epi32(_mm512_permutexvar_epi32(kind[i], base), own[i]);               \
            const __m512i acc = _mm512_sub_epi32(all_base, _mm512_slli_epi32(COUNT, 2));                              \
            __m512 added = all ? _mm512_loadu_ps(from + 16 * i) : _mm512_maskz_loadu_ps(last, from + 16 * i);         \
            __m512 v = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), scale), bias);                            \
            if (scaled) added = _mm512_mul_ps(added, _mm512_set1_ps(at->residual_scale));                             \
            v = _mm512_add_ps(v, added);                                                                              \
            v = _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(_mm512_setzero_ps(), v, _CMP_NLT_UQ), v, slope);             \
            if (all) _mm512_storeu_ps(to + 16 * i, v);                                                                \
            else _mm512_mask_storeu_ps(to + 16 * i, last, v);                                                         \
            bits[i] = _mm512_mask_or_epi32(bits[i], _mm512_cmp_ps_mask(v, tau, _CMP_LT_OQ), bits[i], bit);            \
        }                                                                                                             \
    }

/* The sums, the bits and the float results they become, of P vectors from column `col` on. */
#define BC_TILE(SUMS, BITS, FLOATS, P)                                                                                \
    static inline void SUMS(const bc_band *b, ptrdiff_t col, int32_t *t, ptrdiff_t pitch) {                           \
        __m512i count[BC_BLOCK][P];                                                                                   \
        BC_UNROLL for (int j = 0; j < BC_BLOCK; j++)                                                                  \
            BC_UNROLL for (int i = 0; i < P; i++) count[j][i] = _mm512_setzero_si512();                               \
        BC_COUNT(P)                                                                                                   \
        BC_UNROLL for (int i = 0; i < P; i++) {                                                                       \
            const __m512i kind = _mm512_loadu_si512(b->column + col + 16 * i);                                        \
            const __m512i own = _mm512_loadu_si512(b->differ + col + 16 * i);                                         \
            BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {                                                            \
                const __m512i base = _mm512_loadu_si512(b->base + j * b->base_step);                                  \
                const __m512i less = _mm512_sub_epi32(own, _mm512_set1_epi32(bc_added(b)[j]));                        \
                const __m512i from = _mm512_add_epi32(_mm512_permutexvar_epi32(kind, base), less);                    \
                _mm512_store_si512(t + j * pitch + 16 * i,                                                            \
                                   _mm512_sub_epi32(from, _mm512_slli_epi32(count[j][i], 2)));                        \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    static inline void BITS(const bc_band *b, ptrdiff_t col, __m512i word[P]) {                                       \
        __m512i count[BC_BLOCK][P];                                                                                   \
        BC_UNROLL for (int i = 0; i < P; i++) {                                                                       \
            const __m512i kind = _mm512_loadu_si512(b->column + col + 16 * i);                                        \
            const __m512i own = _mm512_loadu_si512(b->differ + col + 16 * i);                                         \
            BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {                                                            \
                const __m512i from = _mm512_permutexvar_epi32(kind, _mm512_load_si512(b->limits->start[j]));          \
                count[j][i] = _mm512_srai_epi32(_mm512_sub_epi32(from, own), 2);                                      \
            }                                                                                                         \
        }                                                                                                             \
        BC_COUNT(P)                                                                                                   \
        BC_UNROLL for (int i = 0; i < P; i++) word[i] = _mm512_setzero_si512();                                       \
        BC_UNROLL for (int j = BC_BLOCK; j-- > 0;)                                                                    \
            BC_UNROLL for (int i = 0; i < P; i++) word[i] = bc_push_sign(word[i], count[j][i]);                       \
    }                                                                                                                 \
    static BC_INLINE void FLOATS(const bc_band *b, ptrdiff_t col, const bc_place *at, ptrdiff_t first, __mmask16 last, \
                                 int scaled, __m512i word[P]) {                                                       \
        __m512i count[BC_BLOCK][P], kind[P], own[P], bits[P];                                                         \
        BC_UNROLL for (int j = 0; j < BC_BLOCK; j++)                                                                  \
            BC_UNROLL for (int i = 0; i < P; i++) count[j][i] = _mm512_setzero_si512();                               \
        BC_COUNT(P)                                                                                                   \
        const int whole = last == 0xffff;                                                                             \
        BC_UNROLL for (int i = 0; i < P; i++) {                                                                       \
            kind[i] = _mm512_loadu_si512(b->column + col + 16 * i);                                                   \
            own[i] = _mm512_loadu_si512(b->differ + col + 16 * i);                                                    \
            bits[i] = _mm512_setzero_si512();                                                                         \
        }                                                                                                             \
        BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) BC_FINISH(P, j, count[j][i])                                     \
        BC_UNROLL for (int i = 0; i < P; i++) word[i] = bits[i];                                                      \
    }
BC_TILE(bc_tile_1, bc_bits_1, bc_floats_1, 1)
BC_TILE(bc_tile_2, bc_bits_2, bc_floats_2, 2)

static inline void bc_sums(const bc_band *b, ptrdiff_t col, ptrdiff_t n, int32_t *t, ptrdiff_t pitch) {
    ptrdiff_t i = 0;
    for (; i + 16 < n; i += 32) bc_tile_2(b, col + i, t + i, pitch);
    if (i < n) bc_tile_1(b, col + i, t + i, pitch);
}

/* acc = base - 2 d is below a threshold where d is above half of base - threshold: where d plus `from`, minus that less one,
 * is not below zero. d is (added - differ + 4 count) / 2, so that count + (2 from + added - differ) / 4, rounded down, has
 * the same sign. */
static inline void bc_limit(const bc_band *b, bc_limits *limits) {
    const __m512i ones = _mm512_set1_epi32(-1);
    for (int j = 0; j < BC_BLOCK; j++) {
        const __m512i base = _mm512_loadu_si512(b->base + j * b->base_step);
        const int32_t given = limits->threshold[j];
        const int32_t threshold = given == INT16_MIN ? -(1 << 17) : given; /* below what channels that are not there sum up to */
        const __m512i twice = _mm512_sub_epi32(base, _mm512_set1_epi32(threshold));
        const __m512i from = _mm512_xor_si512(_mm512_srai_epi32(twice, 1), ones);
        const __m512i added = _mm512_set1_epi32(bc_added(b)[j]);
        _mm512_store_si512(limits->start[j], _mm512_add_epi32(_mm512_slli_epi32(from, 1), added));
    }
}

/* Bits of a block of channels into the words of n positions; the word's first block begins it. */
static inline void bc_write_bits(const __m512i *word, __m512i turned, ptrdiff_t o, ptrdiff_t n, uint32_t *bits) {
    const __m128i left = _mm_cvtsi32_si128((int)(o % 32));
    for (int i = 0; 16 * i < n; i++) {
        const __mmask16 some = (__mmask16)(n - 16 * i < 16 ? (1 << (n - 16 * i)) - 1 : 0xffff);
        __m512i all = _mm512_sll_epi32(_mm512_xor_si512(word[i], turned), left);
        if (o % 32 != 0) all = _mm512_or_si512(all, _mm512_maskz_loadu_epi32(some, bits + 16 * i));
        if (some == 0xffff) _mm512_storeu_si512(bits + 16 * i, all);
        else _mm512_mask_storeu_epi32(bits + 16 * i, some, all);
    }
}

/* Bits of n positions of a row, for a block of channels from o on. */
static inline void bc_bits(const bc_band *b, ptrdiff_t o, ptrdiff_t col, ptrdiff_t n, uint32_t *bits) {
    const bc_limits *limits = b->limits;
    const __m512i turned = _mm512_set1_epi32(~limits->turned & 0xff);
    __m512i word[BC_SEGMENT / 16];
    ptrdiff_t i = 0;
    for (; i + 16 < n; i += 32) bc_bits_2(b, col + i, word + i / 16);
    if (i < n) bc_bits_1(b, col + i, word + i / 16);
    bc_write_bits(word, turned, o, n, bits);
}

/* Float results, and the bits after them, of n positions of a row for a whole block of channels. */
static BC_INLINE void bc_floats_as(const bc_band *b, ptrdiff_t col, ptrdiff_t n, const bc_place *at, int scaled,
                                   __m512i *word) {
    ptrdiff_t i = 0;
    for (; i + 16 < n; i += 32)
        bc_floats_2(b, col + i, at, i, i + 32 < n ? 0xffff : at->last, scaled, word + i / 16);
    if (i < n) bc_floats_1(b, col + i, at, i, at->last, scaled, word + i / 16);
}

static BC_NOINLINE void bc_floats(const bc_band *b, ptrdiff_t o, ptrdiff_t col, ptrdiff_t n, const bc_place *at) {
    __m512i word[BC_SEGMENT / 16];
    if (at->residual_scale == 1.0f) bc_floats_as(b, col, n, at, 0, word);
    else bc_floats_as(b, col, n, at, 1, word);
    if (at->bits != NULL) bc_write_bits(word, _mm512_setzero_si512(), o, n, at->bits);
}

/* Fill what stays the same in a whole block of channels; 0 if this epilogue is not for the job. */
static inline int bc_place_block(const bc_job *j, ptrdiff_t image, ptrdiff_t o, bc_place *at) {
    const vqc_bconv_params *p = j->p;
    if (j->threshold != NULL || j->mask != NULL || p->act == VQC_BACT_RELU || p->o - o < BC_BLOCK) return 0;
    at->residual_scale = p->residual_scale;
    for (ptrdiff_t i = 0; i < BC_BLOCK; i++) {
        at->scale[i] = j->scale[o + i];
        at->bias[i] = j->bias != NULL ? j->bias[o + i] : -0.0f;
        at->slope[i] = p->act == VQC_BACT_PRELU ? j->slope[o + i] : 1.0f;
        at->tau[i] = j->bits != NULL ? j->tau[p->taus > 1 ? o + i : 0] : 0.0f;
        at->added[i] = bc_residual(j, image, o + i);
        at->made[i] = j->y != NULL ? j->y + (image * p->o + o + i) * p->oh * p->ow : NULL;
    }
    return 1;
}

/* A row's n positions from column `col` on, which is position `first` of the image, for the block of channels from o on. */
static inline void bc_block(const bc_job *j, const bc_band *b, ptrdiff_t image, ptrdiff_t o, ptrdiff_t first,
                            ptrdiff_t col, ptrdiff_t n, bc_place *at) {
    const vqc_bconv_params *p = j->p;
    BC_ALIGNED float nothing[BC_SEGMENT], nobody[BC_SEGMENT];
    at->last = (__mmask16)(n % 16 ? (1 << (n % 16)) - 1 : 0xffff);
    if (j->residual == NULL)
        for (int i = 0; i < BC_SEGMENT; i++) nothing[i] = -0.0f;
    for (ptrdiff_t i = 0; i < BC_BLOCK; i++) {
        at->residual[i] = j->residual != NULL ? at->added[i] + first : nothing;
        at->y[i] = j->y != NULL ? at->made[i] + first : nobody;
    }
    at->bits = j->bits != NULL ? j->bits + (image * ((p->o + 31) / 32) + o / 32) * p->oh * p->ow + first : NULL;
    bc_floats(b, o, col, n, at);
}
