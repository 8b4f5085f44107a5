"""Seeing what a compiled network does: clips played by several engines, compared, as tables and strips of frames."""

from vqc.report.network import Network, network
from vqc.report.session import Engine, Playback, compiled_engine, eager_engine, play, rows
from vqc.report.tables import markdown, write_text

__all__ = [
    "Engine",
    "Network",
    "Playback",
    "compiled_engine",
    "eager_engine",
    "markdown",
    "network",
    "play",
    "rows",
    "write_text",
]
