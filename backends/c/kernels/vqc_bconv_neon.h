/* Counting differing bits on Arm: 16 positions of 8 channels at a time, three instructions for 128 bits (eor, cnt, and a
 * share of the pairwise sums), and the epilogues on counts of 16 bits.
 *
 * The few instructions that compilers order badly, or spoil by undoing a select, stand as assembly. */
#include <arm_neon.h>

#define BC_E uint32_t
#define BC_PLANES 1
#define BC_LANES 16
#define BC_PAD 0u
#define BC_PREPARED(steps) ((steps) * BC_BLOCK * 16) /* every word of the block's weights, four times */
#define BC_OWN_WEIGHTS 1
#define BC_OWN_TASK 1

#include "vqc_bconv_band.h"
#include "vqc_bconv_words.h"
#include "vqc_bconv_rest_neon.h"

static int bc_own_task(const bc_job *j, int index, int worker); /* vqc_bconv_task_neon.h */

static void bc_prepare(unsigned char *prepared) { (void)prepared; }

static const void *bc_weights(const uint32_t *w, ptrdiff_t steps, unsigned char *prepared) {
    uint32_t *to = (uint32_t *)(void *)prepared;
    for (ptrdiff_t i = 0; i < steps * BC_BLOCK; i++) vst1q_u32(to + 4 * i, vdupq_n_u32(w[i]));
    return prepared;
}

/* Counts of one channel at 16 positions: lo and hi += the differing bits of the words a, b, c, d and w. */
static BC_INLINE void bc_count16(uint16x8_t *lo, uint16x8_t *hi, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d,
                          uint8x16_t w) {
    uint8x16_t p, q, r, s;
    __asm__("eor %2.16b, %6.16b, %10.16b\n\t"
            "eor %3.16b, %7.16b, %10.16b\n\t"
            "eor %4.16b, %8.16b, %10.16b\n\t"
            "eor %5.16b, %9.16b, %10.16b\n\t"
            "cnt %2.16b, %2.16b\n\t"
            "cnt %3.16b, %3.16b\n\t"
            "cnt %4.16b, %4.16b\n\t"
            "cnt %5.16b, %5.16b\n\t"
            "addp %2.16b, %2.16b, %3.16b\n\t"
            "addp %4.16b, %4.16b, %5.16b\n\t"
            "uadalp %0.8h, %2.16b\n\t"
            "uadalp %1.8h, %4.16b"
            : "+w"(*lo), "+w"(*hi), "=&w"(p), "=&w"(q), "=&w"(r), "=&w"(s)
            : "w"(a), "w"(b), "w"(c), "w"(d), "w"(w));
}

/* acc[channel] += counts of 8 channels at 16 positions. */
static BC_INLINE void bc_tile(const uint32_t *x, const int32_t *off, ptrdiff_t steps, const uint8_t *w,
                              uint16x8x2_t acc[BC_BLOCK]) {
    for (ptrdiff_t k = 0; k < steps; k++, w += 16 * BC_BLOCK) {
        const uint8_t *xk = (const uint8_t *)(const void *)(x + off[k]);
        const uint8x16_t a = vld1q_u8(xk), b = vld1q_u8(xk + 16), c = vld1q_u8(xk + 32), d = vld1q_u8(xk + 48);
        BC_UNROLL for (int j = 0; j < BC_BLOCK; j++)
            bc_count16(&acc[j].val[0], &acc[j].val[1], a, b, c, d, vld1q_u8(w + 16 * j));
    }
}

/* The same from zero, twice the counts to t[channel * pitch + position]. */
static BC_INLINE void bc_tile_twice(const uint32_t *x, const int32_t *off, ptrdiff_t steps, const uint8_t *w,
                                    uint16_t *t, ptrdiff_t pitch) {
    uint16x8x2_t acc[BC_BLOCK];
    BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) acc[j].val[0] = acc[j].val[1] = vdupq_n_u16(0);
    bc_tile(x, off, steps, w, acc);
    BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {
        vst1q_u16(t + pitch * j, vshlq_n_u16(acc[j].val[0], 1));
        vst1q_u16(t + pitch * j + 8, vshlq_n_u16(acc[j].val[1], 1));
    }
}

