/* What follows the counts of a binary convolution on Arm: 8 channels at chunks of 16 positions. */
#define BC_UNROLL _Pragma("GCC unroll 16")
#define BC_MOST_STEPS 511 /* sums stay within 16 bits */
#define BC_PAIRED_STEPS 510 /* counts of so many stay within 16 bits, four times */
#define BC_CHUNKS 8       /* of 16 positions, worked on together */
#define BC_TILE 128       /* their positions */

/* A chunk: up to 16 positions of an output row. */
typedef struct bc_place {
    ptrdiff_t at, col, n;      /* its first position in a plane of the output, its column, how many there are */
    int32_t count, kind[16];   /* the different entries of a channel's base that its columns take */
    uint16x8_t lo[16], hi[16]; /* where each entry but the first is taken */
} bc_place;

/* The chunk from column `col` of an output row on; column: the columns' classes. */
static inline void bc_place_of(const bc_job *j, const int32_t *column, ptrdiff_t row, ptrdiff_t col, bc_place *place) {
    const vqc_bconv_params *p = j->p;
    const int32_t above = j->classes[row] * p->column_classes;
    column += col;
    place->at = row * p->ow + col;
    place->col = col;
    place->n = p->ow - col < 16 ? p->ow - col : 16;
    place->kind[0] = above + column[0];
    place->count = 1;
    uint32x4_t c[4];
    BC_UNROLL for (int i = 0; i < 4; i++) c[i] = vreinterpretq_u32_s32(vld1q_s32(column + 4 * i));
    const uint16x8_t low = vuzp1q_u16(vreinterpretq_u16_u32(c[0]), vreinterpretq_u16_u32(c[1]));
    const uint16x8_t high = vuzp1q_u16(vreinterpretq_u16_u32(c[2]), vreinterpretq_u16_u32(c[3]));
    if (place->n == 16 && vminvq_u16(vminq_u16(low, high)) == vmaxvq_u16(vmaxq_u16(low, high))) return; /* mostly */
    for (ptrdiff_t i = 1; i < place->n; i++) {
        if (column[i] == column[i - 1]) continue;
        const uint16x8_t kind = vdupq_n_u16((uint16_t)column[i]);
        place->kind[place->count] = above + column[i];
        place->lo[place->count] = vceqq_u16(low, kind);
        place->hi[place->count++] = vceqq_u16(high, kind);
    }
}

/* Where a 16-bit counter starts so that it reaches 2^15 exactly when acc < threshold: acc = base - 2 * count, for a channel
 * whose base is that entry. Channels that do not exist never reach it. */
static inline uint16_t bc_start(const bc_job *j, ptrdiff_t o, ptrdiff_t kind) {
    const vqc_bconv_params *p = j->p;
    if (o >= p->o) return 0;
    const int64_t twice = (int64_t)j->base[o * p->row_classes * p->column_classes + kind] - j->threshold[o];
    const int64_t start = 0x8000 - ((twice >> 1) + 1); /* >> rounds down, as it must */
    return (uint16_t)(start < 0 ? 0 : start > 0x8000 ? 0x8000 : start);
}

/* What one channel starts from at the columns of a chunk, to[16]: for a float result its base, for a binary one bc_start.
 * all: one number for each kind. */
static BC_INLINE void bc_start16(const uint16_t *all, const bc_place *place, uint16_t *to) {
    uint16x8_t lo = vdupq_n_u16(all[place->kind[0]]), hi = lo;
    for (int32_t i = 1; i < place->count; i++) {
        const uint16x8_t other = vdupq_n_u16(all[place->kind[i]]);
        lo = vbslq_u16(place->lo[i], other, lo);
        hi = vbslq_u16(place->hi[i], other, hi);
    }
    vst1q_u16(to, lo);
    vst1q_u16(to + 8, hi);
}

/* The flip of channels o to o + 7 as bits. */
static inline uint8_t bc_flips(const bc_job *j, ptrdiff_t o) {
    unsigned flips = 0;
    for (ptrdiff_t i = o; i < o + BC_BLOCK && i < j->p->o; i++) flips |= (j->flip[i] ? 1u : 0u) << (i - o);
    return (uint8_t)flips;
}

/* Numbers of one channel. */
typedef struct bc_channel {
    float scale, bias, slope, tau, by;
} bc_channel;

enum { BC_NOTHING, BC_PLAIN, BC_SCALED }; /* what is added: nothing, a residual, one times residual_scale */

