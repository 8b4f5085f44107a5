/* Counting differing bits without counting: bit-sliced counters on Arm, for layers of many channels.
 *
 * A vector holds one channel's bits at 128 positions (a plane), and the sum over channels lives in planes as well: a
 * counter's bits of weight 1, 2, 4, ... Adding three planes is a full adder of three instructions. As x ^ w is x or its
 * inverse, a full adder over three inputs has only 8 possible carries, whatever the weights: they are computed once for
 * all output channels, and each channel picks its own from a table. Of 64 inputs 31 carries, a parity and one input
 * remain to be added for each channel, about half the vector instructions of eor, cnt and add. Positions are 8 chunks of
 * 16 columns; bit v of byte l of a plane is column l of chunk v. */

#define BC_TABLE 252     /* vectors: 31 adders x 8 carries, the parity and the last input both ways */
#define BC_PICKS 34      /* uint32 offsets (in bytes) into a table for 64 weights, the last unused */
#define BC_PASS 9        /* blocks of 64 inputs whose tables fit in a first-level cache together */
#define BC_FEW 11        /* planes of a counter, for less than 1024 inputs: one more than they need, for a carry */
#define BC_MANY 13       /* the same for less than 4096 */

/* ---- bits and planes ------------------------------------------------------------------------------------------------ */

/* Transpose 8x8 bits in every lane: bit v of b[c] becomes bit c of a[v]. */
static BC_INLINE void bc_bits8(uint8x16_t v[8]) {
    const uint8x16_t pairs = vdupq_n_u8(0x33), single = vdupq_n_u8(0x55);
    BC_UNROLL for (int i = 0; i < 4; i++) {
        const uint8x16_t a = v[i], b = v[i + 4];
        v[i] = vsliq_n_u8(a, b, 4);
        v[i + 4] = vsriq_n_u8(b, a, 4);
    }
    BC_UNROLL for (int i = 0; i < 8; i++) {
        if (i & 2) continue;
        const uint8x16_t a = v[i], b = v[i + 2];
        v[i] = vbslq_u8(pairs, a, vshlq_n_u8(b, 2));
        v[i + 2] = vbslq_u8(pairs, vshrq_n_u8(a, 2), b);
    }
    BC_UNROLL for (int i = 0; i < 8; i += 2) {
        const uint8x16_t a = v[i], b = v[i + 1];
        v[i] = vbslq_u8(single, a, vshlq_n_u8(b, 1));
        v[i + 1] = vbslq_u8(single, vshrq_n_u8(a, 1), b);
    }
}

/* 32 channels of 8 chunks of 16 words, `off` elements from each chunk's first, to 32 planes. */
static void bc_planes(const uint32_t *const *chunk, ptrdiff_t off, uint8x16_t *planes) {
    uint8x16_t bytes[4][BC_CHUNKS];
    BC_UNROLL for (int v = 0; v < BC_CHUNKS; v++) {
        const uint8x16x4_t four = vld4q_u8((const uint8_t *)(const void *)(chunk[v] + off));
        BC_UNROLL for (int i = 0; i < 4; i++) bytes[i][v] = four.val[i];
    }
    for (int i = 0; i < 4; i++, planes += 8) {
        uint8x16_t a[8];
        BC_UNROLL for (int v = 0; v < 8; v++) a[v] = bytes[i][v];
        bc_bits8(a);
        BC_UNROLL for (int v = 0; v < 8; v++) planes[v] = a[v];
    }
}

/* ---- adders --------------------------------------------------------------------------------------------------------- */

/* Bits of a where m is 1, else of b. As assembly: compilers take the select apart around an exclusive or. It keeps its
 * place among the others, and with it the order of a counter's additions as it is written: in another order more sums are
 * alive at once than there are registers. */
static BC_INLINE uint8x16_t bc_select_here(uint8x16_t m, uint8x16_t a, uint8x16_t b) {
    __asm__ volatile("bsl %0.16b, %1.16b, %2.16b" : "+w"(m) : "w"(a), "w"(b));
    return m;
}

/* a, with the bits of b where m is 1. */
static BC_INLINE uint8x16_t bc_insert(uint8x16_t a, uint8x16_t b, uint8x16_t m) {
    __asm__("bit %0.16b, %1.16b, %2.16b" : "+w"(a) : "w"(b), "w"(m));
    return a;
}

/* Full and half adder: *sum may be one of the inputs. */
static BC_INLINE uint8x16_t bc_add3(uint8x16_t *sum, uint8x16_t a, uint8x16_t b, uint8x16_t c) {
    const uint8x16_t differ = veorq_u8(a, b);
    *sum = veorq_u8(differ, c);
    return bc_select_here(differ, c, a);
}

static BC_INLINE uint8x16_t bc_add2(uint8x16_t *sum, uint8x16_t a) {
    const uint8x16_t carry = vandq_u8(*sum, a);
    *sum = veorq_u8(*sum, a);
    return carry;
}

