/* A binary convolution's task on Arm, in place of bc_task: groups of 8 chunks of 16 positions, whose results are whole words. */

typedef struct bc_plan {
    ptrdiff_t channels, steps, kinds; /* output channels, a multiple of 8; entries of a channel's base */
    ptrdiff_t image, top, rows, across, chunks; /* output rows from top on; chunks of a row, and all of them */
    int32_t *off, *column;
    BC_E *e;              /* the unpacked band */
    unsigned char *words; /* [channels / 8]: weights as bc_tile reads them */
    uint16_t *each;       /* [channels][kinds]: base, or bc_start for a threshold, and what weights add */
    uint16_t *start;      /* [channels][BC_TILE]: the same for a group's positions */
} bc_plan;

static void *bc_take(unsigned char **at, ptrdiff_t bytes) {
    void *here = *at;
    *at += bc_up(bytes, 64);
    return here;
}

/* Plan a task: scratch is what bc_task takes, and more. Returns the scratch's size in bytes. */
static ptrdiff_t bc_plan_of(const bc_job *j, const bc_shape *s, int index, unsigned char *scratch, bc_plan *c) {
    const vqc_bconv_params *p = j->p;
    const ptrdiff_t bands = (p->oh + p->rows - 1) / p->rows;
    c->image = index / bands;
    c->top = index % bands * p->rows;
    c->across = (p->ow + 15) / 16;
    c->rows = p->oh - c->top < p->rows ? p->oh - c->top : p->rows;
    c->chunks = c->rows * c->across;
    c->channels = bc_up(p->o, BC_BLOCK);
    c->steps = s->steps;
    c->kinds = (ptrdiff_t)p->row_classes * p->column_classes;
    c->off = (int32_t *)(void *)scratch;
    c->column = c->off + s->steps;
    c->e = (BC_E *)(void *)(scratch + s->input);
    unsigned char *at = scratch + s->input + bc_up(bc_elements(s) * 4, 64);
    c->each = (uint16_t *)bc_take(&at, c->channels * c->kinds * 2);
    c->start = (uint16_t *)bc_take(&at, c->channels * BC_TILE * 2);
    c->words = (unsigned char *)bc_take(&at, c->channels / BC_BLOCK * BC_PREPARED(c->steps));
    return at - scratch;
}

/* Up to 8 chunks that are worked on together. */
typedef struct bc_group {
    ptrdiff_t count;
    const uint32_t *x[BC_CHUNKS]; /* first unpacked elements; those beyond count are the first chunk's once more */
    bc_place places[BC_CHUNKS];
    uint16x8x2_t own[BC_CHUNKS]; /* what bc_differ16 found, as bc_tile_twice or bc_tile_tops take it */
} bc_group;

/* Whether the chunks of a take the same entries of base as those of b: columns and classes of rows are equal. */
static int bc_same_kinds(const bc_group *a, const bc_group *b) {
    for (ptrdiff_t v = 0; v < a->count; v++)
        if (a->places[v].col != b->places[v].col || a->places[v].kind[0] != b->places[v].kind[0]) return 0;
    return 1;
}

/* The chunks from `from` on; chunks are counted down strips of columns, so that the groups of a strip take the same entries of
 * base. What they start from is made anew only where it differs from `before`, the group of which it was made last (or NULL). */
static void bc_group_of(const bc_job *j, const bc_shape *s, const bc_plan *c, ptrdiff_t from, const bc_group *before,
                        bc_group *g) {
    const uint16x8_t half = vdupq_n_u16(0x8000);
    g->count = c->chunks - from < BC_CHUNKS ? c->chunks - from : BC_CHUNKS;
    for (ptrdiff_t v = 0; v < BC_CHUNKS; v++) {
        ptrdiff_t i = from + (v < g->count ? v : 0), strip = 0, wide = BC_CHUNKS;
        while (wide > c->across - strip || i >= wide * c->rows) { /* strips of 8 chunks, then of 4, 2 and 1 */
            if (wide > c->across - strip) {
                wide /= 2;
            } else {
                i -= wide * c->rows;
                strip += wide;
            }
        }
        const ptrdiff_t row = i / wide, col = (strip + i % wide) * 16;
        g->x[v] = c->e + row * j->p->sh * s->line + col;
        bc_place_of(j, c->column, c->top + row, col, &g->places[v]);
        if (v >= g->count) continue;
        const uint16x8x2_t ones = bc_differ16(g->x[v], c->off, c->steps);
        for (int i = 0; i < 2; i++)
            g->own[v].val[i] = j->threshold != NULL ? vsubq_u16(half, ones.val[i]) : vshlq_n_u16(ones.val[i], 1);
    }
    if (before != NULL && before->count >= g->count && bc_same_kinds(g, before)) return;
    for (ptrdiff_t o = 0; o < c->channels; o++)
        for (ptrdiff_t v = 0; v < BC_CHUNKS; v++)
            bc_start16(c->each + o * c->kinds, &g->places[v], c->start + o * BC_TILE + 16 * v);
}

