/* A binary convolution's task on Arm, in place of bc_task: tiles of 8 chunks by bit-sliced counters where that takes
 * fewer instructions, the rest by eor and cnt. */
#include "vqc_bconv_sliced_neon.h"

typedef struct bc_plan {
    ptrdiff_t channels, steps, kinds; /* output channels, a multiple of 8; entries of a channel's base */
    ptrdiff_t blocks, pass;           /* blocks of 64 inputs, the last may be half; in passes of so many */
    ptrdiff_t image, top, rows, across; /* output rows from top on; chunks of a row */
    ptrdiff_t sliced, chunks;         /* how many chunks go by counters, and how many there are */
    int planes;                       /* of a counter */
    int32_t *off, *column;
    BC_E *e;              /* the unpacked band */
    unsigned char *words; /* [channels / 8][steps]: weights as bc_tile reads them */
    uint16_t *each;       /* [channels][kinds]: base, or bc_start for a threshold */
    uint16_t *start;      /* [channels][BC_TILE]: the same for a tile's positions */
    uint32_t *picks;      /* [channels][blocks][BC_PICKS] */
    uint8x16_t *tables;   /* [pass][BC_TABLE] */
    uint8x16_t *counters; /* [channels][BC_MANY]: between passes */
    uint8x16_t *starts;   /* [channels][BC_MANY]: start as counters, for a threshold */
} bc_plan;

static void *bc_take(unsigned char **at, ptrdiff_t bytes) {
    void *here = *at;
    *at += bc_up(bytes, 64);
    return here;
}

/* How many chunks go by counters: whole tiles, and the last one when it is full enough; by the instructions counted on
 * both kernels. */
static ptrdiff_t bc_split(const bc_plan *c) {
    const ptrdiff_t plain = c->channels / BC_BLOCK * (107 * c->steps + 60); /* instructions of a chunk */
    const ptrdiff_t tile = c->steps * (720 + 84 * c->channels) + 60 * c->channels;
    const ptrdiff_t tiles = c->chunks / BC_CHUNKS, rest = c->chunks % BC_CHUNKS;
    const ptrdiff_t sliced = tiles + (rest * plain > tile);
    const ptrdiff_t chunks = sliced > tiles ? c->chunks : tiles * BC_CHUNKS;
    if (c->blocks * 64 >= 1 << (BC_MANY - 1)) return 0;
    return sliced * tile + 70 * c->blocks * c->channels < chunks * plain ? chunks : 0;
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
    c->blocks = (s->steps + 1) / 2;
    const ptrdiff_t passes = (c->blocks + BC_PASS - 1) / BC_PASS;
    c->pass = (c->blocks + passes - 1) / passes;
    c->planes = c->blocks * 64 < 1 << (BC_FEW - 1) ? BC_FEW : BC_MANY;
    c->sliced = bc_split(c);
    c->off = (int32_t *)(void *)scratch;
    c->column = c->off + s->steps;
    c->e = (BC_E *)(void *)(scratch + s->input);
    unsigned char *at = scratch + s->input + bc_up(bc_elements(s) * 4, 64);
    const ptrdiff_t kept = c->channels * BC_MANY * 16, decides = j->threshold != NULL;
    c->each = (uint16_t *)bc_take(&at, c->channels * c->kinds * 2);
    c->start = (uint16_t *)bc_take(&at, c->channels * BC_TILE * 2);
    c->words = (unsigned char *)bc_take(&at, c->sliced < c->chunks ? BC_PREPARED(c->channels / BC_BLOCK * c->steps) : 0);
    if (c->sliced > 0) {
        c->tables = (uint8x16_t *)bc_take(&at, c->pass * BC_TABLE * 16);
        c->counters = (uint8x16_t *)bc_take(&at, passes > 1 ? kept : 0);
        c->starts = (uint8x16_t *)bc_take(&at, decides ? kept : 0);
        c->picks = (uint32_t *)bc_take(&at, c->channels * c->blocks * BC_PICKS * 4);
    }
    return at - scratch;
}

/* Up to 8 chunks that are worked on together. */
typedef struct bc_group {
    ptrdiff_t count;
    const uint32_t *x[BC_CHUNKS]; /* first unpacked elements; those beyond count are the first chunk's once more */
    bc_place places[BC_CHUNKS];
} bc_group;

