"""The door for a shell: `vqc run | compare | inspect | demo | recipes | passes | targets`."""

from vqc.cli.app import app, main

__all__ = ["app", "main"]