/* After channels o to o + 7, whose bytes are bits[o / 8 % 4]: store a word that is complete. */
static void bc_words(const bc_job *j, const bc_plan *c, ptrdiff_t o, const bc_group *g, uint8x16_t bits[4][BC_CHUNKS]) {
    const bc_place *places = g->places;
    const vqc_bconv_params *p = j->p;
    const ptrdiff_t byte = o / BC_BLOCK % 4;
    if (j->bits == NULL || (byte < 3 && o + BC_BLOCK < c->channels)) return;
    for (ptrdiff_t b = byte + 1; b < 4; b++) memset(bits[b], 0, BC_CHUNKS * sizeof *bits[b]);
    uint32_t *plane = j->bits + (c->image * ((p->o + 31) / 32) + o / 32) * p->oh * p->ow;
    for (ptrdiff_t v = 0; v < g->count; v++) {
        const uint8x16x4_t bytes = {{bits[0][v], bits[1][v], bits[2][v], bits[3][v]}};
        uint32_t word[16], *to = places[v].n < 16 ? word : plane + places[v].at;
        vst4q_u8((uint8_t *)to, bytes);
        if (to == word) memcpy(plane + places[v].at, word, (size_t)places[v].n * sizeof *word);
    }
}

/* A group, all channels. */
static void bc_group_sums(const bc_job *j, const bc_plan *c, const bc_group *g) {
    uint8x16_t bits[4][BC_CHUNKS];
    uint16_t t[BC_BLOCK * BC_TILE];
    for (ptrdiff_t o = 0; o < c->channels; o += BC_BLOCK) {
        const uint8_t *w = c->words + o / BC_BLOCK * BC_PREPARED(c->steps);
        const uint16_t *start = c->start + o * BC_TILE;
        uint8x16_t *to = bits[o / BC_BLOCK % 4];
        if (j->threshold != NULL) {
            const uint8x16_t flips = vdupq_n_u8(bc_flips(j, o));
            for (ptrdiff_t v = 0; v < g->count; v++)
                to[v] = veorq_u8(bc_tile_tops(g->x[v], c->off, c->steps, w, g->own[v], start + 16 * v), flips);
        } else {
            for (ptrdiff_t v = 0; v < g->count; v++)
                bc_tile_twice(g->x[v], c->off, c->steps, w, g->own[v], t + 16 * v, BC_TILE);
            bc_float(j, c->image, o, g->places, g->count, start, t, to);
        }
        bc_words(j, c, o, g, bits);
    }
}

/* Returns 0, having done nothing, when scratch is too small or 16 bits are too few. */
static int bc_own_task(const bc_job *j, int index, int worker) {
    const bc_shape s = bc_shape_of(j->p);
    unsigned char *scratch = j->scratch + (size_t)worker * j->p->scratch;
    bc_group groups[2];
    bc_plan c;
    if ((size_t)bc_plan_of(j, &s, index, scratch, &c) > j->p->scratch || s.steps > BC_MOST_STEPS) return 0;
    bc_tables(j, &s, c.off, c.column, c.column + s.columns);
    bc_unpack(j, &s, c.image, c.top, c.e);
    for (ptrdiff_t o = 0; o < c.channels; o += BC_BLOCK) {
        const void *w = bc_weights(j->w + o * c.steps, c.steps, c.words + o / BC_BLOCK * BC_PREPARED(c.steps));
        const int32_t *added = bc_added(w, c.steps);
        for (ptrdiff_t i = 0; i < BC_BLOCK; i++)
            for (ptrdiff_t k = 0; k < c.kinds; k++) {
                const int32_t base = j->base[(o + i) * c.kinds + k];
                c.each[(o + i) * c.kinds + k] = (uint16_t)(j->threshold != NULL ? bc_start(j, o + i, k) + added[i] / 2
                                                                                : base - added[i]);
            }
    }
    const bc_group *before = NULL;
    for (ptrdiff_t at = 0, turn = 0; at < c.chunks; at += BC_CHUNKS, turn = !turn) {
        bc_group *g = &groups[turn];
        bc_group_of(j, &s, &c, at, before, g);
        before = g;
        bc_group_sums(j, &c, g);
    }
    return 1;
}
