/* Hooks that count in words of 32 channels as they are: unpacking is a copy, weights are ready. */

/* dst[t] = row[left + t * step], BC_PAD outside the row; row may be NULL. */
static void bc_expand(uint32_t *restrict dst, ptrdiff_t line, const uint32_t *restrict row, ptrdiff_t left,
                      ptrdiff_t step, ptrdiff_t count, ptrdiff_t w) {
    ptrdiff_t lo = left < 0 ? (-left + step - 1) / step : 0, hi = left < w ? (w - 1 - left) / step + 1 : 0;
    (void)line;
    if (lo > count) lo = count;
    if (hi > count) hi = count;
    if (row == NULL || hi < lo) hi = lo;
    for (ptrdiff_t t = 0; t < lo; t++) dst[t] = BC_PAD;
    if (step == 1 && lo < hi) memcpy(dst + lo, row + left + lo, (size_t)(hi - lo) * sizeof *dst);
    for (ptrdiff_t t = lo; t < hi && step != 1; t++) dst[t] = row[left + t * step];
    for (ptrdiff_t t = hi; t < count; t++) dst[t] = BC_PAD;
}

/* n words: the bits of `from` for one tap, which is the tap-th of those that share the words of `to`. */
static void bc_join(uint32_t *restrict to, const uint32_t *restrict from, ptrdiff_t line, ptrdiff_t tap, ptrdiff_t bits,
                    ptrdiff_t n) {
    const ptrdiff_t left = tap * bits;
    (void)line;
    if (tap == 0) {
        memcpy(to, from, (size_t)n * sizeof *to);
        return;
    }
    for (ptrdiff_t i = 0; i < n; i++) to[i] |= from[i] << left;
}

#ifndef BC_OWN_WEIGHTS
static void bc_prepare(unsigned char *prepared) { (void)prepared; }

static const void *bc_weights(const uint32_t *w, ptrdiff_t steps, unsigned char *prepared) {
    (void)steps;
    (void)prepared;
    return w;
}
#endif
