/* 8-bit tensors in the layout c4, and what computes on them.
 *
 * c4 holds u8 [N,C,H,W] as [N][ceil(C/4)][H][W] words of 32 bits: four channels side by side, channel 4q in the low
 * byte. A vector of words is then a run of positions with four channels in each lane, which is what the dot-product
 * instructions of every processor take, and four float rows become one row of words without a shuffle. What the bytes of
 * channels beyond C hold is not said.
 *
 * What follows a sum is a row program: a generated function (NAME_rows.h) over a run of positions of one channel.
 */
#ifndef VQC_C4_H
#define VQC_C4_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A row program: element k of every output from element k of every input, for n positions. `constants` are its numbers;
 * an operand that does not move along positions is read at [0]. */
typedef void (*vqc_row)(const float *constants, const void *const *in, void *const *out, ptrdiff_t n);

#define VQC_ROW_OPERANDS 24 /* of a row program, the sums among them */

/* Where an operand's rows lie: steps in bytes from batch to batch, channel to channel, position to position. */
typedef struct vqc_row_operand {
    ptrdiff_t batch, channel, position;
} vqc_row_operand;

/* A row program and its operands: the inputs (after the sums, which come first when there are any), then the outputs.
 * An output whose bit is set in `words` is made as rows of i32 levels in [0, 255] and stored in the layout c4. */
typedef struct vqc_rows {
    vqc_row row;
    const float *constants;
    const vqc_row_operand *operands;
    int32_t inputs, outputs, words;
} vqc_rows;

typedef struct vqc_qconv_c4_params {
    int32_t n, c, h, w, o, oh, ow, groups; /* input and output; channels of a group are multiples of 4, or 1 (depthwise) */
    int32_t kh, kw, sh, sw, ph, pw, dh, dw; /* kernel, stride, padding, dilation */
    int32_t rows;                           /* output rows of one task */
    int32_t bits;                           /* of a weight: 8 or 4 */
    vqc_rows rest;
    size_t scratch;                         /* bytes of scratch for one worker */
} vqc_qconv_c4_params;

/* Convolution of u8 (c4) with s8: acc = sum (x - zero) * w in 32 bits, then the row program on acc.
 *
 *   x       [N][C/4][H][W] words         zero   [C/4] words: the value of x outside the picture, by channel
 *   w       for each group, blocks of 8 output channels (a last one of 4): [C/4][tap][8 (4)][4 bytes]; of 4 bits, two
 *           in a byte, the first one in the low half
 *   offset  [2][O]: sum zero * w, and the same for x - 128, which processors with only signed products work on
 *   in, out the row program's operands   scratch  p->scratch * m->workers bytes
 */
void vqc_qconv_c4(const vqc_model *m, const vqc_qconv_c4_params *p, const void *x, const int8_t *w, const int32_t *offset,
                  const uint32_t *zero, const void *const *in, void *const *out, void *scratch);

/* Depthwise (groups == c == o). w: [C/4][taps in fours][4 channels][4 taps] bytes, missing taps zero. */
void vqc_qconv_dw_c4(const vqc_model *m, const vqc_qconv_c4_params *p, const void *x, const int8_t *w,
                     const int32_t *offset, const uint32_t *zero, const void *const *in, void *const *out, void *scratch);

/* Transposed. w: for each phase (row, then column), as above with the taps that reach it; offset: [phase][2][O];
 * p->rows counts rows of a phase. Strides are 8 at most. */
void vqc_qconv_transpose_c4(const vqc_model *m, const vqc_qconv_c4_params *p, const void *x, const int8_t *w,
                            const int32_t *offset, const uint32_t *zero, const void *const *in, void *const *out,
                            void *scratch);

typedef struct vqc_rows_c4_params {
    int32_t n, c;
    ptrdiff_t positions; /* of a channel */
    vqc_rows rest;
} vqc_rows_c4_params;

/* A row program over all channels of a picture, without sums. */
void vqc_rows_c4(const vqc_model *m, const vqc_rows_c4_params *p, const void *const *in, void *const *out);

/* Some channels of a tensor that is put together. Operand i of its row program is in[part.in + i]; its output is
 * i32 levels.
 * resized: the program's first four operands are two rows of a bilinear resize and the weights of both, and after the
 * operands come its source f32 [N,channels,h,w], rows i32 [2][H], their weights, columns i32 [2][W], their weights. */
typedef struct vqc_part {
    int32_t first, channels; /* in the output */
    int32_t in, resized, h, w;
    int32_t twice;           /* columns are doubled (vqc_resize_row.h) */
    vqc_rows rest;
} vqc_part;

typedef struct vqc_parts_c4_params {
    int32_t n, c, h, w; /* output */
    int32_t rows;       /* of one task */
    const vqc_part *parts;
    size_t scratch;     /* bytes of scratch for one worker: 8 rows of f32 */
} vqc_parts_c4_params;

/* Put parts together, channel after channel, in the layout c4. */
void vqc_parts_c4(const vqc_model *m, const vqc_parts_c4_params *p, const void *const *in, void *y, void *scratch);

typedef struct vqc_c4_params {
    int32_t n, c;
    ptrdiff_t positions;
} vqc_c4_params;

/* u8 [N,C,positions], dense, to c4 and back. */
void vqc_pack_c4(const vqc_model *m, const vqc_c4_params *p, const uint8_t *x, void *y);
void vqc_unpack_c4(const vqc_model *m, const vqc_c4_params *p, const void *x, uint8_t *y);

#ifdef __cplusplus
}
#endif
#endif
