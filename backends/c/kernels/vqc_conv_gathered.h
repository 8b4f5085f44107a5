/* The other way to compute under a mask, for layers with many output channels: the inputs of CV_GROUP active positions
 * are gathered once, tap after tap, and all output channels are computed from this small dense matrix. Nothing but
 * active positions is computed, however short their runs; what it costs is the gathering. Included by vqc_conv_masked.h.
 */
#define CV_GROUP 48   /* positions; a multiple of every tile */
#define CV_COPY 16    /* elements of a copy: the longest piece of a run */
#define CV_COPY_COST (10 * VQC_VL) /* of one copy, where a position of one output channel costs 1 (measured with VL 16) */

/* What cv_put is for elements of four bytes: n is at most CV_COPY. */
static inline void cv_put_f32(float *restrict y, const float *restrict room, ptrdiff_t n) {
#if VQC_VL == 16
    const __mmask16 low = (__mmask16)((1u << n) - 1u);
    _mm512_mask_storeu_ps(y, low, _mm512_maskz_loadu_ps(low, room));
#else
    for (ptrdiff_t i = 0; i < n; i++) y[i] = room[i];
#endif
}

/* And for bytes. */
static inline void cv_put_u8(uint8_t *restrict y, const uint8_t *restrict room, ptrdiff_t n) {
#if VQC_VL == 16 && defined(__AVX512BW__) && defined(__AVX512VL__)
    const __mmask16 low = (__mmask16)((1u << n) - 1u);
    _mm_mask_storeu_epi8(y, low, _mm_maskz_loadu_epi8(low, room));
#else
    for (ptrdiff_t i = 0; i < n; i++) y[i] = room[i];
#endif
}

/* Make runs of the active positions instead of pieces if that is less work: `start`, `to` and `length` of each, none over
 * the end of a row or of a group. */
static void cv_choose_runs(const cv_band *b, cv_active *a, ptrdiff_t down, ptrdiff_t reach) {
    ptrdiff_t active = 0, edges = 0, filled = 0;
    for (ptrdiff_t r = 0; r < b->rows; r++) {
        const uint8_t *m = a->mask + r * b->ow;
        int32_t sum = 0, turns = m[0] != 0;
        for (ptrdiff_t c = 0; c < b->ow; c++) sum += m[c] != 0;
        for (ptrdiff_t c = 1; c < b->ow; c++) turns += (m[c] != 0) & (m[c - 1] == 0);
        active += sum;
        edges += turns;
    }
    const ptrdiff_t copies = edges + active / 12;
    const ptrdiff_t gathered = active * b->og + copies * CV_COPY_COST;
    if (b->og < CV_GATHER_CHANNELS || b->taps < 2 || 16 * gathered >= 17 * a->count * CV_PIECE * b->og ||
        16 * gathered >= 15 * b->rows * b->pitch * b->og)
        return;
    memset(a->read, 0, (size_t)(b->rows + down + 1) * sizeof(uint64_t));
    a->runs = 1;
    a->dense = 0;
    a->count = 0;
    for (ptrdiff_t r = 0; r < b->rows; r++) {
        const uint8_t *m = a->mask + r * b->ow;
        for (ptrdiff_t c = 0; (c = cv_next_active(m, c, b->ow)) < b->ow;) {
            const ptrdiff_t most = cv_min(cv_min(CV_COPY, CV_GROUP - filled), b->ow - c);
            ptrdiff_t n = 1;
            while (n < most && m[c + n] != 0) n++;
            a->start[a->count] = (int32_t)(r * b->pitch + c);
            a->to[a->count] = (int32_t)(r * b->ow + c);
            a->length[a->count++] = (int32_t)n;
            cv_mark(a, r, c, c + n + reach);
            filled = (filled + n) % CV_GROUP;
            c += n;
        }
    }
}

/* The inputs of runs [first, end): g is [plane][tap][CV_GROUP]. A copy may write too much; the next one is right there. */
static void cv_gather(const cv_band *b, const cv_active *a, ptrdiff_t first, ptrdiff_t end, CV_E *restrict g) {
    const int32_t *restrict start = a->start + first, *restrict length = a->length + first;
    const ptrdiff_t count = end - first;
    for (ptrdiff_t c = 0; c < b->planes; c++) {
        for (ptrdiff_t k = 0; k < b->taps; k++, g += CV_GROUP) {
            const CV_E *restrict x = b->x + c * b->plane + b->off[k];
            CV_E *restrict dst = g;
            for (ptrdiff_t i = 0; i < count; i++) {
                memcpy(dst, x + start[i], CV_COPY * sizeof(CV_E));
                dst += length[i];
            }
        }
    }
}

/* All output channels of one group over the runs of one band. */
static void cv_run_gathered(const cv_job *j, const cv_band *b, const cv_active *a, CV_E *expanded) {
    const ptrdiff_t taps = b->planes * b->taps;
    cv_room room;
    CV_A t[8 * VQC_VL * CV_SPREAD_WIDE];
    cv_clear(j, b, a, 0, b->og, 1);
    for (ptrdiff_t k = 0; k < b->taps; k++) a->off[k] = (int32_t)(k * CV_GROUP);
    for (ptrdiff_t first = 0, end = 0; first < a->count; first = end) {
        ptrdiff_t n = 0, at = b->w;
        while (end < a->count && n < CV_GROUP) n += a->length[end++];
        cv_gather(b, a, first, end, (CV_E *)a->gathered);
        for (ptrdiff_t o = 0; o < b->og;) {
            const ptrdiff_t left = b->og - o, block = left > 4 ? 8 : left > 1 ? 4 : 1, some = cv_min(left, block);
            const cv_spread big = block == 8 ? cv_spread_wide_8 : block == 4 ? cv_spread_wide_4 : cv_spread_wide_1;
            const cv_spread small = block == 8 ? cv_spread_8 : block == 4 ? cv_spread_4 : cv_spread_1;
            const CV_E *w = cv_weights(j, at, taps * block, expanded);
            const cv_job aside = cv_redirect(j, &room);
            for (ptrdiff_t p = 0, count = 0; p < n; p += count) {
                const int many = n - p > VQC_VL;
                const CV_E *x = (const CV_E *)a->gathered + p;
                int32_t start[CV_SPREAD_WIDE * CV_PIECES];
                count = VQC_VL * (many ? CV_SPREAD_WIDE : 1);
                for (int i = 0; i < CV_SPREAD_WIDE * CV_PIECES; i++) start[i] = i * CV_PIECE;
                if (many && block == 8)
                    cv_wide_8(x, b->planes, b->taps * CV_GROUP, a->off, b->taps, w, t);
                else
                    (many ? big : small)(x, start, b->planes, b->taps * CV_GROUP, a->off, b->taps, w, t);
                for (ptrdiff_t i = 0; i < some; i++)
                    cv_store(&aside, b->group * b->og + o + i, i * CV_GROUP + p, 1, t + i * count, count);
            }
            for (ptrdiff_t i = 0; i < some; i++) {
                const ptrdiff_t y = b->y + (o + i) * b->y_plane;
                ptrdiff_t from = i * CV_GROUP;
                for (ptrdiff_t r = first; r < end; r++) {
                    cv_put(j, y + a->to[r], &room, from, a->length[r]);
                    from += a->length[r];
                }
            }
            at += taps * block;
            o += block;
        }
    }
}
