/* A pool of POSIX threads for the parallel-for hook of a model:
 *
 *   vqc_pool *pool = vqc_pool_start(2);    at most NAME_MAX_WORKERS
 *   model.parallel = vqc_pool_for;
 *   model.pool = pool;
 *   ...
 *   vqc_pool_stop(pool);                   when no step runs any more
 *
 * One pool serves one model at a time. */
#ifndef VQC_POOL_THREADS_H
#define VQC_POOL_THREADS_H

#include "vqc_common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct vqc_pool vqc_pool;

/* A pool of `workers` in all, the caller among them; NULL when the threads cannot be made. */
vqc_pool *vqc_pool_start(int workers);

/* End the threads; NULL is allowed. */
void vqc_pool_stop(vqc_pool *pool);

/* What the hook is set to. */
void vqc_pool_for(void *pool, vqc_task task, void *arg, int count);

#ifdef __cplusplus
}
#endif
#endif
