/* Counting differing bits in plain C: the generic twin of every other hook.
 *
 * Eight words go through seven carry-save adders (Harley and Seal's counter) and cost one popcount instead of eight. */
#define BC_E uint32_t
#define BC_PLANES 1
#define BC_LANES 16
#define BC_PAD 0u
#define BC_COUNTS_PADDING 1
#define BC_PREPARED(steps) 0 /* bytes bc_prepare and bc_weights need */

#include "vqc_bconv_band.h"
#include "vqc_bconv_words.h"

static inline uint32_t bc_popcount(uint32_t v) {
    v = v - (v >> 1 & 0x55555555u);
    v = (v & 0x33333333u) + (v >> 2 & 0x33333333u);
    v = (v + (v >> 4)) & 0x0f0f0f0fu;
    return v * 0x01010101u >> 24;
}

/* sum and carry of three bits in every bit of the words; the sum stays in *a. */
static inline uint32_t bc_carry(uint32_t *a, uint32_t b, uint32_t c) {
    const uint32_t u = *a ^ b, carry = (*a & b) | (u & c);
    *a = u ^ c;
    return carry;
}

/* Eight steps of one channel: ones, twos and fours are counters that wait, count the eights. */
static inline void bc_eight(const uint32_t *const x[8], const uint32_t *w, ptrdiff_t lanes, uint32_t *restrict ones,
                            uint32_t *restrict twos, uint32_t *restrict fours, uint32_t *restrict count) {
    for (ptrdiff_t i = 0; i < lanes; i++) {
        uint32_t one = ones[i], two = twos[i], four = fours[i];
        const uint32_t a = bc_carry(&one, x[0][i] ^ w[0 * BC_BLOCK], x[1][i] ^ w[1 * BC_BLOCK]);
        const uint32_t b = bc_carry(&one, x[2][i] ^ w[2 * BC_BLOCK], x[3][i] ^ w[3 * BC_BLOCK]);
        const uint32_t c = bc_carry(&one, x[4][i] ^ w[4 * BC_BLOCK], x[5][i] ^ w[5 * BC_BLOCK]);
        const uint32_t d = bc_carry(&one, x[6][i] ^ w[6 * BC_BLOCK], x[7][i] ^ w[7 * BC_BLOCK]);
        const uint32_t e = bc_carry(&two, a, b), f = bc_carry(&two, c, d);
        count[i] += 8 * bc_popcount(bc_carry(&four, e, f));
        ones[i] = one;
        twos[i] = two;
        fours[i] = four;
    }
}

static inline void bc_sums(const bc_band *b, ptrdiff_t col, ptrdiff_t n, int32_t *t, ptrdiff_t pitch) {
    const ptrdiff_t lanes = bc_up(n, BC_LANES);
    for (ptrdiff_t j = 0; j < BC_BLOCK; j++) {
        const uint32_t *w = (const uint32_t *)b->w + j;
        uint32_t ones[BC_SEGMENT] = {0}, twos[BC_SEGMENT] = {0}, fours[BC_SEGMENT] = {0}, count[BC_SEGMENT] = {0};
        ptrdiff_t k = 0;
        for (; k + 8 <= b->steps; k += 8, w += 8 * BC_BLOCK) {
            const uint32_t *x[8];
            for (int e = 0; e < 8; e++) x[e] = b->x + col + b->off[k + e];
            bc_eight(x, w, lanes, ones, twos, fours, count);
        }
        for (; k < b->steps; k++, w += BC_BLOCK) {
            const uint32_t *x = b->x + col + b->off[k], wk = *w;
            for (ptrdiff_t i = 0; i < lanes; i++) count[i] += bc_popcount(x[i] ^ wk);
        }
        for (ptrdiff_t i = 0; i < lanes; i++) {
            const uint32_t all = count[i] + 4 * bc_popcount(fours[i]) + 2 * bc_popcount(twos[i]) + bc_popcount(ones[i]);
            t[j * pitch + i] = b->base[j * b->base_step + b->column[col + i]] - 2 * (int32_t)all;
        }
    }
}
