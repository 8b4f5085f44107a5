/* Runs an exported step on an NVIDIA GPU through the driver alone: no CUDA runtime, no Python.
 *
 *   cc -std=c99 -O2 launcher.c -lcuda -o step
 *   ./step FOLDER STEPS < inputs > outputs
 *
 * Reads step.txt (the manifest as lines), weights.bin and the kernels' files. All tensors lie in one block of device
 * memory; inputs are read, and outputs written, as raw bytes in the order and layout that manifest.json gives: every step
 * reads all inputs and writes all outputs. States begin at their reset values and stay on the device.
 * Exit status: 0, or 1 with one line on stderr that says what failed. */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 256, PATH = 4096, ARGS = 96, FEW = 64, MANY = 4096 };

typedef struct { unsigned long long at, next, bytes; } Tensor;
typedef union { CUdeviceptr memory; int whole; float real; } Value;
typedef struct {
    CUfunction function;
    unsigned grid[3], threads, shared;
    int count;
    Value values[ARGS];
    void *args[ARGS];
} Call;
typedef struct { char file[NAME]; CUmodule module; } Module;
typedef struct {
    CUdeviceptr memory, scratch;
    unsigned long long bytes, weights;
    int inputs, outputs, states, calls, modules;
    Tensor input[FEW], output[FEW], state[FEW];
    Call *call;
    Module *module;
} Step;

static int fail(const char *what, const char *which) {
    fprintf(stderr, "launcher: %s%s%s\n", what, *which ? ": " : "", which);
    return 1;
}

static int cuda(CUresult r, const char *what) {
    const char *text = NULL;
    if (r == CUDA_SUCCESS) return 0;
    if (cuGetErrorString(r, &text) != CUDA_SUCCESS || text == NULL) text = "unknown error";
    return fail(what, text);
}

/* The whole of FOLDER/NAME with a zero byte behind it; NULL after a message. */
static char *content(const char *folder, const char *name, unsigned long long *size) {
    char path[PATH];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path) return fail("path too long", name), NULL;
    FILE *f = fopen(path, "rb");
    if (f == NULL) return fail("cannot open", path), NULL;
    char *data = NULL;
    long end = fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
    if (end >= 0 && fseek(f, 0, SEEK_SET) == 0) data = malloc((size_t)end + 1);
    if (data != NULL && fread(data, 1, (size_t)end, f) != (size_t)end) free(data), data = NULL;
    fclose(f);
    if (data == NULL) return fail("cannot read", path), NULL;
    data[end] = 0;
    *size = (unsigned long long)end;
    return data;
}

static int module_of(Step *s, const char *folder, const char *file, CUmodule *found) {
    for (int i = 0; i < s->modules; i++)
        if (strcmp(s->module[i].file, file) == 0) return *found = s->module[i].module, 0;
    unsigned long long size;
    char *code = content(folder, file, &size);
    if (code == NULL) return 1;
    int bad = cuda(cuModuleLoadData(found, code), file);
    free(code);
    if (bad) return 1;
    Module *m = &s->module[s->modules++];
    memcpy(m->file, file, NAME);
    m->module = *found;
    return 0;
}

static int read_call(Step *s, FILE *f, const char *folder) {
    char file[NAME] = "", entry[NAME], kind[NAME];
    if (s->calls == MANY) return fail("too many launches", "");
    Call *c = &s->call[s->calls++];
    CUmodule module;
    if (fscanf(f, "%255s %255s %u %u %u %u %u %d", file, entry, &c->grid[0], &c->grid[1], &c->grid[2], &c->threads,
               &c->shared, &c->count) != 8 || c->count < 0 || c->count > ARGS)
        return fail("step.txt is damaged", "a launch");
    if (module_of(s, folder, file, &module)) return 1;
    if (cuda(cuModuleGetFunction(&c->function, module, entry), entry)) return 1;
    if (c->shared > 48 * 1024 && cuda(cuFuncSetAttribute(c->function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                         (int)c->shared), "shared memory"))
        return 1;
    for (int i = 0; i < c->count; i++) {
        unsigned long long at;
        int good = fscanf(f, "%255s", kind) == 1;
        if (good && strcmp(kind, "memory") == 0) {
            good = fscanf(f, "%llu", &at) == 1 && at <= s->bytes;
            c->values[i].memory = s->memory + (good ? at : 0);
        } else if (good && strcmp(kind, "int") == 0) {
            good = fscanf(f, "%d", &c->values[i].whole) == 1;
        } else if (good && strcmp(kind, "float") == 0) {
            good = fscanf(f, "%f", &c->values[i].real) == 1;
        } else if (good && strcmp(kind, "null") == 0) {
            c->values[i].memory = 0;
        } else {
            good = 0;
        }
        if (!good) return fail("step.txt is damaged", "an argument");
        c->args[i] = &c->values[i];
    }
    return 0;
}

static int read_tensor(Tensor *list, int *count, FILE *f, int state, unsigned long long end) {
    if (*count == FEW) return fail("too many tensors", "");
    Tensor *t = &list[(*count)++];
    t->next = 0;
    int good = fscanf(f, "%llu", &t->at) == 1 && (!state || fscanf(f, "%llu", &t->next) == 1) &&
               fscanf(f, "%llu", &t->bytes) == 1;
    good = good && t->at + t->bytes <= end && t->next + t->bytes <= end;
    return good ? 0 : fail("step.txt is damaged", "a tensor");
}

