/* What generated row programs (vqc_row in vqc_c4.h) are written with. */
#ifndef VQC_ROW_H
#define VQC_ROW_H

#include <stddef.h>

#include "vqc_math.h"

/* An output may be an input's memory, element on element: no iteration needs another one's result. */
#if defined(__clang__)
#define VQC_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define VQC_INDEPENDENT _Pragma("GCC ivdep")
#else
#define VQC_INDEPENDENT
#endif

#endif
