/* Counting differing bits in plain C: the generic twin of every other hook. */
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

static inline void bc_sums(const bc_band *b, ptrdiff_t col, ptrdiff_t n, int32_t t[BC_BLOCK][BC_SEGMENT]) {
    const uint32_t *w = (const uint32_t *)b->w;
    const ptrdiff_t lanes = bc_up(n, BC_LANES);
    for (ptrdiff_t j = 0; j < BC_BLOCK; j++) {
        uint32_t count[BC_SEGMENT] = {0};
        for (ptrdiff_t k = 0; k < b->steps; k++) {
            const uint32_t *x = b->x + col + b->off[k], wk = w[k * BC_BLOCK + j];
            for (ptrdiff_t i = 0; i < lanes; i++) count[i] += bc_popcount(x[i] ^ wk);
        }
        for (ptrdiff_t i = 0; i < lanes; i++)
            t[j][i] = b->base[j * b->base_step + b->column[col + i]] - 2 * (int32_t)count[i];
    }
}
