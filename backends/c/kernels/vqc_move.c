/* Strided copies, gathers by row and column, and tables of 256. */
#include "vqc_move.h"

#include <string.h>

#define MOVE_CHUNK 65536 /* elements of one task, about */

typedef struct move_job {
    const void *p;
    const unsigned char *src;
    unsigned char *dst;
    const int32_t *rows, *cols;
    const unsigned char *fill;
    ptrdiff_t chunk;
    int across;
} move_job;

#define COPY_ROW(TYPE)                                                                                                \
    {                                                                                                                 \
        const TYPE *s = (const TYPE *)(const void *)src;                                                              \
        TYPE *d = (TYPE *)(void *)dst;                                                                                \
        if (to == 1 && from == 0)                                                                                     \
            for (ptrdiff_t i = 0; i < n; i++) d[i] = s[0];                                                            \
        else if (to == 1 && from == 2)                                                                                \
            for (ptrdiff_t i = 0; i < n; i++) d[i] = s[2 * i];                                                        \
        else if (to == 2 && from == 1)                                                                                \
            for (ptrdiff_t i = 0; i < n; i++) d[2 * i] = s[i];                                                        \
        else if (to == 1 && from == -1)                                                                               \
            for (ptrdiff_t i = 0; i < n; i++) d[i] = s[-i];                                                           \
        else if (to == 1)                                                                                             \
            for (ptrdiff_t i = 0; i < n; i++) d[i] = s[i * from];                                                     \
        else                                                                                                          \
            for (ptrdiff_t i = 0; i < n; i++) d[i * to] = s[i * from];                                                \
    }                                                                                                                 \
    break;

static void copy_row(const unsigned char *src, ptrdiff_t from, unsigned char *dst, ptrdiff_t to, ptrdiff_t n, int size) {
    if (from == 1 && to == 1) {
        memcpy(dst, src, (size_t)(n * size));
        return;
    }
    switch (size) {
    case 1: COPY_ROW(uint8_t)
    case 2: COPY_ROW(uint16_t)
    case 4: COPY_ROW(uint32_t)
    default: COPY_ROW(uint64_t)
    }
}

#define TILE 16

/* A transposed tile: rows of the source side by side become columns; through a buffer, so that both sides are read and
 * written in whole rows. */
#define COPY_TILE(TYPE)                                                                                               \
    {                                                                                                                 \
        const TYPE *s = (const TYPE *)(const void *)src;                                                              \
        TYPE *d = (TYPE *)(void *)dst, tile[TILE][TILE];                                                              \
        if (na == TILE && nb == TILE) {                                                                               \
            for (int a = 0; a < TILE; a++)                                                                            \
                for (int b = 0; b < TILE; b++) tile[b][a] = s[a * from + b];                                          \
            for (int b = 0; b < TILE; b++)                                                                            \
                for (int a = 0; a < TILE; a++) d[b * to + a] = tile[b][a];                                            \
        } else {                                                                                                      \
            for (ptrdiff_t b = 0; b < nb; b++)                                                                        \
                for (ptrdiff_t a = 0; a < na; a++) d[b * to + a] = s[a * from + b];                                   \
        }                                                                                                             \
    }                                                                                                                 \
    break;

/* d[b * to + a] = s[a * from + b]: contiguous along b on one side and along a on the other. */
static void copy_plane(const unsigned char *from_at, ptrdiff_t from, unsigned char *to_at, ptrdiff_t to, ptrdiff_t rows,
                       ptrdiff_t cols, int size) {
    if (rows < 8) { /* a few long rows */
        for (ptrdiff_t a = 0; a < rows; a++)
            copy_row(from_at + a * from * size, 1, to_at + a * size, to, cols, size);
        return;
    }
    for (ptrdiff_t b0 = 0; b0 < cols; b0 += TILE)
        for (ptrdiff_t a0 = 0; a0 < rows; a0 += TILE) {
            const ptrdiff_t na = rows - a0 < TILE ? rows - a0 : TILE, nb = cols - b0 < TILE ? cols - b0 : TILE;
            const unsigned char *src = from_at + (a0 * from + b0) * size;
            unsigned char *dst = to_at + (b0 * to + a0) * size;
            switch (size) {
            case 1: COPY_TILE(uint8_t)
            case 2: COPY_TILE(uint16_t)
            case 4: COPY_TILE(uint32_t)
            default: COPY_TILE(uint64_t)
            }
        }
}

/* Tasks over all axes but the last and `j->across`, which is contiguous in the source as the last is in the target;
 * `j->chunk` positions of `across` at a time. */
static void plane_task(void *arg, int index, int worker) {
    const move_job *j = (const move_job *)arg;
    const vqc_copy_params *p = (const vqc_copy_params *)j->p;
    const int inner = p->dims - 1, across = j->across;
    const ptrdiff_t pieces = (p->shape[across] + j->chunk - 1) / j->chunk, first = index % pieces * j->chunk;
    const ptrdiff_t left = p->shape[across] - first, cols = left < j->chunk ? left : j->chunk;
    ptrdiff_t rest = index / pieces, from = first, to = first * p->dst[across];
    (void)worker;
    for (int d = inner - 1; d >= 0; d--) {
        if (d == across) continue;
        from += rest % p->shape[d] * p->src[d];
        to += rest % p->shape[d] * p->dst[d];
        rest /= p->shape[d];
    }
    copy_plane(j->src + from * p->size, p->src[inner], j->dst + to * p->size, p->dst[across], p->shape[inner], cols,
               p->size);
}

