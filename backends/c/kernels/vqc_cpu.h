/* What the CPU of this machine can do. */
#ifndef VQC_CPU_H
#define VQC_CPU_H

#ifdef __cplusplus
extern "C" {
#endif

/* Instruction sets, by the names of x86-64's levels. */
enum vqc_cpu {
    VQC_CPU_BUILT_FOR = 0,      /* whatever vqc_cpu.c was compiled for, and the kernels with it */
    VQC_CPU_X86_64_V2,          /* SSE4.2, POPCNT */
    VQC_CPU_X86_64_V3,          /* AVX2, FMA, F16C, BMI */
    VQC_CPU_X86_64_V4,          /* AVX-512 F, BW, CD, DQ, VL */
    VQC_CPU_X86_64_V4_VNNI      /* and VNNI, VPOPCNTDQ, VBMI, VBMI2, BITALG, IFMA */
};

/* Whether this CPU has an instruction set and the operating system keeps its registers; 0 or 1. */
int vqc_cpu_has(int cpu);

/* Its name, as targets are called; never NULL. */
const char *vqc_cpu_name(int cpu);

#ifdef __cplusplus
}
#endif
#endif
