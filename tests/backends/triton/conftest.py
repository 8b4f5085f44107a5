"""Kernels run in Triton's interpreter here: the switch has to be set before the first of them is imported."""

import importlib.util
import os

os.environ["TRITON_INTERPRET"] = "1"
# Triton is made for Linux alone.
collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]
