/* Counting with the byte shuffle (SSSE3, AVX2, AVX-512BW), where there is no popcount of lanes.
 *
 * A byte of unpacked input is four channels of one position. For two channels of output at once, a table of 16 bytes
 * says how many of those four differ from the weights: the first channel's number in the low half of the byte, the
 * second one's in the high half. So one shuffle and one addition count 8 bits of every position in the vector.
 * Halves hold three such numbers (at most 12); then the byte is added to `all` (modulo 256) and its high half to
 * `high`; at last low = all - 16 * high, which is below 256 and therefore exact. Three steps of 32 channels are eight
 * such bytes: their high halves stay where they are, at most 192, and are averaged in pairs, pairs of pairs and so on, which
 * is exact and needs no shifts. Seven steps fit a byte (224); then counters go on in 16 bits (lowering refuses longer sums).
 *
 * Padding has its top bit set, for which the shuffle gives 0: padded taps are not counted. */
#include <immintrin.h>

#define BC_E uint8_t
#define BC_PLANES 8
#define BC_PAD 0x80
#define BC_STEPS 7 /* that fit a byte */
#define BC_OWN_BITS 1

#if defined(__AVX512BW__)
#define BC_BYTES 64
typedef __m512i bc_vec;
#define BC_LOAD(p) _mm512_loadu_si512(p)
#define BC_SHUFFLE _mm512_shuffle_epi8
#define BC_ADD8 _mm512_add_epi8
#define BC_SUB8 _mm512_sub_epi8
#define BC_ADD16 _mm512_add_epi16
#define BC_AND _mm512_and_si512
#define BC_RIGHT16 _mm512_srli_epi16
#define BC_LEFT16 _mm512_slli_epi16
#define BC_SET8 _mm512_set1_epi8
#define BC_ZERO _mm512_setzero_si512
#define BC_LOW8 _mm512_unpacklo_epi8
#define BC_HIGH8 _mm512_unpackhi_epi8
#define BC_AVG8 _mm512_avg_epu8
#define BC_AVG16 _mm512_avg_epu16
#define BC_SUB16 _mm512_sub_epi16
#define BC_SET16 _mm512_set1_epi16
#define BC_OR _mm512_or_si512
#define BC_XOR _mm512_xor_si512
#define BC_BYTES16 _mm512_packs_epi16
#define BC_ABOVE16(a, b) _mm512_movm_epi16(_mm512_cmpgt_epi16_mask(a, b))
#define BC_STORE(p, v) _mm512_storeu_si512(p, v)
#elif defined(__AVX2__)
#define BC_BYTES 32
typedef __m256i bc_vec;
#define BC_LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define BC_SHUFFLE _mm256_shuffle_epi8
#define BC_ADD8 _mm256_add_epi8
#define BC_SUB8 _mm256_sub_epi8
#define BC_ADD16 _mm256_add_epi16
#define BC_AND _mm256_and_si256
#define BC_RIGHT16 _mm256_srli_epi16
#define BC_LEFT16 _mm256_slli_epi16
#define BC_SET8 _mm256_set1_epi8
#define BC_ZERO _mm256_setzero_si256
#define BC_LOW8 _mm256_unpacklo_epi8
#define BC_HIGH8 _mm256_unpackhi_epi8
#define BC_AVG8 _mm256_avg_epu8
#define BC_AVG16 _mm256_avg_epu16
#define BC_SUB16 _mm256_sub_epi16
#define BC_SET16 _mm256_set1_epi16
#define BC_OR _mm256_or_si256
#define BC_XOR _mm256_xor_si256
#define BC_BYTES16 _mm256_packs_epi16
#define BC_ABOVE16 _mm256_cmpgt_epi16
#define BC_STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#else
#define BC_BYTES 16
typedef __m128i bc_vec;
#define BC_LOAD(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define BC_SHUFFLE _mm_shuffle_epi8
#define BC_ADD8 _mm_add_epi8
#define BC_SUB8 _mm_sub_epi8
#define BC_ADD16 _mm_add_epi16
#define BC_AND _mm_and_si128
#define BC_RIGHT16 _mm_srli_epi16
#define BC_LEFT16 _mm_slli_epi16
#define BC_SET8 _mm_set1_epi8
#define BC_ZERO _mm_setzero_si128
#define BC_LOW8 _mm_unpacklo_epi8
#define BC_HIGH8 _mm_unpackhi_epi8
#define BC_AVG8 _mm_avg_epu8
#define BC_AVG16 _mm_avg_epu16
#define BC_SUB16 _mm_sub_epi16
#define BC_SET16 _mm_set1_epi16
#define BC_OR _mm_or_si128
#define BC_XOR _mm_xor_si128
#define BC_BYTES16 _mm_packs_epi16
#define BC_ABOVE16 _mm_cmpgt_epi16
#define BC_STORE(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
#endif
#define BC_LANES BC_BYTES
#define BC_TABLES (256 * BC_BYTES) /* bytes: a vector for each pair of four weights */
#define BC_PREPARED(steps) (BC_TABLES + 64 * (steps))

