"""A minimal program around an exported model: raw frames in, raw frames out, the state carried from one to the next."""

from __future__ import annotations

import torch

from vqc.backends.c.emit import Model
from vqc.backends.c.ir import Value


def frame_slots(model: Model) -> list[tuple[int, int]]:
    """Where a step's frames go, in order: (input, which frame of it); empty if the inputs are not frames alone.

    Frames are float32, [1,3,H,W] or, several in one tensor, [1,T,3,H,W], all of one size.
    """
    inputs = model.lowered.inputs
    fit = [v.dtype == torch.float32 and len(v.shape) in (4, 5) and v.shape[0] == 1 and v.shape[-3] == 3 for v in inputs]
    if not inputs or not all(fit) or len({v.shape[-2:] for v in inputs}) != 1:
        return []
    return [(i, t) for i, v in enumerate(inputs) for t in range(v.shape[1] if len(v.shape) == 5 else 1)]


def pictures(model: Model) -> list[int]:
    """The outputs that are pictures: float32 [1,1,H,W] or [1,3,H,W]."""
    return [i for i, v in enumerate(model.lowered.outputs) if _is_picture(v)]


def _is_picture(v: Value) -> bool:
    return v.dtype == torch.float32 and len(v.shape) == 4 and v.shape[0] == 1 and v.shape[1] in (1, 3)


def has_camera(model: Model) -> bool:
    """Whether the model takes frames and gives pictures."""
    return bool(frame_slots(model) and pictures(model))


def camera_source(model: Model) -> str:
    """NAME_camera.c, for a model that `has_camera`."""
    name, lowered = model.name, model.lowered
    slots, shown = frame_slots(model), pictures(model)
    height, width = lowered.inputs[0].shape[-2:]
    sizes = ", ".join(str(v.count) for v in lowered.inputs)
    outs = ", ".join(f"{{{v.count}, {v.item}, {v.shape[1]}, {v.shape[2]}, {v.shape[3]}}}" if _is_picture(v)
                     else f"{{{v.count}, {v.item}, 0, 0, 0}}" for v in lowered.outputs)  # fmt: skip
    places = ", ".join(f"{{{i}, {t}}}" for i, t in slots)
    return f"""/* {name} on a running video: raw frames from standard input, pictures to standard output.
 *
 *   ffmpeg -i talk.mp4 -f rawvideo -pix_fmt rgb24 -s {width}x{height} - | {name}_camera FOLDER OUTPUT > out.raw
 *
 * FOLDER has {name}.weights.bin (default "."), OUTPUT is one of: {", ".join(map(str, shown))} (default {shown[0]}).
 * A frame is {width} x {height} pixels of three bytes, red, green, blue. A picture is written as bytes, one or three
 * for each pixel. For a camera, put its own call into next_frame.
 */
#include <stdio.h>
#include <stdlib.h>

#include "{name}.h"

#define PIXELS ((size_t){height} * {width})
#define FRAMES {len(slots)} /* that a step looks at */
#define INPUTS {len(lowered.inputs)}
#define OUTPUTS {len(lowered.outputs)}

typedef struct picture {{
    size_t count, item, channels, height, width; /* channels 0: not a picture */
}} picture;

static const size_t input_count[INPUTS] = {{{sizes}}};
static const picture output[OUTPUTS] = {{{outs}}};
static const size_t place[FRAMES][2] = {{{places}}}; /* input, frame in it */

/* The next frame, or 0 when there is none: the place for a camera's own call. */
static int next_frame(unsigned char *rgb) {{ return fread(rgb, 3, PIXELS, stdin) == PIXELS; }}

/* A block that starts at a multiple of 64 bytes; lives as long as the program. */
static void *block(size_t size) {{
    unsigned char *p = (unsigned char *)malloc(size + 64);
    if (p == NULL) {{
        fprintf(stderr, "out of memory\\n");
        exit(2);
    }}
    return p + (64 - (uintptr_t)p % 64) % 64;
}}

static void *load(const char *folder, const char *file, size_t size) {{
    char path[1024];
    void *data = block(size);
    FILE *f;
    if (snprintf(path, sizeof path, "%s/%s", folder, file) >= (int)sizeof path) exit(2);
    f = fopen(path, "rb");
    if (f == NULL || fread(data, 1, size, f) != size) {{
        fprintf(stderr, "cannot read %s\\n", path);
        exit(2);
    }}
    fclose(f);
    return data;
}}

static void check(int error) {{
    if (error == VQC_OK) return;
    fprintf(stderr, "{name}: %s\\n", {name}_strerror(error));
    exit(2);
}}

/* Bytes, pixel by pixel, to floats in [0, 1], plane by plane. */
static void to_planes(const unsigned char *rgb, float *planes) {{
    for (size_t c = 0; c < 3; c++)
        for (size_t i = 0; i < PIXELS; i++) planes[c * PIXELS + i] = (float)rgb[3 * i + c] / 255.0f;
}}

static void from_planes(const float *planes, const picture *p, unsigned char *bytes) {{
    const size_t pixels = p->height * p->width;
    for (size_t c = 0; c < p->channels; c++)
        for (size_t i = 0; i < pixels; i++) {{
            const float v = planes[c * pixels + i] * 255.0f + 0.5f;
            bytes[i * p->channels + c] = (unsigned char)(v > 0.0f ? v < 255.0f ? v : 255.0f : 0.0f);
        }}
}}

int main(int argc, char **argv) {{
    const char *folder = argc > 1 ? argv[1] : ".";
    const int shown = argc > 2 ? atoi(argv[2]) : {shown[0]};
    const size_t arena_size = {name}_arena_size(), weights_size = {name}_weights_size();
    void *state = block({name}_state_size()), *inputs[INPUTS], *outputs[OUTPUTS];
    unsigned char *frames[FRAMES], *bytes;
    {name}_model model;
    size_t held = 0;
    if (shown < 0 || shown >= OUTPUTS || output[shown].channels == 0) {{
        fprintf(stderr, "output %d is not a picture\\n", shown);
        return 2;
    }}
    for (int i = 0; i < INPUTS; i++) inputs[i] = block(input_count[i] * sizeof(float));
    for (int i = 0; i < OUTPUTS; i++) outputs[i] = block(output[i].count * output[i].item);
    for (int i = 0; i < FRAMES; i++) frames[i] = (unsigned char *)block(3 * PIXELS);
    bytes = (unsigned char *)block(output[shown].count);
    check({name}_init(&model, load(folder, "{name}.weights.bin", weights_size), weights_size, block(arena_size),
                    arena_size));
    check({name}_reset(&model, state)); /* again at every cut or new video */
    for (;;) {{
        unsigned char *oldest = frames[0];
        if (held == FRAMES) {{
            for (int i = 1; i < FRAMES; i++) frames[i - 1] = frames[i];
            frames[--held] = oldest;
        }}
        if (!next_frame(frames[held])) break;
        if (++held < FRAMES) continue;
        for (int i = 0; i < FRAMES; i++)
            to_planes(frames[i], (float *)inputs[place[i][0]] + place[i][1] * 3 * PIXELS);
        check({name}_run(&model, state, (const void *const *)inputs, outputs));
        from_planes((const float *)outputs[shown], &output[shown], bytes);
        if (fwrite(bytes, 1, output[shown].count, stdout) != output[shown].count) {{
            fprintf(stderr, "cannot write\\n");
            return 2;
        }}
    }}
    return 0;
}}
"""
