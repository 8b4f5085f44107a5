/* One row of a picture at the columns of a bilinear resize. Compile with -ffp-contract=off. */
#ifndef VQC_RESIZE_ROW_H
#define VQC_RESIZE_ROW_H

#include <stddef.h>
#include <stdint.h>

#include "vqc_simd.h"

/* t[i] = x[cols[i]] * weights[i] + x[cols[n + i]] * weights[n + i] for n columns. twice: n = 2 w, and column 2k and 2k + 1
 * read k - 1, k and k, k + 1 with the same weights everywhere but at the two ends. */
static inline void vqc_resize_row(const float *restrict x, ptrdiff_t n, const int32_t *restrict cols,
                                  const float *restrict weights, int twice, float *restrict t) {
    const int32_t *restrict c0 = cols, *restrict c1 = cols + n;
    const float *restrict w0 = weights, *restrict w1 = weights + n;
    ptrdiff_t from = 0;
    if (twice && n >= 6) {
        const float a0 = w0[2], a1 = w1[2], b0 = w0[3], b1 = w1[3];
        t[0] = x[c0[0]] * w0[0] + x[c1[0]] * w1[0];
        t[1] = x[c0[1]] * w0[1] + x[c1[1]] * w1[1];
        ptrdiff_t k = 1;
#ifdef VQC_ZIP
        const ptrdiff_t end = n / 2 - 1 - VQC_VL; /* where the last vector begins; it may overlap the one before */
        while (k <= end) {
            const vqc_vf before = *(const vqc_vf_mem *)(x + k - 1), here = *(const vqc_vf_mem *)(x + k);
            const vqc_vf even = before * a0 + here * a1, odd = here * b0 + *(const vqc_vf_mem *)(x + k + 1) * b1;
            VQC_ZIP(even, odd, *(vqc_vf_mem *)(t + 2 * k), *(vqc_vf_mem *)(t + 2 * k + VQC_VL));
            const ptrdiff_t next = k == 1 ? VQC_VL : k + VQC_VL; /* aligned from the second vector on */
            k = next > end && k < end ? end : next;
        }
        if (end >= 1) k = n / 2 - 1;
#endif
        for (; k < n / 2 - 1; k++) {
            t[2 * k] = x[k - 1] * a0 + x[k] * a1;
            t[2 * k + 1] = x[k] * b0 + x[k + 1] * b1;
        }
        from = n - 2;
    }
    for (ptrdiff_t i = from; i < n; i++) t[i] = x[c0[i]] * w0[i] + x[c1[i]] * w1[i];
}

#endif
