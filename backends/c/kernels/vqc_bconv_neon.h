/* Counting differing bits on Arm: 16 positions of 8 channels at a time, in pairs of steps (vqc_bconv.h): four instructions
 * for two times 128 bits (eor, bsl, cnt, and a share of the pairwise sums), and the epilogues on counts of 16 bits.
 *
 * The few instructions that compilers order badly, or spoil by undoing a select, stand as assembly. */
#include <arm_neon.h>

#define BC_E uint32_t
#define BC_PLANES 1
#define BC_LANES 16
#define BC_PAD 0u
#define BC_PREPARED(steps) ((steps) * BC_BLOCK * 16 + 64) /* every word four times, and what the block's weights add */
#define BC_PAIRS 1
#define BC_OWN_WEIGHTS 1
#define BC_OWN_TASK 1

#include "vqc_bconv_band.h"
#include "vqc_bconv_words.h"
#include "vqc_bconv_rest_neon.h"

static int bc_own_task(const bc_job *j, int index, int worker); /* vqc_bconv_task_neon.h */

static void bc_prepare(unsigned char *prepared) { (void)prepared; }

/* Weights of a pair of steps as w1 and ~(w1 ^ w2), side by side for each channel, of a last one as they are; behind them twice
 * the ones of w1 ^ w2 and of the last. */
static const void *bc_weights(const uint32_t *w, ptrdiff_t steps, unsigned char *prepared) {
    uint32_t *to = (uint32_t *)(void *)prepared;
    int32_t *added = (int32_t *)(void *)(prepared + steps * BC_BLOCK * 16);
    memset(added, 0, BC_BLOCK * sizeof *added);
    for (ptrdiff_t k = 0; k < steps; k += 2, w += 2 * BC_BLOCK) {
        const int pair = k + 1 < steps;
        for (ptrdiff_t j = 0; j < BC_BLOCK; j++, to += pair ? 8 : 4) {
            const uint32_t differ = pair ? w[j] ^ w[BC_BLOCK + j] : w[j];
            vst1q_u32(to, vdupq_n_u32(w[j]));
            if (pair) vst1q_u32(to + 4, vdupq_n_u32(~differ));
            added[j] += 2 * (int32_t)vaddv_u8(vcnt_u8(vcreate_u8(differ)));
        }
    }
    return prepared;
}

/* What bc_weights put behind a block's weights. */
static inline const int32_t *bc_added(const void *w, ptrdiff_t steps) {
    return (const int32_t *)(const void *)((const uint8_t *)w + steps * BC_BLOCK * 16);
}

/* Counts at 16 positions: lo and hi += the ones of the words a, b, c and d. */
static BC_INLINE void bc_ones16(uint16x8_t *lo, uint16x8_t *hi, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
    *lo = vpadalq_u8(*lo, vpaddq_u8(vcntq_u8(a), vcntq_u8(b)));
    *hi = vpadalq_u8(*hi, vpaddq_u8(vcntq_u8(c), vcntq_u8(d)));
}

/* The ones of x1 ^ x2 at 16 positions, of all pairs of steps and of a last one. */
static BC_INLINE uint16x8x2_t bc_differ16(const uint32_t *x, const int32_t *off, ptrdiff_t steps) {
    uint16x8x2_t count = {{vdupq_n_u16(0), vdupq_n_u16(0)}};
    for (ptrdiff_t k = 0; k < steps; k += 2) {
        const uint8_t *first = (const uint8_t *)(const void *)(x + off[k]);
        uint8x16_t v[4];
        BC_UNROLL for (int i = 0; i < 4; i++) v[i] = vld1q_u8(first + 16 * i);
        if (k + 1 < steps) {
            const uint8_t *second = (const uint8_t *)(const void *)(x + off[k + 1]);
            BC_UNROLL for (int i = 0; i < 4; i++) v[i] = veorq_u8(v[i], vld1q_u8(second + 16 * i));
        }
        bc_ones16(&count.val[0], &count.val[1], v[0], v[1], v[2], v[3]);
    }
    return count;
}

/* Counts of one channel at 16 positions: lo and hi += the ones that a pair of steps has. second: its second words; differ: by
 * what the first differ from them; w: where the channel's weights stand. One piece of assembly, loads and all: where compilers
 * place them, there are not registers enough. */
