/* A band under a mask with AVX-512, before a row program: vectors of 16 positions that have a mark are put side by side and
 * counted as if they were one row. Where many of their positions are not kept, only those that are get counted, and the sums
 * go back to their places in the vectors. Vectors without a mark are not touched. */

#define BC_MOVING 8    /* operands that move along positions, at most */
#define BC_VECTORS 24  /* of a chunk, at most */
#define BC_CHUNK (16 * BC_VECTORS)
#define BC_PACKED 8192 /* words of a chunk's input that are aimed at: they stay in the first cache */

typedef struct bc_chosen {
    ptrdiff_t vectors, whole, kept; /* vectors; those of 16 positions, which come first; positions that are counted */
    ptrdiff_t pitch;                /* between the steps of the input */
    int compact;                    /* whether only marked positions are counted */
    int32_t at[BC_VECTORS + 1];     /* of the result's plane */
    int32_t before[BC_VECTORS];     /* positions counted before a vector's */
    int32_t size[BC_VECTORS];       /* positions in the row: 16, but at its end */
    uint16_t marks[BC_VECTORS];
    BC_ALIGNED int32_t kind[BC_CHUNK + BC_SEGMENT]; /* row and column class of what is counted */
} bc_chosen;

/* A chunk that begins at *row, *col; both move behind it. A vector at the end of a row that is no whole one ends a chunk. */
static void bc_choose(const bc_job *j, const bc_shape *s, const bc_band *b, ptrdiff_t image, ptrdiff_t first,
                      ptrdiff_t last, ptrdiff_t *row, ptrdiff_t *col, uint32_t *packed, bc_chosen *c) {
    const vqc_bconv_params *p = j->p;
    const uint8_t *mask = j->mask + image * p->oh * p->ow;
    c->vectors = c->whole = c->kept = 0;
    for (; *row < last; ++*row, *col = 0) {
        for (; *col < p->ow; *col += 16) {
            const ptrdiff_t at = *row * p->ow + *col, left = p->ow - *col, k = c->vectors;
            const __mmask16 marked = bc_marked(mask + at, left), taken = c->compact ? marked : 0xffff;
            if (marked == 0) continue;
            if (k == BC_VECTORS || k != c->whole || c->kept + 32 > c->pitch) return;
            const uint32_t *x = b->x + (*row - first) * p->sh * s->line + *col;
            const __m512i kind = _mm512_add_epi32(_mm512_loadu_si512(b->column + *col),
                                                  _mm512_set1_epi32(j->classes[*row] * p->column_classes));
            uint32_t *to = packed + c->kept;
            if (taken == 0xffff) {
                for (ptrdiff_t e = 0; e < b->steps; e++, to += c->pitch)
                    _mm512_storeu_si512(to, _mm512_loadu_si512(x + b->off[e]));
            } else {
                for (ptrdiff_t e = 0; e < b->steps; e++, to += c->pitch)
                    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(taken, _mm512_loadu_si512(x + b->off[e])));
            }
            _mm512_storeu_si512(c->kind + c->kept, _mm512_maskz_compress_epi32(taken, kind));
            c->at[k] = (int32_t)at;
            c->before[k] = (int32_t)c->kept;
            c->size[k] = (int32_t)(left < 16 ? left : 16);
            c->marks[k] = (uint16_t)marked;
            c->kept += _mm_popcnt_u32(taken);
            c->vectors++;
            c->whole += left >= 16;
        }
    }
}

/* The sums of a block of channels, in their vectors; what lies between is 0. */
static void bc_chosen_sums(const bc_band *b, const bc_chosen *c, int32_t sums[BC_BLOCK][BC_CHUNK]) {
    BC_ALIGNED int32_t near[BC_BLOCK][BC_CHUNK + 16];
    int32_t *to = c->compact ? near[0] : sums[0];
    const ptrdiff_t pitch = c->compact ? BC_CHUNK + 16 : BC_CHUNK;
    for (ptrdiff_t at = 0; at < c->kept; at += BC_SEGMENT) {
        const ptrdiff_t n = c->kept - at < BC_SEGMENT ? c->kept - at : BC_SEGMENT;
        if (n == BC_SEGMENT) bc_sums(b, at, BC_SEGMENT, to + at, pitch); /* a constant: loops are unrolled */
        else bc_sums(b, at, n, to + at, pitch);
    }
    for (ptrdiff_t k = 0; k < c->vectors && c->compact; k++) {
        const __mmask16 marks = c->marks[k];
        for (ptrdiff_t i = 0; i < BC_BLOCK; i++) {
            __m512i kept = _mm512_loadu_si512(near[i] + c->before[k]);
            __asm__("" : "+v"(kept)); /* as part of the expansion the load would be microcode */
            _mm512_store_si512(sums[i] + 16 * k, _mm512_maskz_expand_epi32(marks, kept));
        }
    }
}

/* The vectors of a chunk out of a plane of elements of `size` bytes, side by side. */
static inline void bc_gather(const bc_chosen *c, const unsigned char *x, ptrdiff_t size, uint32_t *to) {
    unsigned char *bytes = (unsigned char *)to;
    for (ptrdiff_t k = 0; k < c->vectors; k++)
        memcpy(bytes + 16 * k * size, x + c->at[k] * size, (size_t)(c->size[k] * size));
}

/* What is kept, back to where it belongs. */
static inline void bc_scatter(const bc_chosen *c, const float *value, float *y) {
    for (ptrdiff_t k = 0; k < c->vectors; k++)
        _mm512_mask_storeu_ps(y + c->at[k], c->marks[k], _mm512_load_ps(value + 16 * k));
}

