"""Threads: two streams side by side give the bits they give alone, with pools of their own, and without a data race."""

from __future__ import annotations

import pytest
from c_exports import matting, run_in

from vqc.backends.c import CBackend
from vqc.backends.c.build import find_compiler

TWO_STREAMS = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "matting.h"
#include "vqc_pool_threads.h"

#define STEPS 20
#define INPUT 420
static const size_t size[MATTING_OUTPUTS] = {420 * 4, 140 * 4, 140 * 8};

typedef struct stream {
    const void *weights; /* shared */
    unsigned seed;
    int error, loops;
    vqc_pool *pool;
    unsigned char hash[STEPS][32];
} stream;

static void *block(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes + 64) != 0) abort();
    return p;
}

/* The pool's own loop, counted. */
static void loop(void *arg, vqc_task task, void *task_arg, int count) {
    stream *s = (stream *)arg;
    s->loops++;
    vqc_pool_for(s->pool, task, task_arg, count);
}

static void *play(void *arg) {
    stream *s = (stream *)arg;
    matting_model model;
    void *arena = block(matting_arena_size()), *state = block(matting_state_size()), *outputs[MATTING_OUTPUTS];
    float *frame = (float *)block(INPUT * sizeof(float));
    const void *inputs[1] = {frame};
    unsigned random = s->seed;
    s->pool = vqc_pool_start(MATTING_MAX_WORKERS);
    for (int i = 0; i < MATTING_OUTPUTS; i++) outputs[i] = block(size[i]);
    s->error = matting_init(&model, s->weights, matting_weights_size(), arena, matting_arena_size());
    model.parallel = loop;
    model.pool = s;
    if (s->error == 0) s->error = matting_reset(&model, state);
    for (int t = 0; t < STEPS && s->error == 0; t++) {
        unsigned char all[420 * 4 + 140 * 12];
        size_t at = 0;
        for (int i = 0; i < INPUT; i++) {
            random = random * 1664525u + 1013904223u;
            frame[i] = (float)(random >> 8) / 16777216.0f;
        }
        s->error = matting_run(&model, state, inputs, outputs);
        for (int i = 0; i < MATTING_OUTPUTS; at += size[i++]) memcpy(all + at, outputs[i], size[i]);
        vqc_sha256(all, at, s->hash[t]);
    }
    vqc_pool_stop(s->pool);
    for (int i = 0; i < MATTING_OUTPUTS; i++) free(outputs[i]);
    free(frame);
    free(state);
    free(arena);
    return NULL;
}

int main(void) {
    static stream alone[2], together[2];
    pthread_t thread[2];
    void *weights = block(matting_weights_size());
    FILE *f = fopen("matting.weights.bin", "rb");
    if (f == NULL || fread(weights, 1, matting_weights_size(), f) != matting_weights_size()) return 2;
    fclose(f);
    for (int i = 0; i < 2; i++) {
        alone[i].weights = together[i].weights = weights;
        alone[i].seed = together[i].seed = 7u + (unsigned)i;
        play(&alone[i]);
    }
    for (int i = 0; i < 2; i++) pthread_create(&thread[i], NULL, play, &together[i]);
    for (int i = 0; i < 2; i++) pthread_join(thread[i], NULL);
    free(weights);
    if (alone[0].error || alone[1].error || together[0].error || together[1].error) return 3;
    if (together[0].loops < STEPS || together[1].loops < STEPS) return 6; /* no work was shared */
    if (memcmp(alone[0].hash, alone[1].hash, sizeof alone[0].hash) == 0) return 4; /* two videos differ */
    for (int i = 0; i < 2; i++)
        if (memcmp(alone[i].hash, together[i].hash, sizeof alone[i].hash) != 0) return 5;
    puts("equal");
    return 0;
}
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = CBackend().export(matting(), "native", tmp_path_factory.mktemp("threads") / "out", {"threads": 2})
    (out / "two_streams.c").write_text("#define _POSIX_C_SOURCE 200112L\n" + TWO_STREAMS)
    return out


def build_and_run(out, cc, flags):
    options = [f"CC={cc}", f"CFLAGS={flags} -march=native"]
    run_in(out, "make", "clean")
    return run_in(out, "make", "build/two_streams", *options) and run_in(out, "build/two_streams")


def test_two_streams_in_two_threads_give_the_bits_they_give_alone(exported):
    assert build_and_run(exported, " ".join(find_compiler("zig").command), "-O2") == "equal\n"


def test_there_is_no_data_race(exported):
    assert build_and_run(exported, "gcc", "-O1 -g -fsanitize=thread") == "equal\n"
