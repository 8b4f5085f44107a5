"""The first pass, frame and layer at which a program falls under a bound: as `git bisect`, over the passes of a recipe.

O(log passes) programs are run, each only up to the first frame that falls. Then one frame of one program is taken
apart: which layer is the first under the bound, and is its error its own, that of layers before it in this frame, or
that of earlier frames, carried by the state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vqc.report.measure import Sums, compare, forward, layers_of, output_sums, truths
from vqc.report.versions import Versions

Steps = Sequence[Sequence[Tensor]]
Progress = Callable[[str, int, int], None]
OWN, FRAME, STATE = "its own", "of layers before it, in this frame", "of earlier frames, carried by the state"


@dataclass(frozen=True)
class Fall:
    """A result under the bound: the frame since reset, `result NAME`, its SQNR in dB."""

    frame: int
    result: str
    sqnr: float


@dataclass(frozen=True)
class First:
    """Where a bound is first broken. All SQNR are in dB, at frame `frame` since reset of pass number `index`.

    `layer`: the first in order whose SQNR is under the bound, or the first other operator where no layer is ("": none
    is). `layer_sqnr`: with the program's own state; `fresh_sqnr`: with the twin's state; `own_sqnr`: with the twin's
    values at all layers before it. `cause`: whose the error mostly is. `loudest`: among the layers up to it, the one
    with the lowest SQNR of its own, `loudest_sqnr`. `ran`: the passes whose programs were run to find it.
    """

    bound: float
    index: int
    name: str
    frame: int
    result: str
    sqnr: float
    layer: str = ""
    module: str = ""
    layer_sqnr: float = 0.0
    fresh_sqnr: float = 0.0
    own_sqnr: float = 0.0
    cause: str = ""
    loudest: str = ""
    loudest_sqnr: float = 0.0
    ran: tuple[str, ...] = ()


def bisect(versions: Versions, steps: Steps, bound: float = 20.0, progress: Progress | None = None) -> First | None:
    """Where the results of a recipe first fall under `bound` dB on a clip, or None when the last program never does.

    `steps`: the flat inputs of every step of one clip; the state is carried from its reset value. The search takes it
    that a program stays under the bound once a pass has brought it there; where a later pass repairs it and another
    breaks it again, one of the falls is found.
    """
    candidates = [i for i, v in enumerate(versions.passes) if v.measured]
    ran: list[str] = []

    def fall(place: int) -> Fall | None:
        ran.append(versions.passes[candidates[place]].name)
        return first_fall(versions, candidates[place], steps, bound, progress)

    low, high = -1, len(candidates) - 1
    found = fall(high)
    if found is None:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        fell = fall(middle)
        if fell is None:
            low = middle
        else:
            high, found = middle, fell
    return take_apart(versions, candidates[high], found, steps, bound, tuple(ran))


def first_fall(versions: Versions, index: int, steps: Steps, bound: float, progress: Progress | None = None
               ) -> Fall | None:  # fmt: skip
    """The first frame at which a result of pass `index` is under the bound; nothing behind that frame is run."""
    program, start = versions.passes[index].program, versions.start
    state, true_state = program.initial_state(), start.initial_state()
    for t, step in enumerate(steps):
        true, true_state = forward(start, step, true_state)
        out, state = forward(program, step, state)
        if progress is not None:
            progress(f"bisect: {versions.passes[index].name:.40}", t + 1, len(steps))
        found = {key: s.db for key, s in output_sums(program, out, start, true).items()}
        fell = lowest(found, t, bound)
        if fell is not None:
            return fell
    return None


def lowest(found: Mapping[str, float], frame: int, bound: float) -> Fall | None:
    """The worst result of a frame if it is under the bound; `found`: SQNR in dB by `result NAME` (others ignored)."""
    key = min((k for k in found if k.startswith("result ")), key=lambda k: found[k], default=None)
    return Fall(frame, key, found[key]) if key is not None and found[key] < bound else None


def take_apart(versions: Versions, index: int, fall: Fall, steps: Steps, bound: float, ran: tuple[str, ...] = ()
               ) -> First:  # fmt: skip
    """Which layer of pass `index` is the first under the bound at the frame of `fall`, and whose error it is."""
    version, twin = versions.passes[index], versions.twin
    program, links = version.program, version.links
    first = First(bound, index, version.name, fall.frame, fall.result, fall.sqnr, ran=ran)
    state, true_state = program.initial_state(), twin.initial_state()
    for step in steps[: fall.frame]:
        _, state = forward(program, step, state)
        _, true_state = forward(twin, step, true_state)
    step = steps[fall.frame]
    for names in ([n.name for n in layers_of(twin)], [link.twin for link in links.values()]):
        _, truth = truths(twin, step, true_state, names)
        _, carried = compare(program, links, step, state, truth)
        under = next((name for name, s in carried.items() if s.db < bound), None)
        if under is None:
            continue  # no layer is: perhaps another operator
        _, fresh = compare(program, links, step, true_state, truth)
        _, own = compare(program, links, step, true_state, truth, force=True)
        upto = list(carried)[: list(carried).index(under) + 1]
        loudest = min(upto, key=lambda n: own[n].db)
        return First(
            bound, index, version.name, fall.frame, fall.result, fall.sqnr, under,
            str(twin.node(under).meta.get("module", "")), carried[under].db, fresh[under].db, own[under].db,
            _cause(carried[under], fresh[under], own[under]), loudest, own[loudest].db, ran,
        )  # fmt: skip
    return first


def _cause(carried: Sums, fresh: Sums, own: Sums) -> str:
    """Whose the error mostly is: half of its power decides."""
    if own.noise >= carried.noise / 2:
        return OWN
    return FRAME if fresh.noise >= carried.noise / 2 else STATE
