/* Float convolutions with one rounding for every product and every sum; compile with -ffp-contract=off. */
#include "vqc_conv_float.h"

CV_ENTRY(vqc_conv_exact_f32, 0)
CV_ENTRY(vqc_conv_transpose_exact_f32, 1)