/* The row program on one channel of a chunk, if it may compute any position: in place. */
static inline void bc_pieces(const bc_job *j, const bc_chosen *c, ptrdiff_t image, ptrdiff_t channel,
                             const int32_t *sums, float *y) {
    const vqc_rows *rest = j->rest;
    const void *from[VQC_ROW_OPERANDS + 1];
    void *to[1] = {y};
    from[0] = sums;
    from[1] = c->at;
    for (int i = 0; i < rest->inputs; i++) from[2 + i] = bc_operand(j->in[i], &rest->operands[i], image, channel, 0);
    j->pieces(rest->constants, from, to, 16 * c->whole);
    for (ptrdiff_t k = c->whole; k < c->vectors; k++) {
        for (int i = 0; i < rest->inputs; i++)
            from[1 + i] = bc_operand(j->in[i], &rest->operands[i], image, channel, c->at[k]);
        from[0] = sums + 16 * k;
        to[0] = y + c->at[k];
        rest->row(rest->constants, from, to, c->size[k]);
    }
}

/* The same if it may not: operands side by side, and the results back. `moved`: those that are the same for all channels
 * are there already. */
static void bc_apart(const bc_job *j, const bc_chosen *c, ptrdiff_t image, ptrdiff_t channel, const int32_t *sums,
                     uint32_t moved[BC_MOVING][BC_CHUNK], float *y) {
    const vqc_rows *rest = j->rest;
    BC_ALIGNED float value[BC_CHUNK];
    const void *from[VQC_ROW_OPERANDS];
    void *to[1] = {value};
    from[0] = sums;
    for (int i = 0, next = 0; i < rest->inputs; i++) {
        const vqc_row_operand *e = &rest->operands[i];
        const unsigned char *x = bc_operand(j->in[i], e, image, channel, 0);
        from[1 + i] = e->position == 0 ? (const void *)x : moved[next];
        if (e->position != 0 && e->channel != 0) bc_gather(c, x, e->position, moved[next]);
        next += e->position != 0;
    }
    rest->row(rest->constants, from, to, 16 * c->vectors);
    bc_scatter(c, value, y);
}

/* Whether that takes less time than computing pieces of rows [first, last), and whether it can hold all operands. */
static int bc_chooses(const bc_job *j, const bc_band *b, ptrdiff_t image, ptrdiff_t first, ptrdiff_t last, int *compact) {
    const ptrdiff_t positions = (last - first) * j->p->ow;
    const uint8_t *mask = j->mask + (image * j->p->oh + first) * j->p->ow;
    ptrdiff_t kept = 0, moving = 0, touched = 0;
    for (ptrdiff_t i = 0; i < positions; i += 16) {
        const __mmask16 marked = bc_marked(mask + i, positions - i);
        kept += _mm_popcnt_u32(marked);
        touched += marked != 0;
    }
    for (int i = 0; i < j->rest->inputs; i++) moving += j->rest->operands[i].position != 0;
    *compact = (16 * touched - kept) * b->steps > 4 * 16 * touched;
    return b->base_step <= BC_KINDS && moving <= BC_MOVING && kept < positions - positions / 16;
}

static void bc_chosen_band(const bc_job *j, const bc_shape *s, const bc_band *band, ptrdiff_t image, ptrdiff_t first,
                           ptrdiff_t last, int compact, int32_t *off, uint32_t *packed,
                           unsigned char *prepared) {
    const vqc_bconv_params *p = j->p;
    const vqc_rows *rest = j->rest;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow;
    BC_ALIGNED int32_t sums[BC_BLOCK][BC_CHUNK];
    BC_ALIGNED uint32_t moved[BC_MOVING][BC_CHUNK];
    BC_ALIGNED int32_t differ[BC_CHUNK + BC_SEGMENT];
    bc_chosen c;
    bc_band b = *band;
    const ptrdiff_t fitting = BC_PACKED / b.steps / 16 * 16;
    c.pitch = fitting < 64 ? 64 : fitting < BC_CHUNK + 16 ? fitting : BC_CHUNK + 16;
    c.compact = compact;
    b.x = packed;
    b.off = off;
    b.column = c.kind;
    b.differ = differ;
    if (j->pieces == NULL) memset(moved, 0, sizeof moved);
    for (ptrdiff_t k = 0; k < b.steps; k++) off[k] = (int32_t)(k * c.pitch);
    for (ptrdiff_t row = first, col = 0; row < last;) {
        bc_choose(j, s, band, image, first, last, &row, &col, packed, &c);
        if (c.vectors == 0) break;
        bc_differ(&b, 0, c.kept, differ);
        for (int i = 0, next = 0; i < rest->inputs && j->pieces == NULL; i++) {
            const vqc_row_operand *e = &rest->operands[i];
            if (e->position != 0 && e->channel == 0)
                bc_gather(&c, bc_operand(j->in[i], e, image, 0, 0), e->position, moved[next]);
            next += e->position != 0;
        }
        for (ptrdiff_t o = 0; o < p->o; o += BC_BLOCK) {
            const ptrdiff_t channels = p->o - o < BC_BLOCK ? p->o - o : BC_BLOCK;
            float *y = j->y + (image * p->o + o) * plane;
            b.w = bc_weights(j->w + o * b.steps, b.steps, prepared);
            b.base = j->base + o * b.base_step;
            bc_chosen_sums(&b, &c, sums);
            for (ptrdiff_t i = 0; i < channels; i++) {
                if (j->pieces != NULL) bc_pieces(j, &c, image, o + i, sums[i], y + i * plane);
                else bc_apart(j, &c, image, o + i, sums[i], moved, y + i * plane);
            }
        }
    }
}
