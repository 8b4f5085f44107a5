"""Settings shared by all tests; its presence makes `handmade` importable from every test file."""

import torch

torch.set_num_threads(1)
