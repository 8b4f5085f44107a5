/* A masked convolution that ends in a row program (vqc_masked_bconv2d_rows): the result begins as another tensor, and only
 * positions that the mask keeps are written. Pieces of rows with a mark are computed, and of those what is kept is stored. */

#define BC_RUN 256 /* positions of a run of a row program, at most */

/* Where an operand of the row program stands, for a channel and a position. */
static inline unsigned char *bc_operand(const void *base, const vqc_row_operand *o, ptrdiff_t image, ptrdiff_t channel,
                                        ptrdiff_t at) {
    return (unsigned char *)(uintptr_t)base + image * o->batch + channel * o->channel + at * o->position;
}

/* y = value where keep is -1, and as it is where that is 0. */
static inline void bc_keep(float *y, const float *value, const int32_t *keep, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + VQC_VL <= n; i += VQC_VL) {
        vqc_vf_mem *to = (vqc_vf_mem *)(void *)(y + i);
        const vqc_vf made = *(const vqc_vf_mem *)(const void *)(value + i), old = *to;
        *to = BC_SELECT(*(const vqc_vi_mem *)(const void *)(keep + i), made, old);
    }
    for (; i < n; i++) y[i] = keep[i] != 0 ? value[i] : y[i];
}

/* n <= BC_RUN positions of an output row from column `col` on, for one block of channels; `all`: every one
 * is kept, or may be computed. */
static void bc_row_run(const bc_job *j, const bc_band *b, ptrdiff_t image, ptrdiff_t o, ptrdiff_t row, ptrdiff_t col,
                   ptrdiff_t n, int all) {
    const vqc_bconv_params *p = j->p;
    const vqc_rows *rest = j->rest;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow, at = row * p->ow + col;
    const uint8_t *mask = j->mask + image * plane + at;
    BC_ALIGNED int32_t sums[BC_BLOCK][BC_RUN], keep[BC_RUN];
    for (ptrdiff_t i = 0; i < n && !all; i++) keep[i] = -(int32_t)(mask[i] != 0);
    for (ptrdiff_t i = 0; i < n; i += BC_SEGMENT) {
        const ptrdiff_t some = n - i < BC_SEGMENT ? n - i : BC_SEGMENT;
        for (ptrdiff_t c = 0; c < BC_BLOCK && o + c < p->o; c++)
            for (ptrdiff_t e = i; e < i + some; e += 16) BC_PREFETCH(j->y + (image * p->o + o + c) * plane + at + e);
        if (some == BC_SEGMENT) bc_sums(b, col + i, BC_SEGMENT, sums[0] + i, BC_RUN); /* a constant: loops are unrolled */
        else bc_sums(b, col + i, some, sums[0] + i, BC_RUN);
    }
    for (ptrdiff_t c = 0; c < BC_BLOCK && o + c < p->o; c++) {
        const void *from[VQC_ROW_OPERANDS];
        void *to[1];
        float value[BC_RUN], *y = j->y + (image * p->o + o + c) * plane + at;
        from[0] = sums[c];
        for (int i = 0; i < rest->inputs; i++) from[1 + i] = bc_operand(j->in[i], &rest->operands[i], image, o + c, at);
        to[0] = all ? y : value;
        rest->row(rest->constants, from, to, n);
        if (!all) bc_keep(y, value, keep, n);
    }
}

/* A row of a block of channels: runs of pieces that have a mark. */
static void bc_row_rest(const bc_job *j, const bc_band *b, ptrdiff_t image, ptrdiff_t o, ptrdiff_t row, int all) {
    const vqc_bconv_params *p = j->p;
    const uint8_t *mask = j->mask + (image * p->oh + row) * p->ow;
    ptrdiff_t from = 0;
    while (from < p->ow) {
        ptrdiff_t end = from;
        while (end < p->ow && end + BC_PIECE <= from + BC_RUN) {
            const ptrdiff_t n = p->ow - end < BC_PIECE ? p->ow - end : BC_PIECE;
            if (!all && bc_marks(mask + end, n) == 0) break;
            end += n;
        }
        if (end > from) bc_row_run(j, b, image, o, row, from, end - from, all || j->pieces != NULL);
        else end += BC_PIECE;
        from = end;
    }
}

/* The result as it begins, in rows [first, last), unless it lies there already. */
static void bc_begin(const bc_job *j, ptrdiff_t image, ptrdiff_t first, ptrdiff_t last) {
    const vqc_bconv_params *p = j->p;
    if (j->start == j->y) return;
    for (ptrdiff_t o = 0; o < p->o; o++) {
        const ptrdiff_t at = ((image * p->o + o) * p->oh + first) * p->ow;
        memcpy(j->y + at, j->start + at, (size_t)((last - first) * p->ow) * sizeof *j->y);
    }
}
