"""The doors into vqc: a network in any of PyTorch's forms becomes a Program."""

from vqc.frontend.capture import capture
from vqc.frontend.graph_door import capture_graph
from vqc.frontend.states import StateSpec

__all__ = ["StateSpec", "capture", "capture_graph"]
