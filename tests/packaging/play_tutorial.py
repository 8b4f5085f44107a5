"""Types the tutorial into the Python that runs this: python play_tutorial.py ROOT FOLDER. Prints what vqc it found."""

import sys
from pathlib import Path

ROOT, FOLDER = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.append(str(ROOT / "tests" / "docs"))

from doc_blocks import Page, blocks  # noqa: E402

import vqc  # noqa: E402
from vqc.metrics import mad  # noqa: E402

INSTALL = "pip install '.[video,compiler]'"  # done: the wheel is what runs

page = Page(FOLDER)
for block in blocks(ROOT, "docs/tutorial.md"):
    if block.text != INSTALL:
        page.run(block)
names = page.names
frame, truth = names["new"].frames[:1], names["new"].alpha[0]
with names["torch"].no_grad():  # what the text says of the figures that it leaves out
    exact = names["model"](frame)[0][0]
small = names["vqc"].Stream(names["small"].executable)(frame)[0][0]
assert mad(small, exact) < 0.5 * mad(exact, truth), (mad(small, exact), mad(exact, truth))
print(vqc.__file__)