/* Whether the chunks of a take the same entries of base as those of b: columns and classes of rows are equal. */
static int bc_same_kinds(const bc_group *a, const bc_group *b) {
    for (ptrdiff_t v = 0; v < a->count; v++)
        if (a->places[v].col != b->places[v].col || a->places[v].kind[0] != b->places[v].kind[0]) return 0;
    return 1;
}

/* Counters that reach 2^(planes - 1) when 16-bit ones that begin with `start` reach 2^15. */
static void bc_sliced_starts(const bc_plan *c) {
    const uint16x8_t more = vdupq_n_u16((uint16_t)(0x8000 - (1 << (c->planes - 1)))); /* than these counters reach */
    for (ptrdiff_t o = 0; o < c->channels; o++) {
        uint8x16_t low[BC_CHUNKS], high[BC_CHUNKS];
        BC_UNROLL for (ptrdiff_t v = 0; v < BC_CHUNKS; v++) {
            const uint16_t *start = c->start + o * BC_TILE + 16 * v;
            const uint8x16_t a = vreinterpretq_u8_u16(vqsubq_u16(vld1q_u16(start), more));
            const uint8x16_t b = vreinterpretq_u8_u16(vqsubq_u16(vld1q_u16(start + 8), more));
            low[v] = vuzp1q_u8(a, b);
            high[v] = vuzp2q_u8(a, b);
        }
        bc_bits8(low);
        bc_bits8(high);
        BC_UNROLL for (int i = 0; i < BC_MANY; i++) c->starts[o * BC_MANY + i] = i < 8 ? low[i] : high[i - 8];
    }
}

/* The chunks from `from` on, before `end`; chunks are counted down strips of columns, so that the groups of a strip take
 * the same entries of base. What they start from is made anew only where it differs from `before`, the
 * group of which it was made last (or NULL). */
static void bc_group_of(const bc_job *j, const bc_shape *s, const bc_plan *c, ptrdiff_t from, ptrdiff_t end,
                        const bc_group *before, bc_group *g) {
    g->count = end - from < BC_CHUNKS ? end - from : BC_CHUNKS;
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
    }
    if (before != NULL && before->count >= g->count && bc_same_kinds(g, before)) return;
    for (ptrdiff_t o = 0; o < c->channels; o++)
        for (ptrdiff_t v = 0; v < BC_CHUNKS; v++)
            bc_start16(c->each + o * c->kinds, &g->places[v], c->start + o * BC_TILE + 16 * v);
    if (j->threshold != NULL && from < c->sliced) bc_sliced_starts(c);
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

/* ---- by eor and cnt ------------------------------------------------------------------------------------------------- */

/* A group, all channels. */
static void bc_plain_group(const bc_job *j, const bc_plan *c, const bc_group *g) {
    uint8x16_t bits[4][BC_CHUNKS];
    uint16_t t[BC_BLOCK * BC_TILE];
    for (ptrdiff_t o = 0; o < c->channels; o += BC_BLOCK) {
        const uint8_t *w = c->words + BC_PREPARED(o / BC_BLOCK * c->steps);
        uint8x16_t *to = bits[o / BC_BLOCK % 4];
        if (j->threshold != NULL) {
            const uint8x16_t flips = vdupq_n_u8(bc_flips(j, o));
            for (ptrdiff_t v = 0; v < g->count; v++)
                to[v] = veorq_u8(bc_tile_tops(g->x[v], c->off, c->steps, w, c->start + o * BC_TILE + 16 * v), flips);
        } else {
            for (ptrdiff_t v = 0; v < g->count; v++)
                bc_tile_twice(g->x[v], c->off, c->steps, w, t + 16 * v, BC_TILE);
            bc_float(j, c->image, o, g->places, g->count, c->start + o * BC_TILE, t, to);
        }
        bc_words(j, c, o, g, bits);
    }
}

/* ---- by counters ---------------------------------------------------------------------------------------------------- */

/* Tables of the blocks [from, from + blocks). */
static void bc_sliced_tables(const bc_plan *c, const uint32_t *const *chunk, ptrdiff_t from, ptrdiff_t blocks) {
    for (ptrdiff_t b = 0; b < blocks; b++) {
        const ptrdiff_t k = 2 * (from + b);
        uint8x16_t planes[64];
        bc_planes(chunk, c->off[k], planes);
        if (k + 1 < c->steps) {
            bc_planes(chunk, c->off[k + 1], planes + 32);
            bc_table(planes, c->tables + b * BC_TABLE);
        } else {
            bc_table_half(planes, c->tables + b * BC_TABLE);
        }
    }
}

