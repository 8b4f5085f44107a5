/* Transposed convolutions, phase by phase: the outputs a + stride * r along an axis are a plain convolution at stride 1
 * with the taps that reach them. */
#ifndef VQC_PHASES_H
#define VQC_PHASES_H

#include <stddef.h>
#include <stdint.h>

/* The taps that reach a phase along one axis: their offsets in the input; returns how many. */
static inline ptrdiff_t vqc_phase_taps(ptrdiff_t phase, ptrdiff_t k, ptrdiff_t stride, ptrdiff_t padding,
                                       ptrdiff_t dilation, int32_t *offsets) {
    ptrdiff_t n = 0;
    for (ptrdiff_t i = 0; i < k; i++) {
        const ptrdiff_t at = phase + padding - i * dilation;
        if (at % stride == 0) offsets[n++] = (int32_t)(at / stride);
    }
    return n;
}

/* How far the taps of all phases reach along one axis, before (lo, not positive) and after the position itself;
 * `offsets` is room for k numbers. */
static inline void vqc_phase_reach(ptrdiff_t k, ptrdiff_t stride, ptrdiff_t padding, ptrdiff_t dilation, int32_t *offsets,
                                   ptrdiff_t *lo, ptrdiff_t *hi) {
    *lo = *hi = 0;
    for (ptrdiff_t phase = 0; phase < stride; phase++)
        for (ptrdiff_t i = vqc_phase_taps(phase, k, stride, padding, dilation, offsets); i-- > 0;) {
            if (offsets[i] < *lo) *lo = offsets[i];
            if (offsets[i] > *hi) *hi = offsets[i];
        }
}

#endif