static void copy_task(void *arg, int index, int worker) {
    const move_job *j = (const move_job *)arg;
    const vqc_copy_params *p = (const vqc_copy_params *)j->p;
    const int inner = p->dims - 1;
    ptrdiff_t rows = 1, at[VQC_MAX_DIMS] = {0};
    (void)worker;
    for (int d = 0; d < inner; d++) rows *= p->shape[d];
    ptrdiff_t row = (ptrdiff_t)index * j->chunk, last = row + j->chunk < rows ? row + j->chunk : rows, rest = row;
    for (int d = inner - 1; d >= 0; d--) at[d] = rest % p->shape[d], rest /= p->shape[d];
    for (; row < last; row++) {
        ptrdiff_t from = 0, to = 0;
        for (int d = 0; d < inner; d++) from += at[d] * p->src[d], to += at[d] * p->dst[d];
        copy_row(j->src + from * p->size, p->src[inner], j->dst + to * p->size, p->dst[inner], p->shape[inner], p->size);
        for (int d = inner - 1; d >= 0 && ++at[d] == p->shape[d]; d--) at[d] = 0;
    }
}

void vqc_copy(const vqc_model *m, const vqc_copy_params *p, const void *src, void *dst) {
    move_job j = {p, (const unsigned char *)src, (unsigned char *)dst, NULL, NULL, NULL, 0, -1};
    const int inner = p->dims - 1;
    ptrdiff_t rows = 1;
    for (int d = 0; d < inner; d++) {
        rows *= p->shape[d];
        if (p->src[d] == 1 && p->src[inner] != 1 && p->dst[inner] == 1 && p->shape[d] >= 8) j.across = d;
    }
    if (j.across >= 0) {
        j.chunk = MOVE_CHUNK / p->shape[inner] / TILE * TILE + TILE;
        const ptrdiff_t length = p->shape[j.across];
        vqc_for(m, plane_task, &j, (int)(rows / length * ((length + j.chunk - 1) / j.chunk)));
        return;
    }
    j.chunk = MOVE_CHUNK / p->shape[p->dims - 1] + 1;
    vqc_for(m, copy_task, &j, (int)((rows + j.chunk - 1) / j.chunk));
}

#define GATHER(TYPE)                                                                                                  \
    {                                                                                                                 \
        const TYPE *s = (const TYPE *)(const void *)row;                                                              \
        TYPE *d = (TYPE *)(void *)dst;                                                                                \
        TYPE fill;                                                                                                    \
        memcpy(&fill, j->fill, sizeof fill);                                                                          \
        for (ptrdiff_t i = 0; i < p->ow; i++) d[i] = s == NULL || j->cols[i] < 0 ? fill : s[j->cols[i]];              \
    }                                                                                                                 \
    break;

static void gather_task(void *arg, int index, int worker) {
    const move_job *j = (const move_job *)arg;
    const vqc_gather_params *p = (const vqc_gather_params *)j->p;
    const unsigned char *plane = j->src + index * p->h * p->w * p->size;
    unsigned char *dst = j->dst + index * p->oh * p->ow * p->size;
    (void)worker;
    for (ptrdiff_t y = 0; y < p->oh; y++, dst += p->ow * p->size) {
        const unsigned char *row = j->rows[y] < 0 ? NULL : plane + j->rows[y] * p->w * p->size;
        if (y > 0 && j->rows[y] == j->rows[y - 1]) { /* the row above again */
            memcpy(dst, dst - p->ow * p->size, (size_t)(p->ow * p->size));
            continue;
        }
        switch (p->size) {
        case 1: GATHER(uint8_t)
        case 2: GATHER(uint16_t)
        case 4: GATHER(uint32_t)
        default: GATHER(uint64_t)
        }
    }
}

void vqc_gather(const vqc_model *m, const vqc_gather_params *p, const void *src, const int32_t *rows,
                const int32_t *cols, const void *fill, void *dst) {
    move_job j = {p, (const unsigned char *)src, (unsigned char *)dst, rows, cols, (const unsigned char *)fill, 0, -1};
    vqc_for(m, gather_task, &j, (int)p->outer);
}

static void lut_task(void *arg, int index, int worker) {
    const move_job *j = (const move_job *)arg;
    const vqc_lut_params *p = (const vqc_lut_params *)j->p;
    const ptrdiff_t start = (ptrdiff_t)index * MOVE_CHUNK, rest = p->count - start;
    const ptrdiff_t n = rest < MOVE_CHUNK ? rest : MOVE_CHUNK;
    const uint8_t *restrict src = j->src + start;
    (void)worker;
    if (p->size == 1) {
        uint8_t table[256]; /* on the stack: the compiler then knows that the output does not change it */
        uint8_t *restrict dst = j->dst + start;
        memcpy(table, j->fill, sizeof table);
        for (ptrdiff_t i = 0; i < n; i++) dst[i] = table[src[i]];
    } else {
        float table[256];
        float *restrict dst = (float *)(void *)(j->dst + 4 * start);
        memcpy(table, j->fill, sizeof table);
        for (ptrdiff_t i = 0; i < n; i++) dst[i] = table[src[i]];
    }
}

void vqc_lut_u8(const vqc_model *m, const vqc_lut_params *p, const uint8_t *src, const void *table, void *dst) {
    move_job j = {p, src, (unsigned char *)dst, NULL, NULL, (const unsigned char *)table, 0, -1};
    vqc_for(m, lut_task, &j, (int)((p->count + MOVE_CHUNK - 1) / MOVE_CHUNK));
}