#include "vqc_bconv_band.h"

/* Eight rows of bytes, `line` apart: row s has bits 4 s .. 4 s + 3 of the words. */
static void bc_expand(uint8_t *restrict dst, ptrdiff_t line, const uint32_t *restrict row, ptrdiff_t left,
                      ptrdiff_t step, ptrdiff_t count, ptrdiff_t w) {
    ptrdiff_t lo = left < 0 ? (-left + step - 1) / step : 0, hi = left < w ? (w - 1 - left) / step + 1 : 0;
    if (lo > count) lo = count;
    if (hi > count) hi = count;
    if (row == NULL || hi < lo) hi = lo;
    for (ptrdiff_t s = 0; s < BC_PLANES; s++, dst += line) {
        memset(dst, BC_PAD, (size_t)lo);
        if (step == 1)
            for (ptrdiff_t t = lo; t < hi; t++) dst[t] = (uint8_t)(row[left + t] >> 4 * s & 15u);
        else
            for (ptrdiff_t t = lo; t < hi; t++) dst[t] = (uint8_t)(row[left + t * step] >> 4 * s & 15u);
        memset(dst + hi, BC_PAD, (size_t)(count - hi));
    }
}

/* n positions: the bits of `from` for one tap, which is the tap-th of those that share the rows of `to`. */
static void bc_join(uint8_t *to, const uint8_t *from, ptrdiff_t line, ptrdiff_t tap, ptrdiff_t bits, ptrdiff_t n) {
    const ptrdiff_t planes = bits / 4, first = tap * planes;
    for (ptrdiff_t s = 0; s < BC_PLANES - first; s++) {
        if (s < planes) memcpy(to + (first + s) * line, from + s * line, (size_t)n);
        else memset(to + (first + s) * line, 0, (size_t)n); /* until the next tap comes */
    }
}

/* The tables of all pairs of four weights, repeated in every 16 bytes of a vector. */
static void bc_prepare(unsigned char *prepared) {
    static const uint8_t ones[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
    for (unsigned pair = 0; pair < 256; pair++)
        for (unsigned x = 0; x < BC_BYTES; x++)
            *prepared++ = (uint8_t)(ones[(x ^ pair) & 15u] | ones[(x ^ pair >> 4) & 15u] << 4);
}

/* Where a block's tables lie: channels j and j + 4 are pair j; for each step uint16 [8 parts][4 pairs]. */
static const void *bc_weights(const uint32_t *restrict w, ptrdiff_t steps, unsigned char *restrict prepared) {
    const __m128i low = _mm_set1_epi32(0x0f), high = _mm_set1_epi32(0xf0);
    const __m128i bytes = _mm_set1_epi16(BC_BYTES);
    __m128i *at = (__m128i *)(void *)(prepared + BC_TABLES);
    for (ptrdiff_t k = 0; k < steps; k++, w += BC_BLOCK, at += 4) {
        const __m128i a = _mm_loadu_si128((const __m128i *)(const void *)w);
        const __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(w + 4));
        __m128i pair[8];
        BC_UNROLL for (int s = 0; s < 8; s++) {
            const __m128i above = s == 0 ? _mm_slli_epi32(c, 4) : _mm_srli_epi32(c, s == 0 ? 0 : 4 * s - 4);
            pair[s] = _mm_or_si128(_mm_and_si128(_mm_srli_epi32(a, 4 * s), low), _mm_and_si128(above, high));
        }
        BC_UNROLL for (int s = 0; s < 4; s++)
            _mm_storeu_si128(at + s, _mm_mullo_epi16(_mm_packs_epi32(pair[2 * s], pair[2 * s + 1]), bytes));
    }
    return prepared;
}

typedef uint16_t bc_half8 __attribute__((vector_size(16), may_alias));
typedef int32_t bc_int8 __attribute__((vector_size(32), aligned(4), may_alias));

#define BC_EACH(P, W)                                                                                                 \
    BC_UNROLL for (int j = 0; j < W; j++)                                                                             \
        BC_UNROLL for (int i = 0; i < P; i++)

