/* A band under a mask with AVX-512: what the mask keeps is put side by side, counted as if it were one row, and spread over
 * the result again. Vectors are full whatever the mask looks like, and every result is written once, zeros included.
 *
 * A chunk is a run of positions of the band, in the order of the result. Its input lies in scratch as
 * uint32 [steps][BC_KEPT + 16], so one tap of all kept positions is a run of words. */

#define BC_KINDS 16    /* classes of rows times classes of columns that one permutation holds */
#define BC_KEPT 256    /* positions of a chunk that are kept, at most */
#define BC_PIECES 1024 /* vectors of positions of a chunk, kept or not */

typedef struct bc_chunk {
    ptrdiff_t from, positions, kept;  /* of the result's plane; how many; how many are kept */
    uint16_t marks[BC_PIECES];        /* which of 16 positions are kept */
    uint16_t at[BC_PIECES];           /* where they begin among those kept */
    BC_ALIGNED int32_t kind[BC_KEPT + BC_SEGMENT]; /* row and column class */
} bc_chunk;

/* Marks of up to 16 positions. */
static inline __mmask16 bc_marked(const uint8_t *mask, ptrdiff_t n) {
    const __mmask16 some = (__mmask16)(n < 16 ? (1 << n) - 1 : 0xffff);
    const __m128i bytes = _mm_maskz_loadu_epi8(some, mask);
    return _mm_test_epi8_mask(bytes, bytes);
}

/* Collect a chunk that begins at *row, *col, and move both behind it. */
static void bc_collect(const bc_job *j, const bc_shape *s, const bc_band *b, ptrdiff_t image, ptrdiff_t first,
                       ptrdiff_t last, ptrdiff_t *row, ptrdiff_t *col, uint32_t *packed, bc_chunk *c) {
    const vqc_bconv_params *p = j->p;
    const uint8_t *mask = j->mask + image * p->oh * p->ow;
    c->from = *row * p->ow + *col;
    c->kept = 0;
    while (*row < last && c->kept + 16 <= BC_KEPT && *row * p->ow + *col - c->from + 16 <= 16 * BC_PIECES) {
        const ptrdiff_t n = p->ow - *col < 16 ? p->ow - *col : 16;
        const __mmask16 marked = bc_marked(mask + *row * p->ow + *col, n);
        if (marked != 0) {
            const uint32_t *x = b->x + (*row - first) * p->sh * s->line + *col;
            const __m512i kind = _mm512_add_epi32(_mm512_loadu_si512(b->column + *col),
                                                  _mm512_set1_epi32(j->classes[*row] * p->column_classes));
            uint32_t *to = packed + c->kept;
            for (ptrdiff_t k = 0; k < b->steps; k++, to += BC_KEPT + 16)
                _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(marked, _mm512_loadu_si512(x + b->off[k])));
            _mm512_storeu_si512(c->kind + c->kept, _mm512_maskz_compress_epi32(marked, kind));
            c->kept += _mm_popcnt_u32(marked);
        }
        *col += n;
        if (*col == p->ow) {
            *col = 0;
            ++*row;
        }
    }
    c->positions = *row * p->ow + *col - c->from;
    ptrdiff_t before = 0;
    for (ptrdiff_t i = 0; 16 * i < c->positions; i++) {
        c->marks[i] = bc_marked(mask + c->from + 16 * i, c->positions - 16 * i);
        c->at[i] = (uint16_t)before;
        before += _mm_popcnt_u32(c->marks[i]);
    }
}

/* Values of the positions that are kept to where they belong, zeros between them. */
static inline void bc_spread(const bc_chunk *c, const float *value, float *y) {
    ptrdiff_t i = 0;
    for (; 16 * i + 16 <= c->positions; i++) {
        if (c->marks[i] == 0) {
            _mm512_storeu_ps(y + 16 * i, _mm512_setzero_ps());
            continue;
        }
        __m512 v = _mm512_loadu_ps(value + c->at[i]);
        __asm__("" : "+v"(v)); /* as part of the expansion the load would be microcode */
        _mm512_storeu_ps(y + 16 * i, _mm512_maskz_expand_ps(c->marks[i], v));
    }
    if (16 * i < c->positions)
        _mm512_mask_storeu_ps(y + 16 * i, (__mmask16)((1 << (c->positions - 16 * i)) - 1),
                              _mm512_maskz_expand_ps(c->marks[i], _mm512_loadu_ps(value + c->at[i])));
}

/* Whether that takes less time than computing all of rows [first, last): spreading costs about what 5 steps cost, and
 * collecting is for few channels more work than the sums. */
static int bc_packs(const bc_job *j, const bc_band *b, ptrdiff_t image, ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t positions = (last - first) * j->p->ow;
    const uint8_t *mask = j->mask + (image * j->p->oh + first) * j->p->ow;
    ptrdiff_t kept = 0;
    for (ptrdiff_t i = 0; i < positions; i++) kept += mask[i] != 0;
    return j->p->o >= 32 && b->base_step <= BC_KINDS && kept * b->steps < positions * (b->steps - 5);
}

static void bc_masked_band(const bc_job *j, const bc_shape *s, const bc_band *band, ptrdiff_t image, ptrdiff_t first,
                           ptrdiff_t last, int32_t *off, uint32_t *packed, unsigned char *prepared) {
    const vqc_bconv_params *p = j->p;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow;
    BC_ALIGNED float value[BC_BLOCK][BC_KEPT + 16];
    BC_ALIGNED int32_t t[BC_BLOCK][BC_SEGMENT], differ[BC_KEPT + BC_SEGMENT];
    bc_chunk c;
    bc_band b = *band;
    b.x = packed;
    b.off = off;
    b.column = c.kind;
    b.differ = differ;
    for (ptrdiff_t k = 0; k < b.steps; k++) off[k] = (int32_t)(k * (BC_KEPT + 16));
    for (ptrdiff_t row = first, col = 0; row < last;) {
        bc_collect(j, s, band, image, first, last, &row, &col, packed, &c);
        bc_differ(&b, 0, c.kept, differ);
        for (ptrdiff_t o = 0; o < p->o; o += BC_BLOCK) {
            const ptrdiff_t channels = p->o - o < BC_BLOCK ? p->o - o : BC_BLOCK;
            b.w = bc_weights(j->w + o * b.steps, b.steps, prepared);
            b.base = j->base + o * b.base_step;
            for (ptrdiff_t at = 0; at < c.kept; at += BC_SEGMENT) {
                const ptrdiff_t n = c.kept - at < BC_SEGMENT ? c.kept - at : BC_SEGMENT;
                bc_sums(&b, at, n, t[0], BC_SEGMENT);
                for (ptrdiff_t i = 0; i < channels; i++) {
                    const __m512 scale = _mm512_set1_ps(j->scale[o + i]);
                    const __m512 bias = _mm512_set1_ps(j->bias != NULL ? j->bias[o + i] : -0.0f);
                    for (ptrdiff_t e = 0; e < n; e += 16) {
                        const __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_load_si512(t[i] + e)), scale);
                        _mm512_store_ps(value[i] + at + e, _mm512_add_ps(v, bias));
                    }
                }
            }
            for (ptrdiff_t i = 0; i < channels; i++)
                bc_spread(&c, value[i], j->y + (image * p->o + o + i) * plane + c.from);
        }
    }
}
