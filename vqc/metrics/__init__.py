"""Figures of merit. Every one is called as metric(prediction, truth), takes float tensors and gives a float.

Alpha mattes: mad, mse, grad, conn, dtssd (lower is better, scaled as in the literature); foregrounds: fg_mad, fg_mse;
pictures: psnr, ssim; any tensor: sqnr_db; a recurrent output along a clip: drift.
"""

from .connectivity import conn
from .matting import dtssd, eight_bit, fg_mad, fg_mse, grad, mad, mse
from .noise import Drift, drift, sqnr_db
from .picture import luma, psnr, ssim

__all__ = [
    "Drift",
    "conn",
    "drift",
    "dtssd",
    "eight_bit",
    "fg_mad",
    "fg_mse",
    "grad",
    "luma",
    "mad",
    "mse",
    "psnr",
    "sqnr_db",
    "ssim",
]
