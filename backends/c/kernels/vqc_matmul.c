/* Matrix products in register tiles of 8 rows by some vectors of columns; products and sums may be contracted. */
#include "vqc_matmul.h"

#include <string.h>

#include "vqc_simd.h"

#define MM_ROWS 8
#define MM_WIDE (VQC_TILE_VECTORS * VQC_VL)

typedef struct mm_job {
    const vqc_matmul_params *p;
    const float *a, *b, *bias;
    float *y;
} mm_job;

#define MM_TILE(NAME, ROWS, NV)                                                                                       \
    static void NAME(const vqc_matmul_params *p, const float *restrict a, const float *restrict b,                    \
                     const float *restrict bias, float *restrict y) {                                                 \
        vqc_vf acc[ROWS][NV];                                                                                         \
        memset(acc, 0, sizeof acc);                                                                                   \
        for (ptrdiff_t k = 0; k < p->k; k++) {                                                                        \
            vqc_vf v[NV];                                                                                             \
            for (int i = 0; i < (NV); i++) v[i] = *(const vqc_vf_mem *)(b + k * p->n + i * VQC_VL);                   \
            for (int r = 0; r < (ROWS); r++)                                                                          \
                for (int i = 0; i < (NV); i++) acc[r][i] = acc[r][i] + v[i] * a[r * (ptrdiff_t)p->k + k];             \
        }                                                                                                             \
        for (int r = 0; r < (ROWS); r++)                                                                              \
            for (int i = 0; i < (NV); i++) {                                                                          \
                if (bias != NULL) acc[r][i] = acc[r][i] + *(const vqc_vf_mem *)(bias + i * VQC_VL);                   \
                *(vqc_vf_mem *)(y + r * (ptrdiff_t)p->n + i * VQC_VL) = acc[r][i];                                    \
            }                                                                                                         \
    }
MM_TILE(mm_wide_8, MM_ROWS, VQC_TILE_VECTORS)
MM_TILE(mm_tile_8, MM_ROWS, 1)
MM_TILE(mm_wide_1, 1, VQC_TILE_VECTORS)
MM_TILE(mm_tile_1, 1, 1)

/* Eight rows (or the last few, one by one) of one matrix. */
static void mm_task(void *arg, int index, int worker) {
    const mm_job *j = (const mm_job *)arg;
    const vqc_matmul_params *p = j->p;
    const ptrdiff_t blocks = (p->m + MM_ROWS - 1) / MM_ROWS, batch = index / blocks, n = p->n;
    const ptrdiff_t first = index % blocks * MM_ROWS, left = p->m - first, rows = left < MM_ROWS ? 1 : MM_ROWS;
    const float *b = j->b + batch * p->b_step;
    (void)worker;
    for (ptrdiff_t row = first; row < p->m && row < first + MM_ROWS; row += rows) {
        const float *a = j->a + batch * p->a_step + row * p->k;
        float *y = j->y + (batch * p->m + row) * n;
        if (n < VQC_VL) {
            for (ptrdiff_t r = 0; r < rows; r++)
                for (ptrdiff_t c = 0; c < n; c++) {
                    float sum = 0.0f;
                    for (ptrdiff_t k = 0; k < p->k; k++) sum += a[r * p->k + k] * b[k * n + c];
                    y[r * n + c] = j->bias != NULL ? sum + j->bias[c] : sum;
                }
            continue;
        }
        for (ptrdiff_t c = 0; c < n;) { /* the last tile may go back over columns already done */
            const int wide = n - c >= MM_WIDE;
            const ptrdiff_t width = wide ? MM_WIDE : VQC_VL;
            if (n - c < width) c = n - width;
            const float *bias = j->bias != NULL ? j->bias + c : NULL;
            if (rows == MM_ROWS) (wide ? mm_wide_8 : mm_tile_8)(p, a, b + c, bias, y + c);
            else (wide ? mm_wide_1 : mm_tile_1)(p, a, b + c, bias, y + c);
            c += width;
        }
    }
}

void vqc_matmul_f32(const vqc_model *m, const vqc_matmul_params *p, const float *a, const float *b, const float *bias,
                    float *y) {
    mm_job j = {p, a, b, bias, y};
    vqc_for(m, mm_task, &j, p->batch * ((p->m + MM_ROWS - 1) / MM_ROWS));
}
