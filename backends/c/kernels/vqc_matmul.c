/* Matrix products in register tiles over packed panels of b; products and sums may be contracted.
 *
 * A task is a panel of columns times a stretch of rows. The panel lies packed and stays in the second-level cache while
 * all rows pass over it, in blocks of MM_DEPTH of the inner axis.
 */
#include "vqc_matmul.h"

#include <string.h>

#include "vqc_simd.h"

#define MM_DEPTH 1024
/* Register tiles: rows by vectors, so that accumulators, a row of b and one value of a fit the registers. */
#if defined(__AVX512F__) && VQC_VL == 16
#define MM_ROWS 8
#define MM_NV 3
#elif defined(__aarch64__) && VQC_VL == 4
#define MM_ROWS 6
#define MM_NV 4
#elif VQC_VL == 1
#define MM_ROWS 2
#define MM_NV 4
#else
#define MM_ROWS 6
#define MM_NV 2
#endif

typedef struct mm_job {
    const vqc_matmul_params *p;
    const float *a, *b, *bias;
    float *y;
    unsigned char *scratch;
    ptrdiff_t panels, chunks;
} mm_job;

/* A tile: `depth` of the inner axis, b in rows of `width`; `first`: the sums start here. */
typedef void (*mm_tile)(ptrdiff_t depth, const float *a, ptrdiff_t lda, const float *b, ptrdiff_t width, float *y,
                        ptrdiff_t ldy, int first);

#define MM_TILE(ROWS, NV)                                                                                             \
    static void mm_tile_##ROWS##_##NV(ptrdiff_t depth, const float *restrict a, ptrdiff_t lda,                        \
                                      const float *restrict b, ptrdiff_t width, float *restrict y, ptrdiff_t ldy,     \
                                      int first) {                                                                    \
        vqc_vf acc[ROWS][NV];                                                                                         \
        memset(acc, 0, sizeof acc);                                                                                   \
        if (!first)                                                                                                   \
            for (int r = 0; r < (ROWS); r++)                                                                          \
                for (int i = 0; i < (NV); i++) acc[r][i] = *(const vqc_vf_mem *)(y + r * ldy + i * VQC_VL);           \
        for (ptrdiff_t k = 0; k < depth; k++, b += width) {                                                           \
            vqc_vf v[NV];                                                                                             \
            for (int i = 0; i < (NV); i++) v[i] = *(const vqc_vf_mem *)(b + i * VQC_VL);                              \
            for (int r = 0; r < (ROWS); r++)                                                                          \
                for (int i = 0; i < (NV); i++) acc[r][i] = acc[r][i] + v[i] * a[r * lda + k];                         \
        }                                                                                                             \
        for (int r = 0; r < (ROWS); r++)                                                                              \
            for (int i = 0; i < (NV); i++) *(vqc_vf_mem *)(y + r * ldy + i * VQC_VL) = acc[r][i];                     \
    }
#define MM_TILES(NV) MM_TILE(8, NV) MM_TILE(6, NV) MM_TILE(4, NV) MM_TILE(2, NV) MM_TILE(1, NV)
#define MM_NAMES(NV) {mm_tile_8_##NV, mm_tile_6_##NV, mm_tile_4_##NV, mm_tile_2_##NV, mm_tile_1_##NV}
static const int mm_heights[5] = {8, 6, 4, 2, 1};
#if MM_NV == 3
MM_TILES(1)
MM_TILES(2)
MM_TILES(3)
static const mm_tile mm_tiles[3][5] = {MM_NAMES(1), MM_NAMES(2), MM_NAMES(3)};
#elif MM_NV == 4
MM_TILES(4)
static const mm_tile mm_tiles[1][5] = {MM_NAMES(4)};
#else
MM_TILES(2)
static const mm_tile mm_tiles[1][5] = {MM_NAMES(2)};
#endif

/* Columns of the tile at column c of a panel: a panel is a whole number of these. */
static ptrdiff_t mm_columns(ptrdiff_t left) { return left < MM_NV * VQC_VL ? left : MM_NV * VQC_VL; }

/* `depth` rows of `have` columns to [depth][width], zeros after them. */
static void mm_pack(const float *restrict b, ptrdiff_t row, ptrdiff_t col, ptrdiff_t depth, ptrdiff_t have,
                    ptrdiff_t width, float *restrict to) {
    if (col == 1) {
        for (ptrdiff_t k = 0; k < depth; k++) {
            memcpy(to + k * width, b + k * row, (size_t)have * sizeof(float));
            for (ptrdiff_t c = have; c < width; c++) to[k * width + c] = 0.0f;
        }
        return;
    }
    for (ptrdiff_t start = 0; start < depth; start += 16) { /* short columns: both sides stay in the first cache */
        const ptrdiff_t end = start + 16 < depth ? start + 16 : depth;
        for (ptrdiff_t c = 0; c < have; c++)
            for (ptrdiff_t k = start; k < end; k++) to[k * width + c] = b[k * row + c * col];
        for (ptrdiff_t c = have; c < width; c++)
            for (ptrdiff_t k = start; k < end; k++) to[k * width + c] = 0.0f;
    }
}

