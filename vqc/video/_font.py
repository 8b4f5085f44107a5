"""Just enough letters to name the rows of a strip: 3x5 pixels each, drawn twice as large."""

from __future__ import annotations

import torch
from torch import Tensor

# Five rows of three pixels a glyph, one octal digit a row, the left pixel the high bit.
_GLYPHS = {
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644", "G": "34553", "H": "55755",
    "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555", "O": "25552", "P": "65644",
    "Q": "25573", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552", "W": "55775", "X": "55255",
    "Y": "55222", "Z": "71247", "0": "75557", "1": "26227", "2": "61247", "3": "61216", "4": "55711", "5": "74616",
    "6": "34757", "7": "71244", "8": "75757", "9": "75716", ".": "00002", ",": "00024", ":": "02020", "-": "00700",
    "_": "00007", "+": "02720", "=": "07070", "/": "11244", "%": "51245", "(": "12221", ")": "42224", "*": "05250",
    "#": "57575", " ": "00000",
}  # fmt: skip
_UNKNOWN = "77777"
_SCALE = 2
GLYPH_HEIGHT = 5 * _SCALE
_ADVANCE = 4 * _SCALE


def draw(image: Tensor, text: str) -> None:
    """Draw `text` in black at the top left of `image` [C,H,W], in place; what does not fit is cut off."""
    for index, letter in enumerate(text.upper()):
        rows = [int(digit) for digit in _GLYPHS.get(letter, _UNKNOWN)]
        bits = torch.tensor([[row >> 2 & 1, row >> 1 & 1, row & 1] for row in rows], dtype=image.dtype)
        glyph = bits.repeat_interleave(_SCALE, 0).repeat_interleave(_SCALE, 1)
        place = image[:, :GLYPH_HEIGHT, index * _ADVANCE : index * _ADVANCE + glyph.shape[1]]
        place -= place * glyph[: place.shape[1], : place.shape[2]].to(place.device)