/* The same from start[channel * BC_TILE + position]: the sums' top bits, a byte of 8 channels at each position. */
static BC_INLINE uint8x16_t bc_tile_tops(const uint32_t *x, const int32_t *off, ptrdiff_t steps, const uint8_t *w,
                                         const uint16_t *start) {
    uint16x8x2_t acc[BC_BLOCK];
    uint8x16_t bits = vdupq_n_u8(0);
    BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {
        acc[j].val[0] = vld1q_u16(start + BC_TILE * j);
        acc[j].val[1] = vld1q_u16(start + BC_TILE * j + 8);
    }
    bc_tile(x, off, steps, w, acc);
    BC_UNROLL for (int j = 0; j < BC_BLOCK; j++)
        bits = vsriq_n_u8(vuzp2q_u8(vreinterpretq_u8_u16(acc[j].val[0]), vreinterpretq_u8_u16(acc[j].val[1])), bits, 1);
    return bits;
}

/* The columns of 16 from `column` on whose class is not the first one's: how many, and which. */
static inline int bc_other_columns(const int32_t *column, int32_t other[16]) {
    const int32x4_t first = vdupq_n_s32(column[0]);
    uint32x4_t differ = vdupq_n_u32(0);
    int count = 0;
    for (int i = 0; i < 4; i++) differ = vorrq_u32(differ, vmvnq_u32(vceqq_s32(vld1q_s32(column + 4 * i), first)));
    if (vmaxvq_u32(differ) == 0) return 0; /* mostly */
    for (int i = 1; i < 16; i++)
        if (column[i] != column[0]) other[count++] = i;
    return count;
}

/* The sums of 16 positions. */
static BC_INLINE void bc_sums16(const bc_band *b, ptrdiff_t col, int32_t *t) {
    const int32_t *column = b->column + col;
    int32_t other[16];
    const int others = bc_other_columns(column, other);
    for (ptrdiff_t k = 0; k < b->steps; k += BC_MOST_STEPS) {
        const ptrdiff_t steps = b->steps - k < BC_MOST_STEPS ? b->steps - k : BC_MOST_STEPS;
        uint16x8x2_t count[BC_BLOCK];
        BC_UNROLL for (int c = 0; c < BC_BLOCK; c++) count[c].val[0] = count[c].val[1] = vdupq_n_u16(0);
        bc_tile(b->x + col, b->off + k, steps, (const uint8_t *)b->w + 16 * BC_BLOCK * k, count);
        BC_UNROLL for (int c = 0; c < BC_BLOCK; c++) {
            int32_t *to = t + c * BC_SEGMENT;
            const int32x4_t base = vdupq_n_s32(b->base[c * b->base_step + column[0]]);
            BC_UNROLL for (int i = 0; i < 4; i++) {
                const uint16x8_t eight = count[c].val[i / 2];
                const uint32x4_t twice = i % 2 ? vshll_high_n_u16(eight, 1) : vshll_n_u16(vget_low_u16(eight), 1);
                vst1q_s32(to + 4 * i, vsubq_s32(k == 0 ? base : vld1q_s32(to + 4 * i), vreinterpretq_s32_u32(twice)));
            }
        }
    }
    for (int c = 0; c < BC_BLOCK && others > 0; c++) {
        const int32_t *base = b->base + c * b->base_step;
        for (int i = 0; i < others; i++) t[c * BC_SEGMENT + other[i]] += base[column[other[i]]] - base[column[0]];
    }
}

static inline void bc_sums(const bc_band *b, ptrdiff_t col, ptrdiff_t n, int32_t t[BC_BLOCK][BC_SEGMENT]) {
    for (ptrdiff_t i = 0; i < n; i += 16) bc_sums16(b, col + i, t[0] + i);
}