/* Rows of y over one block of the inner axis. */
static void mm_rows(const float *a, ptrdiff_t lda, const float *b, ptrdiff_t depth, ptrdiff_t width,
                    ptrdiff_t have, int height, float *y, ptrdiff_t ldy, int first) {
    for (ptrdiff_t c = 0, step; c < width; c += step) {
        step = mm_columns(width - c);
#if MM_NV == 3
        const mm_tile tile = mm_tiles[step / VQC_VL - 1][height];
#else
        const mm_tile tile = mm_tiles[0][height];
#endif
        if (c + step <= have) {
            tile(depth, a, lda, b + c, width, y + c, ldy, first);
        } else if (c < have) { /* past the last column: through a copy */
            float part[8 * MM_NV * VQC_VL];
            const size_t bytes = (size_t)(have - c) * sizeof(float);
            memset(part, 0, sizeof part);
            for (int r = 0; r < mm_heights[height] && !first; r++) memcpy(part + r * step, y + r * ldy + c, bytes);
            tile(depth, a, lda, b + c, width, part, step, first);
            for (int r = 0; r < mm_heights[height]; r++) memcpy(y + r * ldy + c, part + r * step, bytes);
        }
    }
}

static void mm_task(void *arg, int index, int worker) {
    const mm_job *j = (const mm_job *)arg;
    const vqc_matmul_params *p = j->p;
    const ptrdiff_t chunk = index % j->chunks, panel = index / j->chunks % j->panels, batch = index / j->chunks / j->panels;
    const ptrdiff_t column = panel * VQC_MM_PANEL, left = p->n - column, k = p->k, ldy = p->y_row;
    const ptrdiff_t have = left < VQC_MM_PANEL ? left : VQC_MM_PANEL, width = (have + 15) / 16 * 16;
    const float *a = j->a, *b = j->b + (p->packed ? panel * VQC_MM_PANEL * k : column * p->b_col);
    float *space = (float *)(void *)(j->scratch + (size_t)worker * p->scratch), *panel_space = space;
    ptrdiff_t rest = batch;
    for (int d = p->dims - 1; d >= 0; d--) {
        a += rest % p->shape[d] * p->a_step[d];
        b += rest % p->shape[d] * p->b_step[d];
        rest /= p->shape[d];
    }
    if (!p->packed) {
        mm_pack(b, p->b_row, p->b_col, k, have, width, panel_space);
        b = panel_space;
        space += (k * VQC_MM_PANEL + 15) / 16 * 16;
    }
    const ptrdiff_t begin = chunk * p->rows, end = begin + p->rows < p->m ? begin + p->rows : p->m;
    float *y = j->y + batch * p->m * ldy + column;
    for (ptrdiff_t start = 0; start < k; start += MM_DEPTH) {
        const ptrdiff_t depth = k - start < MM_DEPTH ? k - start : MM_DEPTH;
        for (ptrdiff_t r = begin; r < end;) {
            int height = 0;
            while (mm_heights[height] > MM_ROWS || mm_heights[height] > end - r) height++;
            const float *from = a + r * p->a_row + start * p->a_col;
            ptrdiff_t lda = p->a_row;
            if (p->a_col != 1) {
                for (int i = 0; i < mm_heights[height]; i++)
                    for (ptrdiff_t d = 0; d < depth; d++) space[i * MM_DEPTH + d] = from[i * p->a_row + d * p->a_col];
                from = space;
                lda = MM_DEPTH;
            }
            mm_rows(from, lda, b + start * width, depth, width, have, height, y + r * ldy, ldy, start == 0);
            r += mm_heights[height];
        }
    }
    if (j->bias != NULL)
        for (ptrdiff_t r = begin; r < end; r++)
            for (ptrdiff_t c = 0; c < have; c++) y[r * ldy + c] += j->bias[column + c];
}

void vqc_matmul_f32(const vqc_model *m, const vqc_matmul_params *p, const float *a, const float *b, const float *bias,
                    float *y, void *scratch) {
    mm_job j = {p, a, b, bias, y, (unsigned char *)scratch, (p->n + VQC_MM_PANEL - 1) / VQC_MM_PANEL,
                (p->m + p->rows - 1) / p->rows};
    ptrdiff_t batch = 1;
    for (int d = 0; d < p->dims; d++) batch *= p->shape[d];
    vqc_for(m, mm_task, &j, (int)(batch * j.panels * j.chunks));
}
