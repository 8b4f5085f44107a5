/* Counting with AVX-512's popcount of 32-bit lanes: 16 positions in a vector, a word of weights in every lane.
 *
 * Three instructions for 512 bits (xor, popcount, add); a tile keeps up to 24 counters in registers so that loads hide
 * behind them. Padded taps are counted, `base` repairs it: a row's classes are at most 16 numbers, one permutation. */
#include <immintrin.h>

#define BC_E uint32_t
#define BC_PLANES 1
#define BC_LANES 16
#define BC_PAD 0u
#define BC_COUNTS_PADDING 1
#define BC_PREPARED(steps) 0

#include "vqc_bconv_band.h"
#include "vqc_bconv_words.h"

/* Counters of P vectors of positions and W channels, and the sums they give. */
#define BC_TILE(NAME, P, W)                                                                                           \
    static inline void NAME(const bc_band *b, ptrdiff_t col, ptrdiff_t channel, int32_t t[BC_BLOCK][BC_SEGMENT]) {    \
        const uint32_t *w = (const uint32_t *)b->w + channel, *start = b->x + col;                                    \
        const int32_t *off = b->off, *end = off + b->steps;                                                           \
        __m512i count[W][P];                                                                                          \
        for (int j = 0; j < W; j++)                                                                                   \
            for (int i = 0; i < P; i++) count[j][i] = _mm512_setzero_si512();                                         \
        for (; off < end; off++, w += BC_BLOCK) {                                                                     \
            const uint32_t *x = start + *off;                                                                         \
            __m512i v[P];                                                                                             \
            for (int i = 0; i < P; i++) v[i] = _mm512_loadu_si512(x + 16 * i);                                        \
            for (int j = 0; j < W; j++) {                                                                             \
                const __m512i wj = _mm512_set1_epi32((int32_t)w[j]);                                                  \
                for (int i = 0; i < P; i++)                                                                           \
                    count[j][i] = _mm512_add_epi32(count[j][i], _mm512_popcnt_epi32(_mm512_xor_si512(v[i], wj)));     \
            }                                                                                                         \
        }                                                                                                             \
        for (int i = 0; i < P; i++) {                                                                                 \
            const __m512i kind = _mm512_loadu_si512(b->column + col + 16 * i);                                        \
            for (int j = 0; j < W; j++) {                                                                             \
                const __m512i base = _mm512_loadu_si512(b->base + (channel + j) * b->base_step);                      \
                const __m512i twice = _mm512_slli_epi32(count[j][i], 1);                                              \
                _mm512_store_si512(&t[channel + j][16 * i],                                                           \
                                   _mm512_sub_epi32(_mm512_permutexvar_epi32(kind, base), twice));                    \
            }                                                                                                         \
        }                                                                                                             \
    }
BC_TILE(bc_tile_1, 1, 8)
BC_TILE(bc_tile_2, 2, 8)
BC_TILE(bc_tile_3, 3, 8)
BC_TILE(bc_tile_4, 4, 4)

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