/* The carries of a, b, c with the signs i turned round (bit 0 of i: a), to t[i]; returns the parity. Carry 0 is c where a
 * and b differ, else a; the others differ from it by a ^ c, by a ^ b, or everywhere. */
static BC_INLINE uint8x16_t bc_carries(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t *t) {
    const uint8x16_t differ = veorq_u8(a, b), parity = veorq_u8(differ, c), ends = veorq_u8(a, c);
    __asm__("" : "+r"(t)); /* an address of its own: from afar, two planes cannot be stored by one instruction */
    t[0] = bc_insert(a, c, differ);
    t[2] = veorq_u8(t[0], ends);
    t[4] = veorq_u8(t[0], differ);
    t[1] = veorq_u8(t[2], differ);
    BC_UNROLL for (int i = 0; i < 3; i++) t[7 - i] = vmvnq_u8(t[i]);
    t[3] = vmvnq_u8(t[4]);
    return parity;
}

/* The table of 64 planes. Adders: 21 over the inputs in threes, 7 over parities f, f + 7, f + 14 of those, 2 over
 * parities f, f + 2, f + 4 of those, and one over what remains. bc_picks follows the same tree. */
static void bc_table(const uint8x16_t *x, uint8x16_t *t) {
    uint8x16_t first[21], second[7], third[2], parity;
    BC_UNROLL for (int f = 0; f < 7; f++) {
        BC_UNROLL for (int i = f; i < 21; i += 7) first[i] = bc_carries(x[3 * i], x[3 * i + 1], x[3 * i + 2], t + 8 * i);
        second[f] = bc_carries(first[f], first[f + 7], first[f + 14], t + 168 + 8 * f);
    }
    BC_UNROLL for (int f = 0; f < 2; f++) third[f] = bc_carries(second[f], second[f + 2], second[f + 4], t + 224 + 8 * f);
    parity = bc_carries(third[0], third[1], second[6], t + 240);
    t[248] = parity;
    t[249] = vmvnq_u8(parity);
    t[250] = x[63];
    t[251] = vmvnq_u8(x[63]);
}

/* Where a channel with the 64 weights w looks in the table. Three bits side by side are an adder's signs. */
static void bc_picks(uint64_t w, uint32_t *to) {
    const uint64_t sevens = 01111111u, twos = 011u;
    const uint64_t p = w ^ w >> 1 ^ w >> 2;
    const uint64_t second = (p & sevens) | (p >> 21 & sevens) << 1 | (p >> 42 & sevens) << 2;
    const uint64_t q = second ^ second >> 1 ^ second >> 2;
    const uint64_t third = (q & twos) | (q >> 6 & twos) << 1 | (q >> 12 & twos) << 2;
    const uint64_t r = third ^ third >> 1 ^ third >> 2;
    const uint64_t last = (r & 1) | (r >> 3 & 1) << 1 | (q >> 18 & 1) << 2;
    const uint32x4_t each = {0, 128, 256, 384}, signs = vdupq_n_u32(112);
    const int32x4_t near = {4, 1, -2, -5}, far = {-8, -11, -14, -17};
    const uint64_t above = w >> 60 & 7, joined = above | second << 3 | third << 24 | last << 30;
#define BC_FOUR(f, bits, by)                                                                                          \
    vst1q_u32(to + (f), vaddq_u32(vandq_u32(vshlq_u32(vdupq_n_u32((uint32_t)(bits)), by), signs),                      \
                                  vaddq_u32(each, vdupq_n_u32(128 * (f)))))
    BC_FOUR(0, w, near);
    BC_FOUR(4, w, far);
    BC_FOUR(8, w >> 24, near);
    BC_FOUR(12, w >> 36, near);
    BC_FOUR(16, w >> 36, far);
    BC_FOUR(20, joined, near);
    BC_FOUR(24, joined, far);
    BC_FOUR(28, joined >> 24, near);
#undef BC_FOUR
    to[31] = 16 * (248 + (uint32_t)((last ^ last >> 1 ^ last >> 2) & 1));
    to[32] = 16 * (250 + (uint32_t)(w >> 63));
    to[33] = 0;
}

/* The same for the 32 planes of a half block: 10 adders over the inputs in threes, 4 over values f, f + 4, f + 8 of those
 * parities and the last two inputs, one over the first three parities of these. */
static void bc_table_half(const uint8x16_t *x, uint8x16_t *t) {
    uint8x16_t value[12], second[4], parity;
    BC_UNROLL for (int f = 0; f < 10; f++) value[f] = bc_carries(x[3 * f], x[3 * f + 1], x[3 * f + 2], t + 8 * f);
    value[10] = x[30];
    value[11] = x[31];
    BC_UNROLL for (int f = 0; f < 4; f++) second[f] = bc_carries(value[f], value[f + 4], value[f + 8], t + 80 + 8 * f);
    parity = bc_carries(second[0], second[1], second[2], t + 112);
    t[120] = parity;
    t[121] = vmvnq_u8(parity);
    t[122] = second[3];
    t[123] = vmvnq_u8(second[3]);
}

