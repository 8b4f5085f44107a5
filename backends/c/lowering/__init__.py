"""The rules of the C backend, one topic a file; importing this package registers them all."""

from vqc.backends.c.lowering import (  # noqa: F401
    activations,
    binary,
    c4,
    complex_parts,
    conv,
    expansions,
    functions,
    matmul,
    movement,
    normalize,
    order,
    pointwise,
    pool,
    quantized,
    reduce,
    resample,
    resize,
    sampling,
    views,
    volume,
)
