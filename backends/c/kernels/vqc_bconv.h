/* Binary convolutions, and the sign that makes pictures for them.
 *
 * Meaning (the vqc:: operators binarize, bconv2d, bconv2d_threshold): values are +1 and -1, padding is a true zero.
 *   acc = sum x * w over the taps inside the picture          (int32)
 *   y   = (float)acc * scale[o] + bias[o]                     (two roundings), then the epilogue
 *
 * Bits. A bit is 1 for -1 and 0 for +1: bit = x < tau.
 *   Pictures (layout "b32"): uint32 [N][ceil(C/32)][H][W]; bit b of word g is channel 32 g + b. Positions lie side by
 *     side, so kernels put positions into lanes and their results are born planar, like the float tensors.
 *   Weights: uint32 [ceil(O/8)][steps][8]: blocks of 8 output channels, innermost the channel of the block. Steps are
 *     [C/32][kh][kw], and then, for the channels of a word that is not full, [kh * kw] or fewer, see below.
 *   Bits of channels that do not exist (the last word, the last block) are 0 in both, and so never differ.
 *   With d = number of differing bits over the taps inside:  acc = C * (taps inside) - 2 d.
 *
 * Channels left over. With 35 channels the second word would hold 3 bits of 32, at the cost of a full one. Where fewer than
 * a full word are left, taps share a word: each takes the channels left, rounded up to whole groups of 4 bits, tap 0 the lowest
 * bits. Unpacking puts the input together the same way (bc_join), once for a band and all output channels.
 *
 * Pairs. For bits of two steps, x1 ^ w1 and x2 ^ w2 differ as often, together, as
 *   ones of w1 ^ w2  -  ones of x1 ^ x2  +  2 * ones of F,  F = x2 ^ w1 ? ~(w1 ^ w2) : x1 ^ x2:
 * F is the carry of x1 ^ x2, ~(w1 ^ w2) and x1 ^ w1, and x2 ^ w2 turned round is their parity. The first number belongs to the
 * channel, the second to the position, so that a word counts for two: two operations make it, where two exclusive ors were
 * before, and half the counting is saved. It is Winograd's inner product (A New Algorithm for Inner Product, IEEE Trans.
 * Computers, 1968), which halves multiplications, for numbers of one bit. A step without a partner
 * differs as often as ones of w - ones of x + 2 * ones of x & ~w.
 *
 * Padding. A kernel that counts padded taps as zero bits counts their weights' ones. `base` repairs that: output rows
 * and columns fall into classes by which taps lie outside, and acc = base[o][row class][column class] - 2 * (count over
 * all taps). A kernel that can leave padded taps out counts d itself, and takes C * (taps inside) instead.
 *
 * The hook. vqc_bconv_core.h does everything but the counting. A processor's file (vqc_bconv_NAME.h, chosen in
 * vqc_bconv.c by the compiler's macros) defines, see vqc_bconv_generic.h for the plain one:
 *   BC_E                 element of the unpacked input (uint32_t or uint8_t); BC_PLANES of them hold a word of 32 channels
 *   BC_LANES             positions at a time: rows of unpacked input have so many more elements than needed
 *   BC_PAD               what BC_E is outside the picture
 *   bc_expand            words of one row -> BC_PLANES rows of BC_E
 *   bc_join              one tap's bits of a word into a word that taps share
 *   bc_sums(b, x, n, t, pitch)   t[j * pitch + i] = acc of channel j of the block at position x + i, for n of up to 64, and
 *                        for more of them until a vector is whole
 * Tests compile every file with -DVQC_GENERIC as well, which chooses the plain hook: results are equal bit for bit.
 *
 * A hook may bring more:
 *   BC_OWN_BITS          bc_limit and bc_bits decide thresholds on the counts themselves, without sums in memory
 *   BC_OWN_FLOATS        bc_block computes float results of a whole block of channels in registers, where bc_place_block
 *                        says so; the rest is bc_finish's
 *   BC_PAIRS             steps are counted in pairs: bc_differ sums up, for every position of a band, what belongs to it
 *   BC_OWN_MASK          bc_masked_band puts what a mask keeps side by side (vqc_bconv_masked.h), where bc_packs says so
 *
 * Masked. bc_row computes any segment of a row; under a mask it is called for pieces that have a mark, and leaves zeros
 * between the marks.
 */