static void bc_picks_half(uint32_t w, uint32_t *to) {
    const uint32_t fours = 01111u, p = w ^ w >> 1 ^ w >> 2;
    const uint32_t third = (p >> 24 & 011u) | (w >> 30 & 1) << 6 | w >> 31 << 9;
    const uint32_t second = (p & fours) | (p >> 12 & fours) << 1 | third << 2;
    const uint32_t q = second ^ second >> 1 ^ second >> 2;
    const uint32_t last = (q & 1) | (q >> 3 & 1) << 1 | (q >> 6 & 1) << 2;
    for (uint32_t f = 0; f < 10; f++) to[f] = 128 * f + 16 * (w >> 3 * f & 7);
    for (uint32_t f = 0; f < 4; f++) to[10 + f] = 128 * (10 + f) + 16 * (second >> 3 * f & 7);
    to[14] = 128 * 14 + 16 * last;
    to[15] = 16 * (120 + ((last ^ last >> 1 ^ last >> 2) & 1));
    to[16] = 16 * (122 + (q >> 9 & 1));
}

/* ---- counters ------------------------------------------------------------------------------------------------------- */

/* Planes of a table: those at offsets pick[i] and pick[i + 1], or one. As assembly: compilers compute the addresses by
 * themselves, and spill them. */
typedef struct bc_pair {
    uint8x16_t a, b;
} bc_pair;

#define BC_TABLE_READ(t, pick) "m"(*(const uint8_t(*)[16 * BC_TABLE])(t)), "m"(*(const uint32_t(*)[BC_PICKS])(pick))

static BC_INLINE bc_pair bc_pick2(const uint8_t *t, const uint32_t *pick, const int i) {
    bc_pair p;
    uint64_t x, y;
    __asm__ volatile("ldp %w2, %w3, [%5, #%c6]\n\t"
            "ldr %q0, [%4, %w2, uxtw]\n\t"
            "ldr %q1, [%4, %w3, uxtw]"
            : "=&w"(p.a), "=w"(p.b), "=&r"(x), "=&r"(y)
            : "r"(t), "r"(pick), "i"(4 * i), BC_TABLE_READ(t, pick));
    return p;
}

static BC_INLINE uint8x16_t bc_pick1(const uint8_t *t, const uint32_t *pick, const int i) {
    uint8x16_t plane;
    uint64_t x;
    __asm__ volatile("ldr %w1, [%3, #%c4]\n\t"
            "ldr %q0, [%2, %w1, uxtw]"
            : "=w"(plane), "=&r"(x)
            : "r"(t), "r"(pick), "i"(4 * i), BC_TABLE_READ(t, pick));
    return plane;
}

/* Eight planes of weight 2 (six from pick[i] on, and `last`) into a counter; returns one plane of weight 16. */
static BC_INLINE uint8x16_t bc_eight(uint8x16_t *r, const uint8_t *t, const uint32_t *pick, const int i, bc_pair last) {
    uint8x16_t s1, s2, s3, s4, c1, c2, c3, c4;
    const bc_pair p = bc_pick2(t, pick, i);
    c1 = bc_add3(&s1, p.a, p.b, last.a);
    const bc_pair q = bc_pick2(t, pick, i + 2);
    c2 = bc_add3(&s2, q.a, q.b, last.b);
    const bc_pair u = bc_pick2(t, pick, i + 4);
    c3 = bc_add3(&s3, u.a, u.b, s1);
    c4 = bc_add3(&r[1], s2, s3, r[1]);
    c1 = bc_add3(&s4, c1, c2, c3);
    c2 = bc_add3(&r[2], s4, c4, r[2]);
    return bc_add3(&r[3], c1, c2, r[3]);
}

/* 64 inputs into the planes of weight 1 to 32; returns one of weight 64. */
static BC_INLINE uint8x16_t bc_block64(uint8x16_t *r, const uint8_t *t, const uint32_t *pick) {
    const bc_pair one = bc_pick2(t, pick, 31);
    const bc_pair rest = {bc_add3(&r[0], one.a, one.b, r[0]), bc_pick1(t, pick, 30)};
    const uint8x16_t a = bc_eight(r, t, pick, 0, rest), b = bc_eight(r, t, pick, 6, bc_pick2(t, pick, 12));
    const uint8x16_t ab = bc_add3(&r[4], a, b, r[4]);
    const uint8x16_t c = bc_eight(r, t, pick, 14, bc_pick2(t, pick, 20));
    const uint8x16_t d = bc_eight(r, t, pick, 22, bc_pick2(t, pick, 28));
    return bc_add3(&r[5], ab, bc_add3(&r[4], c, d, r[4]), r[5]);
}

