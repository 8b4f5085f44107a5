/* Kernels to count the instructions of, and to compare with their generic twins (neon_count.py).
 *
 * neon_count REPETITIONS WHAT C O H W K: a convolution of C channels of H x W into O, kernel K x K, stride 1, padding K / 2.
 * neon_count compare SEED CASES: binary convolutions of random shapes by both kernels; says how many cases differ. */
#include <stdio.h>
#include <stdlib.h>

#include "vqc_bconv.c"
#ifdef WITH_CONV
#include "vqc_conv.h"
#endif

/* the same file once more, compiled as plain C */
void plain_bconv2d(const vqc_model *m, const vqc_bconv_params *p, const uint32_t *x, const uint32_t *w,
                   const int32_t *base, const uint8_t *classes, const float *scale, const float *bias,
                   const float *residual, const float *slope, const float *tau, float *y, uint32_t *bits, void *scratch);
void plain_bconv2d_threshold(const vqc_model *m, const vqc_bconv_params *p, const uint32_t *x, const uint32_t *w,
                             const int32_t *base, const uint8_t *classes, const int32_t *threshold, const uint8_t *flip,
                             uint32_t *bits, void *scratch);

static uint64_t state = 88172645463325252u;

static uint32_t draw(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 20);
}

static int32_t between(int32_t low, int32_t high) { return low + (int32_t)(draw() % (uint32_t)(high - low + 1)); }

static void *words(ptrdiff_t count) {
    uint32_t *made = aligned_alloc(64, (size_t)bc_up(count * 4 + 64, 64));
    for (ptrdiff_t i = 0; i < count; i++) made[i] = draw();
    return made;
}

static float *floats(ptrdiff_t count) {
    float *made = words(count);
    for (ptrdiff_t i = 0; i < count; i++) made[i] = (float)between(-1000, 1000) * 0.001f;
    return made;
}

/* For every output along an axis, which class of taps outside it has; returns how many there are. */
static int classes_of(int32_t size, int32_t out, int32_t kernel, int32_t stride, int32_t padding, int32_t dilation,
                      uint8_t *class) {
    uint32_t known[256];
    int count = 0;
    for (int32_t i = 0; i < out; i++) {
        uint32_t inside = 0;
        int c = 0;
        for (int32_t k = 0; k < kernel; k++) {
            const int32_t at = i * stride - padding + k * dilation;
            inside |= (uint32_t)(at >= 0 && at < size) << k;
        }
        while (c < count && known[c] != inside) c++;
        if (c == count) known[count++] = inside;
        class[i] = (uint8_t)c;
    }
    return count;
}

typedef struct layer {
    vqc_bconv_params p;
    uint32_t *x, *w, *bits;
    int32_t *base, *threshold;
    uint8_t *classes, *flip;
    float *scale, *bias, *residual, *slope, *tau, *y;
    ptrdiff_t outputs, words;
} layer;

/* Tensors of a layer whose p has its sizes. */
static void fill(layer *l) {
    vqc_bconv_params *p = &l->p;
    const ptrdiff_t all = bc_up(p->o, 8), steps = (ptrdiff_t)((p->c + 31) / 32) * p->kh * p->kw;
    const int32_t reach = p->c * p->kh * p->kw;
    p->oh = (p->h + 2 * p->ph - p->dh * (p->kh - 1) - 1) / p->sh + 1;
    p->ow = (p->w + 2 * p->pw - p->dw * (p->kw - 1) - 1) / p->sw + 1;
    l->classes = malloc((size_t)(p->oh + p->ow));
    p->row_classes = classes_of(p->h, p->oh, p->kh, p->sh, p->ph, p->dh, l->classes);
    p->column_classes = classes_of(p->w, p->ow, p->kw, p->sw, p->pw, p->dw, l->classes + p->oh);
    const ptrdiff_t kinds = (ptrdiff_t)p->row_classes * p->column_classes;
    l->outputs = (ptrdiff_t)p->n * p->o * p->oh * p->ow;
    l->words = (ptrdiff_t)p->n * ((p->o + 31) / 32) * p->oh * p->ow;
    l->x = words((ptrdiff_t)p->n * ((p->c + 31) / 32) * p->h * p->w);
    l->w = words(all * steps);
    l->bits = words(l->words);
    l->base = words(all * kinds + 16);
    for (ptrdiff_t i = 0; i < all * kinds; i++) l->base[i] = between(reach / 2, reach + 40);
    l->threshold = words(p->o);
    l->flip = malloc((size_t)p->o);
    for (ptrdiff_t i = 0; i < p->o; i++) {
        l->threshold[i] = draw() % 8 ? between(-reach / 4, reach / 4) : (int32_t)draw();
        l->flip[i] = (uint8_t)(draw() & 1);
    }
    l->scale = floats(p->o);
    l->bias = floats(p->o);
    l->slope = floats(p->o);
    l->tau = floats(p->o);
    l->residual = floats(l->outputs);
    l->y = floats(l->outputs);
    p->residuals = p->o, p->residual_scale = 1.0f;
    p->scratch = 1u << 24;
}

