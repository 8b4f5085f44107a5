/* What every kernel and every generated model shares: the model structure, error codes, the parallel-for hook. */
#ifndef VQC_COMMON_H
#define VQC_COMMON_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VQC_ABI 2u       /* of the weights file and of vqc_model; checked when a model is initialised */
#define VQC_ALIGN 64u    /* bytes; arena, state and weights must start at a multiple of it */
#define VQC_MAX_DIMS 8   /* axes of a strided copy or a pointwise program after merging */

enum vqc_error {
    VQC_OK = 0,
    VQC_E_NULL,            /* a pointer that must not be NULL is */
    VQC_E_ALIGN,           /* arena, state or weights not aligned to 64 bytes, or a tensor not to its element */
    VQC_E_ARENA,           /* the arena is smaller than NAME_arena_size() */
    VQC_E_WEIGHTS_SIZE,    /* the weights are truncated or too long */
    VQC_E_WEIGHTS_MAGIC,   /* not a weights file */
    VQC_E_WEIGHTS_ABI,     /* a weights file of another version */
    VQC_E_WEIGHTS_OTHER,   /* the weights of another program */
    VQC_E_WEIGHTS_DAMAGED, /* the content does not have the hash the file states */
    VQC_E_ENDIAN,          /* this machine is not little-endian */
    VQC_E_MODEL,           /* the model structure was not initialised by this program */
    VQC_E_STATE,           /* the state was not reset by this program */
    VQC_E_CPU              /* this CPU lacks instructions that the program was compiled for */
};

/* One piece of a parallel loop: `index` in [0, count), `worker` in [0, vqc_model.workers). */
typedef void (*vqc_task)(void *arg, int index, int worker);

/* Runs task(arg, i, worker) once for every i in [0, count) and returns when all are done. Two calls that run at the
 * same time must have different workers, each below vqc_model.workers. */
typedef void (*vqc_parallel_for)(void *pool, vqc_task task, void *arg, int count);

/* Told after every call of a step that it has ended; `call` counts from 0 in the order of NAME_run. -1: a step begins. */
typedef void (*vqc_mark)(void *arg, int call);

/* Owned by the caller, filled by NAME_init. `parallel` and `pool` may be set afterwards (NULL means serial), and so may
 * `mark` and `mark_arg` (NULL: nobody is told). */
typedef struct vqc_model {
    const unsigned char *weights;
    unsigned char *arena;
    vqc_parallel_for parallel;
    void *pool;
    vqc_mark mark;
    void *mark_arg;
    uint64_t program; /* which program initialised it */
    int32_t workers;  /* how many may run at once: the arena holds scratch for so many */
    int32_t variant;  /* which of the program's instruction sets runs; see NAME_select */
} vqc_model;

/* Element types of tensors. */
enum vqc_dtype { VQC_F32 = 0, VQC_U8 = 1, VQC_S8 = 2, VQC_S16 = 3, VQC_S32 = 4, VQC_S64 = 5, VQC_BOOL = 6 };

/* A text for an error code; never NULL. */
const char *vqc_strerror(int code);

/* Check a weights file (64-byte header, then the payload) against the hash the program was generated with. */
int vqc_check_weights(const void *file, size_t given, size_t expected, const unsigned char hash[32]);

/* SHA-256 of `size` bytes. */
void vqc_sha256(const unsigned char *data, size_t size, unsigned char digest[32]);

/* Run the tasks through the model's hook, or one after the other. */
void vqc_for(const vqc_model *m, vqc_task task, void *arg, int count);

#ifdef __cplusplus
}
#endif
#endif
