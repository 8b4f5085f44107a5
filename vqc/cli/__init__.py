"""The door for a shell: `vqc run | compare | report | inspect | bench | apply | compile | export | ...`."""

from vqc.cli.app import app, main

__all__ = ["app", "main"]
