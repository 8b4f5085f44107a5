/* A pool of POSIX threads behind the parallel-for hook. Not part of a generated model: it is one way to fill the hook.
 *
 * The caller works too, as worker 0. Threads look for work for a short while before they sleep, because the calls of a
 * model follow each other closely.
 */
#define _POSIX_C_SOURCE 200112L
#include <pthread.h>
#include <stdlib.h>

#include "vqc_pool_threads.h"

#define SPIN 8000 /* looks at the counter before sleeping: about 0.1 ms, for waking up takes half as long */

/* Tell the CPU that this loop waits. */
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
#define RELAX() __builtin_ia32_pause()
#elif defined(__GNUC__) && defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() (void)0
#endif

struct vqc_pool {
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    vqc_task task;
    void *arg;
    int count, next;      /* tasks of the loop; the first one nobody has taken (atomic) */
    int generation, stop; /* counts loops (atomic) */
    int busy, threads;    /* workers that have not finished this loop (atomic); threads beside the caller */
    pthread_t *thread;
};

typedef struct vqc_pool_worker {
    vqc_pool *pool;
    int index;
} vqc_pool_worker;

static void work(vqc_pool *p, int worker) {
    for (;;) {
        const int i = __atomic_fetch_add(&p->next, 1, __ATOMIC_RELAXED);
        if (i >= p->count) return;
        p->task(p->arg, i, worker);
    }
}

static void *worker_main(void *arg) {
    vqc_pool_worker *me = (vqc_pool_worker *)arg;
    vqc_pool *p = me->pool;
    const int index = me->index;
    int seen = 0;
    free(me);
    for (;;) {
        for (int i = 0; i < SPIN && __atomic_load_n(&p->generation, __ATOMIC_ACQUIRE) == seen; i++) RELAX();
        pthread_mutex_lock(&p->lock);
        while (p->generation == seen) pthread_cond_wait(&p->wake, &p->lock);
        seen = p->generation;
        const int stop = p->stop;
        pthread_mutex_unlock(&p->lock);
        if (stop) return NULL;
        work(p, index);
        if (__atomic_sub_fetch(&p->busy, 1, __ATOMIC_ACQ_REL) == 0) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->idle);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void announce(vqc_pool *p) {
    pthread_mutex_lock(&p->lock);
    __atomic_store_n(&p->generation, p->generation + 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void vqc_pool_for(void *pool, vqc_task task, void *arg, int count) {
    vqc_pool *p = (vqc_pool *)pool;
    p->task = task;
    p->arg = arg;
    p->count = count;
    p->next = 0;
    p->busy = p->threads;
    announce(p);
    work(p, 0);
    for (int i = 0; i < SPIN && __atomic_load_n(&p->busy, __ATOMIC_ACQUIRE) != 0; i++) RELAX();
    pthread_mutex_lock(&p->lock);
    while (__atomic_load_n(&p->busy, __ATOMIC_ACQUIRE) != 0) pthread_cond_wait(&p->idle, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

void vqc_pool_stop(vqc_pool *p) {
    if (p == NULL) return;
    p->stop = 1;
    announce(p);
    for (int i = 0; i < p->threads; i++) pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->idle);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p->thread);
    free(p);
}

vqc_pool *vqc_pool_start(int workers) {
    vqc_pool *p = (vqc_pool *)calloc(1, sizeof *p);
    if (p == NULL) return NULL;
    p->thread = (pthread_t *)calloc((size_t)workers, sizeof *p->thread);
    if (p->thread == NULL) {
        free(p);
        return NULL;
    }
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->idle, NULL);
    for (int i = 1; i < workers; i++) {
        vqc_pool_worker *w = (vqc_pool_worker *)malloc(sizeof *w);
        if (w == NULL) {
            vqc_pool_stop(p);
            return NULL;
        }
        w->pool = p;
        w->index = i;
        if (pthread_create(&p->thread[p->threads], NULL, worker_main, w) != 0) {
            free(w);
            vqc_pool_stop(p);
            return NULL;
        }
        p->threads++;
    }
    return p;
}