/* Part S of the 8 of a step: shuffles into v, the first of three sets it. */
#define BC_LOOKUP(P, W, S, OP)                                                                                        \
    do {                                                                                                              \
        const uint8_t *x = b->x + off[(S) / 8] + col;                                                                 \
        bc_vec in[P];                                                                                                 \
        BC_UNROLL for (int i = 0; i < P; i++) in[i] = BC_LOAD(x + (S) % 8 * line + i * BC_BYTES);                     \
        BC_UNROLL for (int j = 0; j < W; j++) {                                                                       \
            const bc_vec table = BC_LOAD(tables + at[4 * (S) + j]);                                                   \
            BC_UNROLL for (int i = 0; i < P; i++) v[j][i] = OP(v[j][i], BC_SHUFFLE(table, in[i]));                    \
        }                                                                                                             \
    } while (0)
#define BC_FIRST(old, new) (new)
#define BC_THREE(P, W, S)                                                                                             \
    BC_LOOKUP(P, W, S, BC_FIRST);                                                                                     \
    BC_LOOKUP(P, W, S + 1, BC_ADD8);                                                                                  \
    BC_LOOKUP(P, W, S + 2, BC_ADD8);
#define BC_FLUSH(P, W)                                                                                                \
    BC_EACH(P, W) {                                                                                                   \
        all[j][i] = BC_ADD8(all[j][i], v[j][i]);                                                                      \
        high[j][i] = BC_ADD8(high[j][i], BC_AND(BC_RIGHT16(v[j][i], 4), nibble));                                     \
    }

/* Three bytes' worth of shuffles; their high halves go to h, the mean of them and what is there. */
#define BC_HIGH(P, W, S, h, OP)                                                                                       \
    do {                                                                                                              \
        BC_THREE(P, W, S)                                                                                             \
        BC_EACH(P, W) {                                                                                               \
            all[j][i] = BC_ADD8(all[j][i], v[j][i]);                                                                  \
            h[j][i] = OP(h[j][i], BC_AND(v[j][i], top));                                                              \
        }                                                                                                             \
    } while (0)
#define BC_MEAN(P, W, a, b) BC_EACH(P, W) a[j][i] = BC_AVG8(a[j][i], b[j][i])

/* Counts of P vectors of positions and W pairs from `first` on, in 16 bits: [channel][low or high half of lanes][P]. */
#define BC_TILE(NAME, P, W)                                                                                           \
    static BC_NOINLINE void NAME(const bc_band *b, ptrdiff_t col, int first, bc_vec wide[BC_BLOCK][2][2]) {           \
        const unsigned char *tables = (const unsigned char *)b->w;                                                    \
        const uint16_t *at = (const uint16_t *)(const void *)(tables + BC_TABLES) + first;                            \
        const bc_vec nibble = BC_SET8(0x0f), top = BC_SET8((char)0xf0), zero = BC_ZERO();                             \
        const ptrdiff_t line = b->line;                                                                               \
        const int32_t *off = b->off, *last = off + b->steps;                                                          \
        for (int begin = 1; off < last; begin = 0) {                                                                  \
            const int32_t *end = last - off > BC_STEPS ? off + BC_STEPS / 3 * 3 : last;                               \
            bc_vec all[W][P], high[W][P], v[W][P];                                                                    \
            BC_EACH(P, W) all[j][i] = high[j][i] = zero;                                                              \
            for (; off + 3 <= end; off += 3, at += 96) {                                                              \
                bc_vec two[W][P], four[W][P], eight[W][P];                                                            \
                BC_HIGH(P, W, 0, eight, BC_FIRST);                                                                    \
                BC_HIGH(P, W, 3, eight, BC_AVG8);                                                                     \
                BC_HIGH(P, W, 6, two, BC_FIRST);                                                                      \
                BC_HIGH(P, W, 9, two, BC_AVG8);                                                                       \
                BC_MEAN(P, W, eight, two);                                                                            \
                BC_HIGH(P, W, 12, four, BC_FIRST);                                                                    \
                BC_HIGH(P, W, 15, four, BC_AVG8);                                                                     \
                BC_HIGH(P, W, 18, two, BC_FIRST);                                                                     \
                BC_HIGH(P, W, 21, two, BC_AVG8);                                                                      \
                BC_MEAN(P, W, four, two);                                                                             \
                BC_MEAN(P, W, eight, four);                                                                           \
                BC_EACH(P, W) high[j][i] = BC_ADD8(high[j][i], BC_AVG8(eight[j][i], zero));                           \
            }                                                                                                         \
            for (; off < end; off++, at += 32) {                                                                      \
                BC_THREE(P, W, 0)                                                                                     \
                BC_FLUSH(P, W)                                                                                        \
                BC_THREE(P, W, 3)                                                                                     \
                BC_FLUSH(P, W)                                                                                        \
                BC_LOOKUP(P, W, 6, BC_FIRST);                                                                         \
                BC_LOOKUP(P, W, 7, BC_ADD8);                                                                          \
                BC_FLUSH(P, W)                                                                                        \
            }                                                                                                         \
            BC_EACH(P, W) {                                                                                           \
                const bc_vec up = BC_LEFT16(BC_AND(high[j][i], nibble), 4), low = BC_SUB8(all[j][i], up);             \
                bc_vec *a = &wide[first + j][0][i], *c = &wide[first + j + 4][0][i];                                  \
                a[0] = BC_ADD16(begin ? zero : a[0], BC_LOW8(low, zero));                                             \
                a[2] = BC_ADD16(begin ? zero : a[2], BC_HIGH8(low, zero));                                            \
                c[0] = BC_ADD16(begin ? zero : c[0], BC_LOW8(high[j][i], zero));                                      \
                c[2] = BC_ADD16(begin ? zero : c[2], BC_HIGH8(high[j][i], zero));                                     \
            }                                                                                                         \
        }                                                                                                             \
    }
