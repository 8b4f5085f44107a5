/* Counting with AVX-512's popcount of 32-bit lanes: 16 positions in a vector, a word of weights in every lane.
 *
 * Three instructions for 512 bits (xor, popcount, add); a tile keeps up to 24 counters in registers so that loads hide
 * behind them. Padded taps are counted, `base` repairs it: a row's classes are at most 16 numbers, one permutation.
 * A threshold becomes a limit of the count itself, by class as `base` is, and its bits never leave registers. */
#include <immintrin.h>

#define BC_E uint32_t
#define BC_PLANES 1
#define BC_LANES 16
#define BC_PAD 0u
#define BC_COUNTS_PADDING 1
#define BC_PREPARED(steps) 0
#define BC_OWN_BITS 1
#define BC_OWN_MASK 1

#include "vqc_bconv_band.h"
#include "vqc_bconv_words.h"

/* Add to counters of P vectors of positions and W channels. */
#define BC_COUNT(P, W)                                                                                                \
    const uint32_t *w = (const uint32_t *)b->w + channel, *start = b->x + col;                                        \
    const int32_t *off = b->off, *end = off + b->steps;                                                               \
    for (; off < end; off++, w += BC_BLOCK) {                                                                         \
        const uint32_t *x = start + *off;                                                                             \
        __m512i v[P];                                                                                                 \
        BC_UNROLL for (int i = 0; i < P; i++) v[i] = _mm512_loadu_si512(x + 16 * i);                                  \
        BC_UNROLL for (int j = 0; j < W; j++) {                                                                       \
            const __m512i wj = _mm512_set1_epi32((int32_t)w[j]);                                                      \
            BC_UNROLL for (int i = 0; i < P; i++)                                                                     \
                count[j][i] = _mm512_add_epi32(count[j][i], _mm512_popcnt_epi32(_mm512_xor_si512(v[i], wj)));         \
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

/* The sums, and the bits they become. */
#define BC_TILE(SUMS, BITS, P, W)                                                                                     \
    static inline void SUMS(const bc_band *b, ptrdiff_t col, ptrdiff_t channel, int32_t t[BC_BLOCK][BC_SEGMENT]) {    \
        __m512i count[W][P];                                                                                          \
        BC_UNROLL for (int j = 0; j < W; j++)                                                                         \
            BC_UNROLL for (int i = 0; i < P; i++) count[j][i] = _mm512_setzero_si512();                               \
        BC_COUNT(P, W)                                                                                                \
        BC_UNROLL for (int i = 0; i < P; i++) {                                                                       \
            const __m512i kind = _mm512_loadu_si512(b->column + col + 16 * i);                                        \
            BC_UNROLL for (int j = 0; j < W; j++) {                                                                   \
                const __m512i base = _mm512_loadu_si512(b->base + (channel + j) * b->base_step);                      \
                const __m512i twice = _mm512_slli_epi32(count[j][i], 1);                                              \
                _mm512_store_si512(&t[channel + j][16 * i],                                                           \
                                   _mm512_sub_epi32(_mm512_permutexvar_epi32(kind, base), twice));                    \
            }                                                                                                         \
        }                                                                                                             \
    }                                                                                                                 \
    static inline void BITS(const bc_band *b, ptrdiff_t col, ptrdiff_t channel, __m512i word[P]) {                    \
        __m512i count[W][P];                                                                                          \
        BC_UNROLL for (int i = 0; i < P; i++) {                                                                       \
            const __m512i kind = _mm512_loadu_si512(b->column + col + 16 * i);                                        \
            BC_UNROLL for (int j = 0; j < W; j++)                                                                     \
                count[j][i] = _mm512_permutexvar_epi32(kind, _mm512_load_si512(b->limits->start[channel + j]));       \
        }                                                                                                             \
        BC_COUNT(P, W)                                                                                                \
        BC_UNROLL for (int j = W; j-- > 0;)                                                                           \
            BC_UNROLL for (int i = 0; i < P; i++) word[i] = bc_push_sign(word[i], count[j][i]);                       \
    }
BC_TILE(bc_tile_1, bc_bits_1, 1, 8)
BC_TILE(bc_tile_2, bc_bits_2, 2, 8)
BC_TILE(bc_tile_3, bc_bits_3, 3, 8)
BC_TILE(bc_tile_4, bc_bits_4, 4, 4)

static inline void bc_sums(const bc_band *b, ptrdiff_t col, ptrdiff_t n, int32_t t[BC_BLOCK][BC_SEGMENT]) {
    if (n > 48) {
        bc_tile_4(b, col, 0, t);
        bc_tile_4(b, col, 4, t);
    } else if (n > 32) {
        bc_tile_3(b, col, 0, t);
    } else if (n > 16) {
        bc_tile_2(b, col, 0, t);
    } else {
        bc_tile_1(b, col, 0, t);
    }
}

/* acc = base - 2 count is below a threshold where the count is above half of base - threshold: where counters that start
 * from minus that, less one, do not end below zero. */
static inline void bc_limit(const int32_t *base, ptrdiff_t step, bc_limits *limits) {
    const __m512i ones = _mm512_set1_epi32(-1);
    for (int j = 0; j < BC_BLOCK; j++) {
        const __m512i twice = _mm512_sub_epi32(_mm512_loadu_si512(base + j * step), _mm512_set1_epi32(limits->threshold[j]));
        _mm512_store_si512(limits->start[j], _mm512_xor_si512(_mm512_srai_epi32(twice, 1), ones));
    }
}

/* Bits of n positions of a row, for a block of channels from o on. */
static inline void bc_bits(const bc_band *b, ptrdiff_t o, ptrdiff_t col, ptrdiff_t n, uint32_t *bits) {
    const bc_limits *limits = b->limits;
    const __m512i turned = _mm512_set1_epi32(~limits->turned & 0xff);
    const __m128i left = _mm_cvtsi32_si128((int)(o % 32));
    __m512i word[4];
    for (int i = 0; i < 4; i++) word[i] = _mm512_setzero_si512();
    if (n > 48) {
        bc_bits_4(b, col, 4, word);
        bc_bits_4(b, col, 0, word);
    } else if (n > 32) {
        bc_bits_3(b, col, 0, word);
    } else if (n > 16) {
        bc_bits_2(b, col, 0, word);
    } else {
        bc_bits_1(b, col, 0, word);
    }
    for (int i = 0; 16 * i < n; i++) {
        const __mmask16 some = (__mmask16)(n - 16 * i < 16 ? (1 << (n - 16 * i)) - 1 : 0xffff);
        word[i] = _mm512_sll_epi32(_mm512_xor_si512(word[i], turned), left);
        if (o % 32 != 0) word[i] = _mm512_or_si512(word[i], _mm512_maskz_loadu_epi32(some, bits + 16 * i));
        _mm512_mask_storeu_epi32(bits + 16 * i, some, word[i]);
    }
}
