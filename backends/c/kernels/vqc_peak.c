/* What this machine can do at most, for peak.py: multiply-adds out of the first-level cache, and copies.
 *
 * Not part of a model. Every function does the innermost loop of a matrix product: TALL rows by WIDE vectors of
 * columns in registers, one vector of the left side broadcast for each step of K. `out` takes the sums, so that nothing
 * is optimized away. The kinds an instruction set lacks are done by the next best instructions there are.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#define TALL 12
#define WIDE 2
#elif defined(__AVX__)
#define BYTES 32
#define TALL 6
#define WIDE 2
#else
#define BYTES 16
#define TALL 6
#define WIDE 2
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#undef WIDE
#define WIDE 4
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

/* What `p` points to is needed now: every pass is done. */
#define DONE(p) __asm__ __volatile__("" : : "r"(p) : "memory")

typedef float vf __attribute__((vector_size(BYTES)));
typedef int32_t vi __attribute__((vector_size(BYTES)));
typedef uint64_t vu __attribute__((vector_size(BYTES)));

size_t vqc_peak_tile(void);
size_t vqc_peak_int8_macs(void);
void vqc_peak_f32(const float *x, const float *w, float *out, size_t k, size_t times);
void vqc_peak_int8(const int32_t *x, const int32_t *w, int32_t *out, size_t k, size_t times);
void vqc_peak_binary(const uint64_t *x, const uint64_t *w, uint64_t *out, size_t k, size_t times);
void vqc_peak_copy(const char *from, char *to, size_t size, size_t times);

/* Sums of 32 bits that a step of K adds to: rows x columns. */
size_t vqc_peak_tile(void) { return (size_t)TALL * WIDE * (BYTES / 4); }

/* Multiply-adds of vqc_peak_int8 in a lane of 32 bits. */
size_t vqc_peak_int8_macs(void) {
#if (defined(__AVX512VNNI__) && BYTES == 64) || (defined(__AVXVNNI__) && BYTES == 32)
    return 4;
#elif defined(__SSE2__) && (BYTES == 16 || defined(__AVX2__))
    return 2;
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return 8;
#elif defined(__ARM_FEATURE_DOTPROD)
    return 4;
#else
    return 1;
#endif
}

#define PRODUCT(NAME, V, T, STEP)                                                                                 \
    void NAME(const T *x, const T *w, T *out, size_t k, size_t times) {                                           \
        for (size_t n = 0; n < times; n++) {                                                                      \
            V acc[TALL][WIDE];                                                                                    \
            UNROLL for (int r = 0; r < TALL; r++)                                                                 \
                UNROLL for (int c = 0; c < WIDE; c++) acc[r][c] = (V){0};                                         \
            for (size_t i = 0; i < k; i++) {                                                                      \
                V b[WIDE];                                                                                        \
                UNROLL for (size_t c = 0; c < WIDE; c++)                                                          \
                    memcpy(&b[c], w + (i * WIDE + c) * (BYTES / sizeof(T)), BYTES);                               \
                UNROLL for (int r = 0; r < TALL; r++) {                                                           \
                    const V a = x[i * TALL + (size_t)r] - (V){0};                                                 \
                    UNROLL for (int c = 0; c < WIDE; c++) acc[r][c] = STEP(acc[r][c], a, b[c]);                   \
                }                                                                                                 \
            }                                                                                                     \
            UNROLL for (size_t r = 0; r < TALL; r++)                                                              \
                UNROLL for (size_t c = 0; c < WIDE; c++)                                                          \
                    memcpy(out + (r * WIDE + c) * (BYTES / sizeof(T)), &acc[r][c], BYTES);                        \
            DONE(out);                                                                                            \
        }                                                                                                         \
    }

static inline vf step_f32(vf sum, vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, sum);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, sum);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + sum;
#endif
}

/* Four unsigned bytes times four signed ones, added up, in every lane; exact. */
static inline vi step_int8(vi sum, vi a, vi b) {
#if defined(__AVX512VNNI__) && BYTES == 64
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__) && BYTES == 32
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#elif defined(__AVX512BW__) && BYTES == 64
    return sum + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b); /* two pairs of 16 bits */
#elif defined(__AVX2__) && BYTES == 32
    return sum + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && BYTES == 16
    return sum + (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return (vi)vusmmlaq_s32((int32x4_t)sum, (uint8x16_t)a, (int8x16_t)b);
#elif defined(__ARM_FEATURE_DOTPROD)
    return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
#else
    return sum + a * b;
#endif
}

/* 64 xors and a count in every lane of 64 bits. */
static inline vu step_binary(vu sum, vu a, vu b) {
    const vu bits = a ^ b;
#if defined(__AVX512VPOPCNTDQ__) && BYTES == 64
    return sum + (vu)_mm512_popcnt_epi64((__m512i)bits);
#elif defined(__AVX2__) && BYTES == 32
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15), v = (__m256i)bits;
    const __m256i count = _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                                          _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
    return sum + (vu)_mm256_sad_epu8(count, _mm256_setzero_si256());
#elif defined(__aarch64__)
    return (vu)vpadalq_u32((uint64x2_t)sum, vpaddlq_u16(vpaddlq_u8(vcntq_u8((uint8x16_t)bits))));
#else
    vu v = bits - ((bits >> 1) & 0x5555555555555555u);
    v = (v & 0x3333333333333333u) + ((v >> 2) & 0x3333333333333333u);
    v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return sum + ((v * 0x0101010101010101u) >> 56);
#endif
}

PRODUCT(vqc_peak_f32, vf, float, step_f32)
PRODUCT(vqc_peak_int8, vi, int32_t, step_int8)
PRODUCT(vqc_peak_binary, vu, uint64_t, step_binary)

void vqc_peak_copy(const char *from, char *to, size_t size, size_t times) {
    for (size_t n = 0; n < times; n++) {
        for (size_t i = 0; i + BYTES <= size; i += BYTES) {
            vi v;
            memcpy(&v, from + i, sizeof v);
            memcpy(to + i, &v, sizeof v);
        }
        DONE(to);
    }
}