/* One channel at one chunk; acc = base - twice, twice the count. Returns v < tau. */
static BC_INLINE uint8x16_t bc_float16(int act, int add, const uint16_t *base, const uint16_t *twice, const bc_channel *c,
                                       const float *residual, float *y) {
    float32x4_t v[4], from[4];
    uint16x8_t below[4];
    const int16x8_t lo = vreinterpretq_s16_u16(vsubq_u16(vld1q_u16(base), vld1q_u16(twice)));
    const int16x8_t hi = vreinterpretq_s16_u16(vsubq_u16(vld1q_u16(base + 8), vld1q_u16(twice + 8)));
    v[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo)));
    v[1] = vcvtq_f32_s32(vmovl_high_s16(lo));
    v[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi)));
    v[3] = vcvtq_f32_s32(vmovl_high_s16(hi));
    BC_UNROLL for (int i = 0; i < 4; i++) from[i] = add ? vld1q_f32(residual + 4 * i) : vdupq_n_f32(0.0f);
    BC_UNROLL for (int i = 0; i < 4; i++) {
        v[i] = vaddq_f32(vmulq_n_f32(v[i], c->scale), vdupq_n_f32(c->bias));
        if (add) v[i] = vaddq_f32(v[i], add == BC_SCALED ? vmulq_n_f32(from[i], c->by) : from[i]);
        if (act == VQC_BACT_PRELU) v[i] = vbslq_f32(vcgtzq_f32(v[i]), v[i], vmulq_n_f32(v[i], c->slope));
        if (act == VQC_BACT_RELU)
            v[i] = vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v[i]), vcltzq_f32(v[i])));
        below[i] = vreinterpretq_u16_u32(vcltq_f32(v[i], vdupq_n_f32(c->tau)));
    }
    BC_UNROLL for (int i = 0; i < 4; i++) vst1q_f32(y + 4 * i, v[i]);
    return vuzp1q_u8(vreinterpretq_u8_u16(vuzp1q_u16(below[0], below[1])),
                     vreinterpretq_u8_u16(vuzp1q_u16(below[2], below[3])));
}

/* The float epilogue of channels o to o + 7 at `count` chunks; base and twice: [8][BC_TILE]. bits[chunk]: the byte of the
 * next binary picture at each position. */
static BC_INLINE void bc_float_as(const bc_job *j, int act, int add, int keep, ptrdiff_t image, ptrdiff_t o,
                                  const bc_place *places, ptrdiff_t count, const uint16_t *base, const uint16_t *twice,
                                  uint8x16_t *bits) {
    const vqc_bconv_params *p = j->p;
    const ptrdiff_t plane = (ptrdiff_t)p->oh * p->ow, channels = p->o - o < BC_BLOCK ? p->o - o : BC_BLOCK;
    const ptrdiff_t first = (image * p->o + o) * plane, taus = p->taus > 1;
    const float *residual = NULL, *tau = j->tau != NULL ? j->tau + o * taus : NULL;
    float *y = keep ? j->y + first : NULL, from[16] = {0}, to[16];
    bc_channel c = {0, -0.0f, 0, 0, p->residual_scale}; /* x + -0 is x, for every x */
    ptrdiff_t at[BC_CHUNKS], whole = 0; /* chunks before the first short one */
    for (ptrdiff_t v = 0; v < count; v++) {
        bits[v] = vdupq_n_u8(0);
        at[v] = places[v].at;
        if (whole == v && places[v].n == 16) whole++;
    }
    for (ptrdiff_t i = o; i < o + channels; i++, base += BC_TILE, twice += BC_TILE) {
        c.scale = j->scale[i];
        if (add) residual = bc_residual(j, image, i);
        if (j->bias != NULL) c.bias = j->bias[i];
        if (act == VQC_BACT_PRELU) c.slope = j->slope[i];
        if (tau != NULL) c.tau = *tau, tau += taus;
        for (ptrdiff_t v = 0; v < whole; v++)
            bits[v] = vsriq_n_u8(bc_float16(act, add, base + 16 * v, twice + 16 * v, &c, add ? residual + at[v] : NULL,
                                            keep ? y + at[v] : to), bits[v], 1);
        for (ptrdiff_t v = whole; v < count; v++) {
            const size_t size = (size_t)places[v].n * sizeof *to;
            if (add) memcpy(from, residual + at[v], size);
            bits[v] = vsriq_n_u8(bc_float16(act, add, base + 16 * v, twice + 16 * v, &c, from, to), bits[v], 1);
            if (keep) memcpy(y + at[v], to, size);
        }
        if (keep) y += plane;
    }
    for (ptrdiff_t v = 0; v < count; v++) bits[v] = vshlq_u8(bits[v], vdupq_n_s8((int8_t)(channels - BC_BLOCK)));
}

#define BC_FLOAT_AS(ACT, ADD, KEEP) bc_float_as(j, ACT, ADD, KEEP, image, o, places, count, base, twice, bits)
#define BC_FLOAT_ADD(ACT, KEEP)                                                                                       \
    if (j->residual == NULL) BC_FLOAT_AS(ACT, BC_NOTHING, KEEP);                                                      \
    else if (plain) BC_FLOAT_AS(ACT, BC_PLAIN, KEEP);                                                                 \
    else BC_FLOAT_AS(ACT, BC_SCALED, KEEP);
#define BC_FLOAT_CASE(ACT)                                                                                            \
    case ACT:                                                                                                         \
        if (j->y != NULL) {                                                                                           \
            BC_FLOAT_ADD(ACT, 1)                                                                                      \
        } else {                                                                                                      \
            BC_FLOAT_ADD(ACT, 0)                                                                                      \
        }                                                                                                             \
        break;

static void bc_float(const bc_job *j, ptrdiff_t image, ptrdiff_t o, const bc_place *places, ptrdiff_t count,
                     const uint16_t *base, const uint16_t *twice, uint8x16_t *bits) {
    const int plain = j->p->residual_scale == 1.0f;
    switch (j->p->act) {
        BC_FLOAT_CASE(VQC_BACT_PRELU)
        BC_FLOAT_CASE(VQC_BACT_RELU)
        BC_FLOAT_CASE(VQC_BACT_NONE)
    }
}