static int read_step(Step *s, FILE *f, const char *folder) {
    char word[NAME];
    int version;
    if (fscanf(f, "vqc %d memory %llu weights %llu", &version, &s->bytes, &s->weights) != 3 || version != 1)
        return fail("step.txt is of another version", "");
    unsigned long long size;
    char *weights = content(folder, "weights.bin", &size);
    if (weights == NULL) return 1;
    int bad = size != s->weights || size > s->bytes ? fail("weights.bin has another size", "") : 0;
    bad = bad || cuda(cuMemAlloc(&s->memory, s->bytes ? s->bytes : 1), "memory of the step");
    bad = bad || cuda(cuMemsetD8(s->memory, 0, s->bytes), "memory of the step");
    bad = bad || (size && cuda(cuMemcpyHtoD(s->memory, weights, size), "weights"));
    free(weights);
    if (bad) return 1;
    while (fscanf(f, "%255s", word) == 1) {
        if (strcmp(word, "end") == 0) return 0;
        if (strcmp(word, "input") == 0) bad = read_tensor(s->input, &s->inputs, f, 0, s->bytes);
        else if (strcmp(word, "output") == 0) bad = read_tensor(s->output, &s->outputs, f, 0, s->bytes);
        else if (strcmp(word, "state") == 0) bad = read_tensor(s->state, &s->states, f, 1, s->bytes);
        else if (strcmp(word, "launch") == 0) bad = read_call(s, f, folder);
        else bad = fail("step.txt is damaged", word);
        if (bad) return 1;
    }
    return fail("step.txt is cut short", "");
}

/* The next values become the states: all are put aside first, since one may be another's old value. */
static int carry(Step *s) {
    unsigned long long at = 0;
    for (int i = 0; i < s->states; at += s->state[i++].bytes)
        if (cuda(cuMemcpyDtoD(s->scratch + at, s->memory + s->state[i].next, s->state[i].bytes), "states")) return 1;
    at = 0;
    for (int i = 0; i < s->states; at += s->state[i++].bytes)
        if (cuda(cuMemcpyDtoD(s->memory + s->state[i].at, s->scratch + at, s->state[i].bytes), "states")) return 1;
    return 0;
}

/* One step; -1 when the input has ended. `host` holds the largest tensor. */
static int run(Step *s, char *host) {
    for (int i = 0; i < s->inputs; i++) {
        size_t bytes = (size_t)s->input[i].bytes, got = fread(host, 1, bytes, stdin);
        if (got == 0 && i == 0 && feof(stdin)) return -1;
        if (got != bytes) return fail("the input ends within a step", "");
        if (cuda(cuMemcpyHtoD(s->memory + s->input[i].at, host, bytes), "input")) return 1;
    }
    for (int i = 0; i < s->calls; i++) {
        Call *c = &s->call[i];
        if (cuda(cuLaunchKernel(c->function, c->grid[0], c->grid[1], c->grid[2], c->threads, 1, 1, c->shared, NULL, c->args,
                                NULL), "launch"))
            return 1;
    }
    for (int i = 0; i < s->outputs; i++) {
        size_t bytes = (size_t)s->output[i].bytes;
        if (cuda(cuMemcpyDtoH(host, s->memory + s->output[i].at, bytes), "output")) return 1;
        if (fwrite(host, 1, bytes, stdout) != bytes) return fail("cannot write the output", "");
    }
    return carry(s);
}

int main(int argc, char **argv) {
    if (argc != 3) return fail("usage: step FOLDER STEPS < inputs > outputs", "");
    static Step s;
    static Call calls[MANY];
    static Module modules[MANY];
    s.call = calls, s.module = modules;
    CUdevice device;
    CUcontext context;
    if (cuda(cuInit(0), "no GPU") || cuda(cuDeviceGet(&device, 0), "no GPU") ||
        cuda(cuDevicePrimaryCtxRetain(&context, device), "no context") || cuda(cuCtxSetCurrent(context), "no context"))
        return 1;
    char path[PATH];
    if ((size_t)snprintf(path, sizeof path, "%s/step.txt", argv[1]) >= sizeof path) return fail("path too long", argv[1]);
    FILE *f = fopen(path, "r");
    if (f == NULL) return fail("cannot open", path);
    int bad = read_step(&s, f, argv[1]);
    fclose(f);
    unsigned long long most = 1, all = 1;
    for (int i = 0; i < s.inputs; i++) most = s.input[i].bytes > most ? s.input[i].bytes : most;
    for (int i = 0; i < s.outputs; i++) most = s.output[i].bytes > most ? s.output[i].bytes : most;
    for (int i = 0; i < s.states; i++) all += s.state[i].bytes;
    char *host = malloc((size_t)most);
    if (host == NULL) return fail("out of memory", "");
    bad = bad || cuda(cuMemAlloc(&s.scratch, all), "memory of the states");
    for (long i = 0, steps = atol(argv[2]); i < steps && bad == 0; i++) bad = run(&s, host);
    free(host);
    return bad > 0;
}
