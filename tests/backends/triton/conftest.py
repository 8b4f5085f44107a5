"""Triton is made for Linux alone; there its tests run, or fail when it is missing."""

import sys

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]