BC_TILE(bc_tile_1, 1, 4)
BC_TILE(bc_tile_2, 2, 2)

/* Counts of the one or two vectors of positions from `col` on that hold n, all channels of a block. Returns how many. */
static inline int bc_counts(const bc_band *b, ptrdiff_t col, ptrdiff_t n, bc_vec wide[BC_BLOCK][2][2]) {
    if (n <= BC_BYTES) {
        bc_tile_1(b, col, 0, wide);
        return 1;
    }
    bc_tile_2(b, col, 0, wide);
    bc_tile_2(b, col, 2, wide);
    return 2;
}

static inline void bc_sums(const bc_band *b, ptrdiff_t col, ptrdiff_t n, int32_t *t, ptrdiff_t pitch) {
    bc_vec wide[BC_BLOCK][2][2];
    for (ptrdiff_t at = 0; at < n; at += 2 * BC_BYTES) {
        const int vectors = bc_counts(b, col + at, n - at, wide);
        for (int j = 0; j < BC_BLOCK; j++)
            for (int i = 0; i < vectors; i++) {
                const int32_t *inside = b->inside + col + at + i * BC_BYTES;
                int32_t *to = t + j * pitch + at + i * BC_BYTES;
                for (int q = 0; q < BC_BYTES / 8; q++) { /* the halves' lanes alternate by eights */
                    const bc_half8 *count = (const bc_half8 *)(const void *)&wide[j][q & 1][i] + q / 2;
                    const bc_int8 in = *(const bc_int8 *)(const void *)(inside + 8 * q);
                    *(bc_int8 *)(void *)(to + 8 * q) = in - 2 * __builtin_convertvector(*count, bc_int8);
                }
            }
    }
}

static inline void bc_limit(const bc_band *b, bc_limits *limits) { /* `inside` is per column */
    (void)b;
    (void)limits;
}

/* Bits of n positions of a row, for a block of channels from o on: inside - 2 count is below a threshold where the count is
 * above half of inside - threshold, rounded down. A mean gives that half without leaving 16 bits:
 * (inside + (32767 - threshold) + 1) / 2 = half + 16384. */
static inline void bc_bits(const bc_band *b, ptrdiff_t o, ptrdiff_t col, ptrdiff_t n, uint32_t *bits) {
    const bc_limits *limits = b->limits;
    const bc_vec offset = BC_SET16(16384);
    uint8_t bytes[BC_SEGMENT + BC_BYTES];
    bc_vec wide[BC_BLOCK][2][2];
    for (ptrdiff_t at = 0; at < n; at += 2 * BC_BYTES) {
        const int vectors = bc_counts(b, col + at, n - at, wide);
        for (int i = 0; i < vectors; i++) {
            const int32_t *inside = b->inside + col + at + i * BC_BYTES;
            bc_vec in[2], byte = BC_SET8((char)limits->turned);
            for (int q = 0; q < BC_BYTES / 8; q++) /* the halves' lanes alternate by eights */
                *((bc_half8 *)(void *)&in[q & 1] + q / 2) =
                    __builtin_convertvector(*(const bc_int8 *)(const void *)(inside + 8 * q), bc_half8);
            BC_UNROLL for (int j = 0; j < BC_BLOCK; j++) {
                const bc_vec room = BC_SET16((short)(32767 - limits->threshold[j]));
                bc_vec above[2];
                BC_UNROLL for (int q = 0; q < 2; q++)
                    above[q] = BC_ABOVE16(wide[j][q][i], BC_SUB16(BC_AVG16(in[q], room), offset));
                byte = BC_XOR(byte, BC_AND(BC_BYTES16(above[0], above[1]), BC_SET8((char)(1 << j))));
            }
            BC_STORE(bytes + at + i * BC_BYTES, byte);
        }
    }
    const int left = (int)(o % 32);
    if (left == 0)
        for (ptrdiff_t i = 0; i < n; i++) bits[i] = bytes[i];
    else
        for (ptrdiff_t i = 0; i < n; i++) bits[i] |= (uint32_t)bytes[i] << left;
}