#ifndef VQC_BCONV_H
#define VQC_BCONV_H

#include "vqc_c4.h"
#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum vqc_bconv_activation { VQC_BACT_NONE = 0, VQC_BACT_RELU = 1, VQC_BACT_PRELU = 2 };

typedef struct vqc_bconv_params {
    int32_t n, c, h, w;                     /* input */
    int32_t o, oh, ow;                      /* output */
    int32_t kh, kw, sh, sw, ph, pw, dh, dw; /* kernel, stride, padding, dilation */
    int32_t row_classes, column_classes;    /* see above; at most 16 classes of columns */
    int32_t rows;                           /* output rows of one task */
    int32_t act;                            /* enum vqc_bconv_activation */
    int32_t taus;                           /* thresholds of the sign that follows: 1 or o */
    int32_t residuals;                      /* channels of the residual: channel i takes i modulo residuals */
    float residual_scale;                   /* what it is multiplied by */
    size_t scratch;                         /* bytes of scratch for one worker */
} vqc_bconv_params;

/* Float result: v = (float)acc * scale + bias; v = v + residual * residual_scale (f32 [n][residuals][oh][ow]; may
 * be y itself where it has o channels, or NULL); v = activation(v), slope [o] for PReLU; y = v (unless NULL), bits = v < tau (unless NULL).
 *   base int32 [o][row_classes][column_classes] and 16 more entries; classes uint8 [oh] of rows, then [ow] of columns. */
void vqc_bconv2d(const vqc_model *m, const vqc_bconv_params *p, const uint32_t *x, const uint32_t *w,
                 const int32_t *base, const uint8_t *classes, const float *scale, const float *bias,
                 const float *residual, const float *slope, const float *tau, float *y, uint32_t *bits, void *scratch);

/* Under a mask [n][oh][ow] of 0 and 1: y = (float)acc * scale + bias where it is 1, else +0. Segments of a row without a 1
 * are not computed. */
void vqc_masked_bconv2d(const vqc_model *m, const vqc_bconv_params *p, const uint32_t *x, const uint32_t *w,
                        const int32_t *base, const uint8_t *classes, const float *scale, const float *bias,
                        const uint8_t *mask, float *y, void *scratch);

typedef struct vqc_bconv_rows_params {
    vqc_bconv_params conv; /* without an epilogue of its own */
    vqc_rows rest;         /* one output, f32; of its inputs, those that move along positions have 4 bytes or fewer */
    vqc_row pieces;        /* the same over pieces of 16 positions: in[1] says where each begins (int32), then the operands
                            * from position 0 on. NULL unless `start` is y or copied there, and the program leaves it as it
                            * is wherever the mask is 0, whatever the sums are: then any position may be computed. */
    size_t scratch;        /* bytes of scratch for one worker */
} vqc_bconv_rows_params;

/* Under a mask, with a row program (vqc_c4.h): y = the program on acc and `in` where the mask is 1, `start` (f32, the same
 * shape, may be y itself) elsewhere. An operand may be y as well: it is read before its place is written. */
void vqc_masked_bconv2d_rows(const vqc_model *m, const vqc_bconv_rows_params *p, const uint32_t *x, const uint32_t *w,
                             const int32_t *base, const uint8_t *classes, const uint8_t *mask, const float *start,
                             const void *const *in, float *y, void *scratch);

/* Binary result: bits = !(acc >= threshold[o]), turned round where flip[o]. */
void vqc_bconv2d_threshold(const vqc_model *m, const vqc_bconv_params *p, const uint32_t *x, const uint32_t *w,
                           const int32_t *base, const uint8_t *classes, const int32_t *threshold, const uint8_t *flip,
                           uint32_t *bits, void *scratch);

typedef struct vqc_bits_params {
    int32_t n, c, plane; /* plane: positions, h * w */
    int32_t taus;        /* 1 or c */
} vqc_bits_params;

void vqc_binarize(const vqc_model *m, const vqc_bits_params *p, const float *x, const float *tau, uint32_t *bits);
void vqc_bits_pack(const vqc_model *m, const vqc_bits_params *p, const int8_t *x, uint32_t *bits);
void vqc_bits_unpack(const vqc_model *m, const vqc_bits_params *p, const uint32_t *bits, int8_t *x);

#ifdef __cplusplus
}
#endif
#endif
