/* A driver that keeps device memory in ordinary memory, runs no kernel, and writes down what it is asked for. */
#include <cuda.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static FILE *out(void) { static FILE *f; if (!f) f = fopen(getenv("FAKE_LOG"), "w"); return f; }
static char *base;
CUresult cuGetErrorString(CUresult r, const char **s) { (void)r; *s = "fake"; return CUDA_SUCCESS; }
CUresult cuInit(unsigned f) { (void)f; return getenv("FAKE_NONE") ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *d, int i) { *d = i; return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { (void)d; *c = 0; return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext c) { (void)c; return CUDA_SUCCESS; }
CUresult cuModuleLoadData(CUmodule *m, const void *d) {
    *m = (CUmodule)d;
    fprintf(out(), "load\n");
    return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *n) {
    (void)m;
    *f = (CUfunction)strdup(n);
    return CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) {
    (void)f;
    (void)a;
    (void)v;
    return CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr *p, size_t n) {
    char *m = malloc(n);
    if (!base) base = m;
    *p = (CUdeviceptr)m;
    return CUDA_SUCCESS;
}
CUresult cuMemsetD8(CUdeviceptr p, unsigned char v, size_t n) {
    memset((void *)p, v, n);
    return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoD(CUdeviceptr d, const void *s, size_t n) {
    memcpy((void *)d, s, n);
    fprintf(out(), "in %lld %zu\n", (long long)((char *)d - base), n);
    return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoH(void *d, CUdeviceptr s, size_t n) {
    memcpy(d, (void *)s, n);
    fprintf(out(), "out %lld %zu\n", (long long)((char *)s - base), n);
    return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoD(CUdeviceptr d, CUdeviceptr s, size_t n) {
    memcpy((void *)d, (void *)s, n);
    return CUDA_SUCCESS;
}
CUresult cuLaunchKernel(CUfunction f, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz, unsigned m,
                        CUstream s, void **a, void **e) {
    (void)ty; (void)tz; (void)s; (void)e;
    fprintf(out(), "launch %s %u %u %u %u %u %lld\n", (char *)f, x, y, z, tx, m, (long long)(*(char **)a[0] - base));
    return CUDA_SUCCESS;
}