#define BC_PAIR16(lo, hi, second, differ, w, j)                                                                       \
    {                                                                                                                 \
        uint8x16_t p, q, r, s, weight, same;                                                                          \
        __asm__("ldp %q6, %q7, [%16, #%c17]\n\t"                                                                      \
                "eor %2.16b, %8.16b, %6.16b\n\t"                                                                      \
                "eor %3.16b, %9.16b, %6.16b\n\t"                                                                      \
                "eor %4.16b, %10.16b, %6.16b\n\t"                                                                     \
                "eor %5.16b, %11.16b, %6.16b\n\t"                                                                     \
                "bsl %2.16b, %7.16b, %12.16b\n\t"                                                                     \
                "bsl %3.16b, %7.16b, %13.16b\n\t"                                                                     \
                "bsl %4.16b, %7.16b, %14.16b\n\t"                                                                     \
                "bsl %5.16b, %7.16b, %15.16b\n\t"                                                                     \
                "cnt %2.16b, %2.16b\n\t"                                                                              \
                "cnt %3.16b, %3.16b\n\t"                                                                              \
                "cnt %4.16b, %4.16b\n\t"                                                                              \
                "cnt %5.16b, %5.16b\n\t"                                                                              \
                "addp %2.16b, %2.16b, %3.16b\n\t"                                                                     \
                "addp %4.16b, %4.16b, %5.16b\n\t"                                                                     \
                "uadalp %0.8h, %2.16b\n\t"                                                                            \
                "uadalp %1.8h, %4.16b"                                                                                \
                : "+w"(lo), "+w"(hi), "=&w"(p), "=&w"(q), "=&w"(r), "=&w"(s), "=&w"(weight), "=&w"(same)              \
                : "w"(second[0]), "w"(second[1]), "w"(second[2]), "w"(second[3]), "w"(differ[0]), "w"(differ[1]),     \
                  "w"(differ[2]), "w"(differ[3]), "r"(w), "i"(32 * (j)),                                              \
                  "m"(*(const uint8_t(*)[32 * BC_BLOCK])(w)));                                                        \
    }

/* acc[channel] += counts of 8 channels at 16 positions. */
static BC_INLINE void bc_tile(const uint32_t *x, const int32_t *off, ptrdiff_t steps, const uint8_t *w,
                              uint16x8x2_t acc[BC_BLOCK]) {
    for (; steps >= 2; steps -= 2, off += 2, w += 32 * BC_BLOCK) {
        const uint8_t *first = (const uint8_t *)(const void *)(x + off[0]);
        const uint8_t *second = (const uint8_t *)(const void *)(x + off[1]);
        uint8x16_t v[4], differ[4];
        BC_UNROLL for (int i = 0; i < 4; i++) {
            v[i] = vld1q_u8(second + 16 * i);
            differ[i] = veorq_u8(v[i], vld1q_u8(first + 16 * i));
        }
        BC_PAIR16(acc[0].val[0], acc[0].val[1], v, differ, w, 0)
        BC_PAIR16(acc[1].val[0], acc[1].val[1], v, differ, w, 1)
        BC_PAIR16(acc[2].val[0], acc[2].val[1], v, differ, w, 2)
        BC_PAIR16(acc[3].val[0], acc[3].val[1], v, differ, w, 3)
        BC_PAIR16(acc[4].val[0], acc[4].val[1], v, differ, w, 4)
        BC_PAIR16(acc[5].val[0], acc[5].val[1], v, differ, w, 5)
        BC_PAIR16(acc[6].val[0], acc[6].val[1], v, differ, w, 6)
        BC_PAIR16(acc[7].val[0], acc[7].val[1], v, differ, w, 7)
    }
    if (steps > 0) {
        const uint8_t *last = (const uint8_t *)(const void *)(x + off[0]);
        uint8x16_t v[4];
        BC_UNROLL for (int i = 0; i < 4; i++) v[i] = vld1q_u8(last + 16 * i);
        BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {
            const uint8x16_t wj = vld1q_u8(w + 16 * j);
            bc_ones16(&acc[j].val[0], &acc[j].val[1], vbicq_u8(v[0], wj), vbicq_u8(v[1], wj), vbicq_u8(v[2], wj),
                      vbicq_u8(v[3], wj));
        }
    }
}

/* Four times the counts from zero, less `own`, to t[channel * pitch + position]. */
static BC_INLINE void bc_tile_twice(const uint32_t *x, const int32_t *off, ptrdiff_t steps, const uint8_t *w,
                                    uint16x8x2_t own, uint16_t *t, ptrdiff_t pitch) {
    uint16x8x2_t acc[BC_BLOCK];
    BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) acc[j].val[0] = acc[j].val[1] = vdupq_n_u16(0);
    bc_tile(x, off, steps, w, acc);
    BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {
        vst1q_u16(t + pitch * j, vsubq_u16(vshlq_n_u16(acc[j].val[0], 2), own.val[0]));
        vst1q_u16(t + pitch * j + 8, vsubq_u16(vshlq_n_u16(acc[j].val[1], 2), own.val[1]));
    }
}