/* 32 inputs into the planes of weight 1 to 16; returns one of weight 32. */
static BC_INLINE uint8x16_t bc_block32(uint8x16_t *r, const uint8_t *t, const uint32_t *pick) {
    const bc_pair one = bc_pick2(t, pick, 15);
    const bc_pair rest = {bc_add3(&r[0], one.a, one.b, r[0]), bc_pick1(t, pick, 14)};
    const uint8x16_t a = bc_eight(r, t, pick, 0, rest), b = bc_eight(r, t, pick, 6, bc_pick2(t, pick, 12));
    return bc_add3(&r[4], a, b, r[4]);
}

/* One channel's counter += `blocks` blocks and, if `half`, a half one. */
static BC_INLINE void bc_count(uint8x16_t *r, int planes, const uint8x16_t *tables, const uint32_t *pick, ptrdiff_t blocks,
                               int half) {
    const uint8_t *t = (const uint8_t *)tables, *next = t + 16 * BC_TABLE;
    for (; blocks > 1; blocks -= 2, t += 32 * BC_TABLE, next += 32 * BC_TABLE, pick += 2 * BC_PICKS) {
        const uint8x16_t a = bc_block64(r, t, pick), b = bc_block64(r, next, pick + BC_PICKS);
        uint8x16_t carry = bc_add3(&r[6], a, b, r[6]);
        BC_UNROLL for (int i = 7; i < planes; i++) carry = bc_add2(&r[i], carry);
    }
    if (blocks > 0) {
        uint8x16_t carry = bc_block64(r, t, pick);
        BC_UNROLL for (int i = 6; i < planes; i++) carry = bc_add2(&r[i], carry);
        t = next;
        pick += BC_PICKS;
    }
    if (half) {
        uint8x16_t carry = bc_block32(r, t, pick);
        BC_UNROLL for (int i = 5; i < planes; i++) carry = bc_add2(&r[i], carry);
    }
}

/* A counter to twice its 128 counts. */
static BC_INLINE void bc_read(const uint8x16_t *r, int planes, uint16_t *to) {
    uint8x16_t low[8], high[8];
    BC_UNROLL for (int i = 0; i < 8; i++) {
        low[i] = i > 0 ? r[i - 1] : vdupq_n_u8(0);
        high[i] = i + 7 < planes ? r[i + 7] : vdupq_n_u8(0);
    }
    bc_bits8(low);
    bc_bits8(high);
    BC_UNROLL for (int v = 0; v < BC_CHUNKS; v++) {
        vst1q_u8((uint8_t *)(to + 16 * v), vzip1q_u8(low[v], high[v]));
        vst1q_u8((uint8_t *)(to + 16 * v + 8), vzip2q_u8(low[v], high[v]));
    }
}

/* Where the counters of 8 channels come from and go to. */
typedef struct bc_run {
    const uint8x16_t *start; /* [8][rise] */
    ptrdiff_t rise;          /* BC_MANY, or 0: all channels start from the same */
    const uint8x16_t *tables;
    const uint32_t *pick;    /* [8][pitch], for `blocks` tables and, if `half`, half a one */
    ptrdiff_t pitch, blocks;
    int half;
    uint8x16_t *kept;        /* [8][BC_MANY]: as they are; or NULL */
    uint8x16_t *top;         /* [8]: the last plane alone; or NULL */
    uint16_t *twice;         /* [8][BC_TILE]: twice the counts; or NULL */
} bc_run;

#define BC_COUNTERS(NAME, N)                                                                                          \
    static void NAME(const bc_run *run) {                                                                             \
        const uint32_t *pick = run->pick;                                                                             \
        for (ptrdiff_t c = 0; c < BC_BLOCK; c++, pick += run->pitch) {                                                \
            uint8x16_t r[N];                                                                                          \
            BC_UNROLL for (int i = 0; i < (N); i++)                                                                   \
                r[i] = run->start[c * run->rise + i];                                                                 \
            bc_count(r, N, run->tables, pick, run->blocks, run->half);                                                \
            if (run->twice != NULL) {                                                                                 \
                bc_read(r, N, run->twice + c * BC_TILE);                                                              \
            } else if (run->top != NULL) {                                                                            \
                run->top[c] = r[(N) - 1];                                                                             \
            } else {                                                                                                  \
                BC_UNROLL for (int i = 0; i < (N); i++) run->kept[c * BC_MANY + i] = r[i];                            \
            }                                                                                                         \
        }                                                                                                             \
    }
BC_COUNTERS(bc_counters_few, BC_FEW)
BC_COUNTERS(bc_counters_many, BC_MANY)
