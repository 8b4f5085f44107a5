/* Convolution of u8 in the layout c4: products of four channels at once, summed in 32 bits. */
#include "vqc_c4_tiles.h"

/* Scratch of a worker: offsets of the taps, widened weights of a block, the packed band. */
static void c4_task(void *arg, int index, int worker) {
    const c4_job *j = (const c4_job *)arg;
    const vqc_qconv_c4_params *p = j->p;
    const ptrdiff_t bands = (p->oh + p->rows - 1) / p->rows, band = index % bands, group = index / bands % p->groups;
    const ptrdiff_t batch = index / bands / p->groups, taps = (ptrdiff_t)p->kh * p->kw;
    const ptrdiff_t planes = (p->c / p->groups + 3) / 4, og = p->o / p->groups;
    unsigned char *s = j->scratch + (size_t)worker * p->scratch;
    int32_t *off = (int32_t *)(void *)s, *room = (int32_t *)(void *)(s + c4_align((size_t)taps * 4));
    uint32_t *packed = (uint32_t *)(void *)(s + c4_align((size_t)taps * 4) + c4_align((size_t)(planes * taps * 64)));
    const c4_band b = c4_pack(j, batch, group * planes, planes, band * p->rows, off, packed);
    const ptrdiff_t positions = (b.rows - 1) * b.pitch + b.ow;
    const int8_t *w = j->w + c4_bytes(group * ((og + 3) / 4) * 4 * planes * taps * 4, p->bits);
    const int32_t *offset = j->offset + (C4_SIGNED ? p->o : 0) + group * og;
    int32_t t[8 * C4_RUN];
    for (ptrdiff_t o = 0; o < og;) {
        const ptrdiff_t block = og - o > 4 ? 8 : 4, wide = VQC_VL * (block == 8 ? C4_NV : C4_NV4);
        const ptrdiff_t run = c4_run(positions, wide);
        const int32_t *words = c4_weights(w, planes * taps * block, p->bits, room);
        int32_t start[8] = {0};
        for (ptrdiff_t i = 0; i < c4_min(block, og - o); i++) start[i] = offset[o + i];
        for (ptrdiff_t at = 0; at < positions; at += run) {
            const ptrdiff_t count = c4_min(positions - at, run);
            c4_sums(b.x + at, planes, b.plane, b.off, taps, words, block, start, count, t);
            c4_flush(j, &b, batch, group * og + o, c4_min(block, og - o), at, count, t);
        }
        w += c4_bytes(planes * taps * block * 4, p->bits);
        o += block;
    }
}

void vqc_qconv_c4(const vqc_model *m, const vqc_qconv_c4_params *p, const void *x, const int8_t *w, const int32_t *offset,
                  const uint32_t *zero, const void *const *in, void *const *out, void *scratch) {
    c4_job j = {p, (const uint32_t *)x, w, offset, zero, in, out, (unsigned char *)scratch};
    vqc_for(m, c4_task, &j, p->n * p->groups * ((p->oh + p->rows - 1) / p->rows));
}