/* The counts from the middle of `own` and start[channel * BC_TILE + position] on: their top bits, a byte of 8 channels at each
 * position. */
static BC_INLINE uint8x16_t bc_tile_tops(const uint32_t *x, const int32_t *off, ptrdiff_t steps, const uint8_t *w,
                                         uint16x8x2_t own, const uint16_t *start) {
    uint16x8x2_t acc[BC_BLOCK];
    uint8x16_t bits = vdupq_n_u8(0);
    BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {
        acc[j].val[0] = vhaddq_u16(vld1q_u16(start + BC_TILE * j), own.val[0]);
        acc[j].val[1] = vhaddq_u16(vld1q_u16(start + BC_TILE * j + 8), own.val[1]);
    }
    bc_tile(x, off, steps, w, acc);
    BC_UNROLL for (int j = 0; j < BC_BLOCK; j++)
        bits = vsriq_n_u8(vuzp2q_u8(vreinterpretq_u8_u16(acc[j].val[0]), vreinterpretq_u8_u16(acc[j].val[1])), bits, 1);
    return bits;
}

/* to[i] = twice the ones of x1 ^ x2, of all pairs and of a last step, at n positions from column `col` on. */
static void bc_differ(const bc_band *b, ptrdiff_t col, ptrdiff_t n, int32_t *to) {
    for (ptrdiff_t i = 0; i < n; i += 16) {
        uint32x4_t sum[4] = {{0}, {0}, {0}, {0}};
        for (ptrdiff_t k = 0; k < b->steps; k += BC_PAIRED_STEPS) {
            const ptrdiff_t steps = b->steps - k < BC_PAIRED_STEPS ? b->steps - k : BC_PAIRED_STEPS;
            const uint16x8x2_t ones = bc_differ16(b->x + col + i, b->off + k, steps);
            BC_UNROLL for (int e = 0; e < 4; e++) {
                const uint16x8_t eight = ones.val[e / 2];
                sum[e] = vaddw_u16(sum[e], e % 2 ? vget_high_u16(eight) : vget_low_u16(eight));
            }
        }
        BC_UNROLL for (int e = 0; e < 4; e++) vst1q_s32(to + i + 4 * e, vreinterpretq_s32_u32(vshlq_n_u32(sum[e], 1)));
    }
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
static BC_INLINE void bc_sums16(const bc_band *b, ptrdiff_t col, int32_t *t, ptrdiff_t pitch) {
    const int32_t *column = b->column + col, *added = bc_added(b->w, b->steps);
    int32_t other[16];
    const int others = bc_other_columns(column, other);
    int32x4_t own[4];
    BC_UNROLL for (int i = 0; i < 4; i++) own[i] = vld1q_s32(b->differ + col + 4 * i);
    for (ptrdiff_t k = 0; k < b->steps; k += BC_PAIRED_STEPS) {
        const ptrdiff_t steps = b->steps - k < BC_PAIRED_STEPS ? b->steps - k : BC_PAIRED_STEPS;
        uint16x8x2_t count[BC_BLOCK];
        BC_UNROLL for (int c = 0; c < BC_BLOCK; c++) count[c].val[0] = count[c].val[1] = vdupq_n_u16(0);
        bc_tile(b->x + col, b->off + k, steps, (const uint8_t *)b->w + 16 * BC_BLOCK * k, count);
        BC_UNROLL for (int c = 0; c < BC_BLOCK; c++) {
            int32_t *to = t + c * pitch;
            const int32x4_t base = vdupq_n_s32(b->base[c * b->base_step + column[0]] - added[c]);
            BC_UNROLL for (int i = 0; i < 4; i++) {
                const uint16x8_t eight = count[c].val[i / 2];
                const uint32x4_t four = i % 2 ? vshll_high_n_u16(eight, 2) : vshll_n_u16(vget_low_u16(eight), 2);
                const int32x4_t from = k == 0 ? vaddq_s32(base, own[i]) : vld1q_s32(to + 4 * i);
                vst1q_s32(to + 4 * i, vsubq_s32(from, vreinterpretq_s32_u32(four)));
            }
        }
    }
    for (int c = 0; c < BC_BLOCK && others > 0; c++) {
        const int32_t *base = b->base + c * b->base_step;
        for (int i = 0; i < others; i++) t[c * pitch + other[i]] += base[column[other[i]]] - base[column[0]];
    }
}

static inline void bc_sums(const bc_band *b, ptrdiff_t col, ptrdiff_t n, int32_t *t, ptrdiff_t pitch) {
    for (ptrdiff_t i = 0; i < n; i += 16) bc_sums16(b, col + i, t + i, pitch);
}