/* A group, all channels. */
static void bc_sliced_group(const bc_job *j, const bc_plan *c, const bc_group *g) {
    uint16_t t[BC_BLOCK * BC_TILE];
    uint8x16_t bits[4][BC_CHUNKS];
    const uint8x16_t zeros[BC_MANY] = {{0}};
    const int decides = j->threshold != NULL;
    for (ptrdiff_t from = 0; from < c->blocks; from += c->pass) {
        const ptrdiff_t blocks = c->blocks - from < c->pass ? c->blocks - from : c->pass;
        const int last = from + blocks == c->blocks, half = last && c->steps % 2 == 1;
        const ptrdiff_t rise = from > 0 || decides ? BC_MANY : 0;
        bc_run run = {zeros, rise, c->tables, NULL, c->blocks * BC_PICKS, blocks - half, half, NULL, NULL, NULL};
        bc_sliced_tables(c, g->x, from, blocks);
        for (ptrdiff_t o = 0; o < c->channels; o += BC_BLOCK) {
            uint8x16_t *to = bits[o / BC_BLOCK % 4], *kept = c->counters + o * BC_MANY;
            run.start = from > 0 ? kept : decides ? c->starts + o * BC_MANY : zeros;
            run.pick = c->picks + (o * c->blocks + from) * BC_PICKS;
            run.kept = last ? NULL : kept;
            run.top = last && decides ? to : NULL;
            run.twice = last && !decides ? t : NULL;
            (c->planes == BC_FEW ? bc_counters_few : bc_counters_many)(&run);
            if (!last) continue;
            if (decides) {
                const uint8x16_t flips = vdupq_n_u8(bc_flips(j, o));
                bc_bits8(to);
                BC_UNROLL for (int v = 0; v < BC_CHUNKS; v++) to[v] = veorq_u8(to[v], flips);
            } else {
                bc_float(j, c->image, o, g->places, g->count, c->start + o * BC_TILE, t, to);
            }
            bc_words(j, c, o, g, bits);
        }
    }
}

static void bc_all_picks(const bc_job *j, const bc_plan *c) {
    for (ptrdiff_t o = 0; o < c->channels; o++) {
        const uint32_t *w = j->w + (o - o % BC_BLOCK) * c->steps + o % BC_BLOCK;
        uint32_t *to = c->picks + o * c->blocks * BC_PICKS;
        for (ptrdiff_t k = 0; k < c->steps; k += 2, to += BC_PICKS) {
            if (k + 1 < c->steps) bc_picks(w[k * BC_BLOCK] | (uint64_t)w[(k + 1) * BC_BLOCK] << 32, to);
            else bc_picks_half(w[k * BC_BLOCK], to);
        }
    }
}

/* ---- the task ------------------------------------------------------------------------------------------------------- */

/* Returns 0, having done nothing, when scratch is too small or 16 bits are too few. */
static int bc_own_task(const bc_job *j, int index, int worker) {
    const bc_shape s = bc_shape_of(j->p);
    unsigned char *scratch = j->scratch + (size_t)worker * j->p->scratch;
    bc_group groups[2];
    bc_plan c;
    if ((size_t)bc_plan_of(j, &s, index, scratch, &c) > j->p->scratch || s.steps > BC_MOST_STEPS) return 0;
    bc_tables(j, &s, c.off, c.column, c.column + s.columns);
    bc_unpack(j, &s, c.image, c.top, c.e);
    for (ptrdiff_t o = 0; o < c.channels; o++)
        for (ptrdiff_t k = 0; k < c.kinds; k++)
            c.each[o * c.kinds + k] = j->threshold != NULL ? bc_start(j, o, k) : (uint16_t)j->base[o * c.kinds + k];
    if (c.sliced > 0) bc_all_picks(j, &c);
    if (c.sliced < c.chunks) bc_weights(j->w, c.channels / BC_BLOCK * c.steps, c.words);
    const bc_group *before = NULL;
    for (ptrdiff_t at = 0, turn = 0; at < c.chunks; at += BC_CHUNKS, turn = !turn) {
        bc_group *g = &groups[turn];
        bc_group_of(j, &s, &c, at, at < c.sliced ? c.sliced : c.chunks, before, g);
        before = g;
        if (at < c.sliced) bc_sliced_group(j, &c, g);
        else bc_plain_group(j, &c, g);
    }
    return 1;
}
