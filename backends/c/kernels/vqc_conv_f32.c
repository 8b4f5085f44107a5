/* Float convolutions whose products and sums may be contracted. */
#include "vqc_conv_float.h"

CV_ENTRY(vqc_conv_f32, 0)
CV_ENTRY(vqc_conv_transpose_f32, 1)
