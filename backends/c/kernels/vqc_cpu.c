/* Asking the CPU. Compiled without the flags of any instruction set that it asks about. */
#include "vqc_cpu.h"

#include <stddef.h>

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#include <cpuid.h>

#define HAS(word, mask) (((word) & (mask)) == (mask))

/* Which registers the operating system saves: XCR0, and 0 where it saves none beyond SSE's. */
static unsigned saved_registers(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !HAS(c, 1u << 27)) return 0; /* OSXSAVE */
    __asm__ __volatile__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

static int x86_level(void) {
    unsigned a, b, c, d, b7 = 0, c7 = 0, extended = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const unsigned leaf1 = c, saved = saved_registers();
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        b7 = b;
        c7 = c;
    }
    if (__get_cpuid(0x80000001u, &a, &b, &c, &d)) extended = c;
    /* SSE3, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT; LAHF */
    if (!HAS(leaf1, 1u | 1u << 9 | 1u << 13 | 1u << 19 | 1u << 20 | 1u << 23) || !HAS(extended, 1u)) return 0;
    /* FMA, MOVBE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT; the halves of 256-bit registers */
    if (!HAS(leaf1, 1u << 12 | 1u << 22 | 1u << 28 | 1u << 29) || !HAS(b7, 1u << 3 | 1u << 5 | 1u << 8) ||
        !HAS(extended, 1u << 5) || !HAS(saved, 0x6u))
        return VQC_CPU_X86_64_V2;
    /* AVX-512 F, DQ, CD, BW, VL; masks and 512-bit registers */
    if (!HAS(b7, 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31) || !HAS(saved, 0xe6u)) return VQC_CPU_X86_64_V3;
    /* IFMA; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ */
    if (!HAS(b7, 1u << 21) || !HAS(c7, 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14)) return VQC_CPU_X86_64_V4;
    return VQC_CPU_X86_64_V4_VNNI;
}

static int built_for(void) {
#if defined(__AVX512VNNI__) && defined(__AVX512VPOPCNTDQ__)
    return VQC_CPU_X86_64_V4_VNNI;
#elif defined(__AVX512BW__)
    return VQC_CPU_X86_64_V4;
#elif defined(__AVX2__)
    return VQC_CPU_X86_64_V3;
#elif defined(__SSE4_2__)
    return VQC_CPU_X86_64_V2;
#else
    return 0;
#endif
}

int vqc_cpu_has(int cpu) {
    return cpu >= 0 && cpu <= VQC_CPU_X86_64_V4_VNNI && x86_level() >= (cpu == VQC_CPU_BUILT_FOR ? built_for() : cpu);
}

#else

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return (getauxval(16) >> 20 & 1) != 0; } /* AT_HWCAP, HWCAP_ASIMDDP */
static int has_i8mm(void) { return (getauxval(26) >> 13 & 1) != 0; }    /* AT_HWCAP2, HWCAP2_I8MM */
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/types.h>

#include <sys/sysctl.h>
static int has(const char *feature) {
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname(feature, &found, &size, NULL, 0) == 0 && found != 0;
}
static int has_dotprod(void) { return has("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return has("hw.optional.arm.FEAT_I8MM"); }
#else /* nobody to ask: the caller knows his machine */
static int has_dotprod(void) { return 1; }
static int has_i8mm(void) { return 1; }
#endif

int vqc_cpu_has(int cpu) {
    int dotprod = 0, i8mm = 0; /* needed */
#ifdef __ARM_FEATURE_DOTPROD
    dotprod = 1;
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
    i8mm = 1;
#endif
    return cpu == VQC_CPU_BUILT_FOR && (!dotprod || has_dotprod()) && (!i8mm || has_i8mm());
}

#endif

const char *vqc_cpu_name(int cpu) {
    switch (cpu) {
    case VQC_CPU_X86_64_V2: return "x86-64-v2";
    case VQC_CPU_X86_64_V3: return "x86-64-v3";
    case VQC_CPU_X86_64_V4: return "x86-64-v4";
    case VQC_CPU_X86_64_V4_VNNI: return "x86-64-v4-vnni";
    case VQC_CPU_BUILT_FOR: break;
    default: return "unknown";
    }
#if defined(VQC_GENERIC)
    return "portable";
#elif defined(__ARM_FEATURE_MATMUL_INT8)
    return "i8mm";
#elif defined(__ARM_FEATURE_DOTPROD)
    return "dotprod";
#elif defined(__ARM_NEON)
    return "neon";
#else
    return "as compiled";
#endif
}