static void empty(layer *l) {
    void *all[] = {l->classes, l->x,     l->w,    l->bits,  l->base, l->threshold, l->flip,
                   l->scale,   l->bias,  l->slope, l->tau, l->residual, l->y};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static int differ(const void *a, const void *b, ptrdiff_t count) { return memcmp(a, b, (size_t)count * 4) != 0; }

/* A random layer by both kernels; 1 when the results differ. */
static int compare(const vqc_model *m, void *scratch) {
    static const int32_t kernels[] = {1, 3, 3, 3, 2, 5, 7}, columns[] = {0, 1, 5, 15, 16, 17, 32, 40, 63, 64, 70, 130};
    static const int32_t channels[] = {1, 3, 32, 33, 64, 96, 128, 320};
    layer l = {{0}};
    vqc_bconv_params *p = &l.p;
    p->n = between(1, 2), p->c = channels[draw() % 8], p->o = draw() % 4 ? between(1, 41) : between(60, 130);
    p->kh = kernels[draw() % 7], p->kw = kernels[draw() % 7];
    p->sh = between(1, 2), p->sw = between(1, 3), p->dh = between(1, 2), p->dw = between(1, 2);
    p->ph = between(0, 3), p->pw = between(0, 3);
    p->h = between(0, 5), p->w = columns[draw() % 12];
    if (draw() % 4 == 0) { /* many outputs, over several groups */
        p->o = between(33, 80), p->h = between(4, 8), p->w = between(110, 140), p->sh = p->sw = 1;
        p->kh = p->kh > 3 ? 3 : p->kh, p->kw = p->kw > 3 ? 3 : p->kw;
    }
    const int32_t least_h = p->dh * (p->kh - 1) + 1 - 2 * p->ph, least_w = p->dw * (p->kw - 1) + 1 - 2 * p->pw;
    p->h += least_h > 1 ? least_h : 1, p->w += least_w > 1 ? least_w : 1;
    p->act = between(0, 2), p->rows = between(1, 6);
    p->taus = draw() % 2;
    fill(&l);
    if (p->taus) p->taus = p->o;
    else p->taus = 1;
    if (draw() % 8 == 0) p->scratch = 1u << 16; /* often too little for a task of its own */
    uint32_t *bits = words(l.words);
    float *y = floats(l.outputs);
    int bad = 0;
    vqc_bconv2d_threshold(m, p, l.x, l.w, l.base, l.classes, l.threshold, l.flip, l.bits, scratch);
    p->scratch = 1u << 24;
    plain_bconv2d_threshold(m, p, l.x, l.w, l.base, l.classes, l.threshold, l.flip, bits, scratch);
    bad |= differ(l.bits, bits, l.words);
    const int in_place = draw() % 2, bias = draw() % 2, add = draw() % 4 > 0, keep = draw() % 4 > 0, sign = draw() % 4 > 0;
    if (in_place) memcpy(l.y, l.residual, (size_t)l.outputs * 4);
    else if (p->o % 2 == 0 && draw() % 2) p->residuals = p->o / 2;
    if (draw() % 2) p->residual_scale = 0.3f;
    vqc_bconv2d(m, p, l.x, l.w, l.base, l.classes, l.scale, bias ? l.bias : NULL,
                add ? in_place && keep ? l.y : l.residual : NULL, l.slope, l.tau, keep ? l.y : NULL,
                sign ? l.bits : NULL, scratch);
    plain_bconv2d(m, p, l.x, l.w, l.base, l.classes, l.scale, bias ? l.bias : NULL, add ? l.residual : NULL, l.slope,
                  l.tau, keep ? y : NULL, sign ? bits : NULL, scratch);
    bad |= (keep && differ(l.y, y, l.outputs)) | (sign && differ(l.bits, bits, l.words));
    if (bad)
        printf("n %d c %d o %d in %dx%d out %dx%d k %dx%d s %dx%d p %dx%d d %dx%d act %d rows %d\n", p->n, p->c, p->o, p->h,
               p->w, p->oh, p->ow, p->kh, p->kw, p->sh, p->sw, p->ph, p->pw, p->dh, p->dw, p->act, p->rows);
    empty(&l);
    free(bits);
    free(y);
    return bad;
}

#ifdef WITH_CONV
/* A float convolution of the same size. */
static void conv_f32(const vqc_model *m, const layer *l, void *scratch) {
    const vqc_bconv_params *b = &l->p;
    vqc_conv_params p = {0};
    p.n = 1, p.c = b->c, p.d = 1, p.h = b->h, p.w = b->w, p.o = b->o, p.od = 1, p.oh = b->oh, p.ow = b->ow, p.groups = 1;
    p.kd = 1, p.kh = b->kh, p.kw = b->kw, p.sd = 1, p.sh = 1, p.sw = 1, p.ph = b->ph, p.pw = b->pw, p.dd = 1, p.dh = 1;
    p.dw = 1, p.rows = 4, p.act = VQC_ACT_NONE, p.scratch = b->scratch;
    vqc_conv_f32(m, &p, l->residual, l->residual, l->bias, NULL, l->y, scratch);
}
#endif

int main(int argc, char **argv) {
    vqc_model m = {0};
    void *scratch = aligned_alloc(64, 1u << 24);
    m.workers = 1;
    if (argc == 4 && strcmp(argv[1], "compare") == 0) {
        int bad = 0;
        state += (uint64_t)atoi(argv[2]) * 7919;
        for (int i = 0; i < atoi(argv[3]); i++) bad += compare(&m, scratch);
        printf("%d differ\n", bad);
        return bad != 0;
    }
    if (argc != 8) return 2;
    const char *what = argv[2];
    layer l = {{0}};
    vqc_bconv_params *p = &l.p;
    p->n = 1, p->c = atoi(argv[3]), p->o = atoi(argv[4]), p->h = atoi(argv[5]), p->w = atoi(argv[6]);
    p->kh = p->kw = atoi(argv[7]), p->ph = p->pw = p->kh / 2, p->sh = p->sw = p->dh = p->dw = 1;
    p->rows = p->h, p->taus = 1, p->act = VQC_BACT_PRELU;
    fill(&l);
#ifdef WITH_CONV
    free(l.residual); /* input and weights */
    l.residual = floats((ptrdiff_t)p->c * p->h * p->w + bc_up(p->o, 8) * p->c * p->kh * p->kw);
#endif
    for (int i = 0; i < atoi(argv[1]); i++) {
        if (strcmp(what, "decide") == 0) {
            vqc_bconv2d_threshold(&m, p, l.x, l.w, l.base, l.classes, l.threshold, l.flip, l.bits, scratch);
        } else if (strcmp(what, "float") == 0) {
            vqc_bconv2d(&m, p, l.x, l.w, l.base, l.classes, l.scale, l.bias, l.residual, l.slope, l.tau, l.y, l.bits,
                        scratch);
#ifdef WITH_CONV
        } else if (strcmp(what, "conv_f32") == 0) {
            conv_f32(&m, &l, scratch);
#endif
        } else {
            return 2;
        }
    }
    empty(&l);
    free(scratch);
    return 0;
}
