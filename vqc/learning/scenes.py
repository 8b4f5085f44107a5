"""Calibration clips of several scenes out of a few: real stretches, their people elsewhere, drawn figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqc.errors import CalibrationError, InputError
from vqc.learning.labels import Labels, Motion
from vqc.program import Program, evaluate, shape_of
from vqc.video.composites import Composite, drawn, lifted, placed
from vqc.video.read import resize


@dataclass(frozen=True)
class Scenes:
    """What to calibrate with: `calibration=scenes.clips`, `labels=scenes.labels`.

    clips   clips, each a list of steps [1,3,H,W] in [0,1]
    labels  how pictures move in the clips that were made, which is known exactly; and, if asked for, their mattes
    about   what each clip is
    """

    clips: list[list[Tensor]]
    labels: Labels
    about: tuple[str, ...]


def matting_scenes(
    program: Program,
    clips: Sequence[Tensor],
    *,
    backgrounds: Sequence[Tensor] = (),
    stretches: int = 4,
    lift: int = 3,
    draw: int = 2,
    frames: int = 8,
    seed: int = 0,
    truth: bool = False,
) -> Scenes:
    """A set of scenes for a matting network, made of clips of people that one has.

    `program`: the captured float network, one frame [1,3,H,W] a step, with a result [1,3,H,W] (colours) and one
    [1,1,H,W] (the matte). `clips`: [T,3,h,w] in [0,1], of any size and at least `frames` frames each. Made are, all of
    `frames` frames of the program's size, in this order:

    - `draw` drawn figures over `backgrounds` [3,h,w] in turn, over drawn ones if there are none;
    - `lift` people, lifted out of the clips by the program itself (`vqc.video.composites.lifted`), who move over
      another background in the same way;
    - `stretches` stretches of the clips, spread over their length.

    Passes that learn hold out a quarter (`vqc.calibration.split`): of nine one lifted person and the last stretch. A
    drawn figure is no judge: what it loses or gains at few bits is large, and says little of people.
    `truth`: the mattes of composites are labels, which learning then aims at instead of at the float network.
    The same arguments give the same bits. Raises CalibrationError when the program is no such network or a clip is too
    short, InputError when nobody is found where one is lifted.
    """
    size, colours, matte = _form(program)
    if not clips or any(c.ndim != 4 or c.shape[0] < frames for c in clips) or frames < 2:
        raise CalibrationError(
            f"clips of {[tuple(c.shape) for c in clips]} cannot give stretches of {frames} frames",
            way_out="give clips [T,3,H,W] of at least that many, and ask for two or more",
        )
    behind = [_enlarged(b, size) for b in backgrounds]
    found: list[list[Tensor]] = []
    motion: list[list[Motion | None]] = []
    mattes: list[list[Tensor | None]] = []
    about: list[str] = []

    def add(made: Composite, text: str) -> None:
        found.append(list(made.frames.split(1)))
        motion.append(list(zip(made.flow_forward.split(1), made.matte_valid.split(1), strict=True)))
        mattes.append(list(made.alpha.split(1)))
        about.append(text)

    for i in range(draw):
        back = behind[i % len(behind)] if behind else None
        add(drawn(frames, size, seed + 1000 + 10 * i, back), "drawn")
    for i in range(lift):
        c, piece = _piece(clips, i, lift, frames, size)
        person = lifted(_player(program, colours, matte), piece)
        back = behind[(draw + i) % len(behind)] if behind else None
        add(placed(person, frames, size, seed + 10 * i, back), f"a person of clip {c}, elsewhere")
    for i in range(stretches):
        c, piece = _piece(clips, i, stretches, frames, size)
        found.append(list(piece.split(1)))
        motion.append([None] * (frames - 1))
        mattes.append([None] * frames)
        about.append(f"a stretch of clip {c}")
    labels = Labels(mattes if truth else (), motion, program.outputs[matte] if truth else "")
    return Scenes(found, labels, tuple(about))


def _form(program: Program) -> tuple[tuple[int, int], int, int]:
    """((H, W), the index of the result that holds colours, of that which is the matte)."""
    shape = program.inputs[0].shape if len(program.inputs) == 1 else ()
    if len(shape) == 4 and tuple(shape[:2]) == (1, 3):
        size = (int(shape[2]), int(shape[3]))
        shapes = [tuple(shape_of(n)) for n in program.result_nodes[: len(program.outputs)]]
        if (1, 3, *size) in shapes and (1, 1, *size) in shapes:
            return size, shapes.index((1, 3, *size)), shapes.index((1, 1, *size))
    raise CalibrationError(
        f"program {program.name} is no matting network of one frame a step",
        why="asked for are one input [1,3,H,W] and results [1,3,H,W] and [1,1,H,W]",
        way_out="make clips with vqc.video.composites, and labels of them with vqc.learning.labels.of_composites",
    )


def _piece(clips: Sequence[Tensor], i: int, count: int, frames: int, size: tuple[int, int]) -> tuple[int, Tensor]:
    """(clip, stretch) number `i` of `count`: the clips in turn, each from its start to its end."""
    c = i % len(clips)
    of_clip = (count - c + len(clips) - 1) // len(clips)
    first = (clips[c].shape[0] - frames) * (i // len(clips)) // max(1, of_clip - 1)
    return c, resize(clips[c][first : first + frames], size)


def _enlarged(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A background [3,h,w] a fifth larger than a frame, so that it may pan."""
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise InputError(f"a background of shape {tuple(picture.shape)}", way_out="give pictures [3,h,w] in [0,1]")
    return resize(picture, (size[0] + size[0] // 5, size[1] + size[1] // 5))


def _player(program: Program, colours: int, matte: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The program as `lifted` calls it, its state at its reset."""
    state = list(program.initial_state())

    def run(frame: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            out = evaluate(program, [frame], state)
        state[:] = [out[s.output] for s in program.states]
        return out[colours], out[matte]

    return run
