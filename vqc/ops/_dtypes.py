"""Short names of the dtypes the operators speak about."""

from __future__ import annotations

import torch

U8, S8, S16, I32, I64, F32 = torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32

CONV_WEIGHTS = (S8, S16)
LINEAR_WEIGHTS = (S8,)
