"""The passes. Importing this package registers all of them with `vqc.pipeline`.

One pass is one file of its name: `fold-bn` is in `fold_bn.py`, tested in `tests/passes/test_fold_bn.py`.
"""

from vqc.passes.adopt_integers import AdoptIntegers
from vqc.passes.affine_calibrate import AffineCalibrate
from vqc.passes.allocate_bits import AllocateBits
from vqc.passes.bias_correct import BiasCorrect
from vqc.passes.binarize import Binarize
from vqc.passes.canonicalize import Canonicalize
from vqc.passes.conv3d_to_conv2d import Conv3dToConv2d
from vqc.passes.distill import Distill
from vqc.passes.equalize import Equalize
from vqc.passes.exact_float import ExactFloat
from vqc.passes.float_where_slower import FloatWhereSlower
from vqc.passes.fold_bn import FoldBN
from vqc.passes.fold_bn_sign import FoldBNSign
from vqc.passes.fold_constants import FoldConstants
from vqc.passes.gptq import Gptq
from vqc.passes.lower_binary import LowerBinary
from vqc.passes.lower_integer import LowerInteger
from vqc.passes.mimic import Mimic
from vqc.passes.observe import Observe
from vqc.passes.quantize import Quantize
from vqc.passes.reconstruct import Reconstruct
from vqc.passes.reestimate_bn import ReestimateBN
from vqc.passes.shb_decoder import ShbDecoder

__all__ = ["AdoptIntegers", "AffineCalibrate", "AllocateBits", "BiasCorrect", "Binarize", "Canonicalize",
           "Conv3dToConv2d", "Distill", "Equalize", "ExactFloat", "FloatWhereSlower", "FoldBN", "FoldBNSign",
           "FoldConstants", "Gptq", "LowerBinary", "LowerInteger", "Mimic", "Observe", "Quantize", "Reconstruct",
           "ReestimateBN", "ShbDecoder"]  # fmt: skip
