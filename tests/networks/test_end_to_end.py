"""The three networks with their real weights on real clips: capture, int8, C, against eager and the reference."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch

import vqc
from vqc.executable import Executable
from vqc.metrics import dtssd, mad, psnr
from vqc.models import MODELS
from vqc.pipeline import rollout
from vqc.testing import assert_integers_equal, integer_nodes
from vqc.video import clip, read_clip
from vqc.video.composites import drawn

pytestmark = pytest.mark.network


@dataclass(frozen=True)
class Case:
    """A network at a test's size: the clip to judge on (never seen in calibration) and the clips to calibrate on."""

    name: str
    size: tuple[int, int]
    judge: str
    calibrate: tuple[str, ...]
    frames: int


CASES = {
    "rvm": Case("rvm", (288, 512), "single_face", ("pexels",), 16),
    "rife": Case("rife", (96, 160), "bikes", ("bigbuckbunny", "pexels"), 5),
    "srvgg": Case("srvgg", (48, 64), "bikes", ("bigbuckbunny",), 4),
}


@cache
def frames(name: str, size: tuple[int, int], count: int) -> torch.Tensor:
    return read_clip(clip(name), frames=count, size=size)


@cache
def network(name: str) -> torch.nn.Module:
    return MODELS[name].load()


def steps(case: Case, name: str) -> list[tuple[torch.Tensor, ...]]:
    entry, pictures = MODELS[case.name], frames(name, case.size, case.frames + 2)
    return [entry.step_inputs(pictures, t) for t in range(case.frames)]


@cache
def captured(name: str) -> vqc.Program:
    case, entry = CASES[name], MODELS[name]
    first = steps(case, case.judge)[0]
    args = (*first, *(None for _ in entry.states))
    return vqc.capture(network(name), args, states=entry.states or None, known_ranges=entry.known_ranges)


@cache
def int8(name: str) -> vqc.Program:
    return vqc.apply(captured(name), "int8", calibration=[steps(CASES[name], c) for c in CASES[name].calibrate])


@cache
def eager(name: str) -> list[torch.Tensor]:
    case, entry, net = CASES[name], MODELS[name], network(name)
    state: list[torch.Tensor | None] = [None] * len(entry.states)
    pictures = []
    with torch.no_grad():
        for step in steps(case, case.judge):
            out = net(*step, *state)
            leaves = [out] if isinstance(out, torch.Tensor) else list(out)
            state = [leaves[i] for i in entry.states.values()]
            pictures.append(leaves[entry.picture])
    return pictures


def rolled(executable: Executable, name: str) -> list[torch.Tensor]:
    case, state, pictures = CASES[name], None, []
    for step in steps(case, case.judge):
        results, state = executable.step(step, state)
        pictures.append(results[MODELS[name].picture])
    return pictures


def worst(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_float_program_equals_eager(name):
    folded = vqc.apply(captured(name), "float")
    assert worst(rolled(vqc.compile(folded, target="reference"), name), eager(name)) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_float_c_equals_eager(name):
    executable = vqc.compile(vqc.apply(captured(name), "float"), target="native", fallback="none")
    assert worst(rolled(executable, name), eager(name)) < 1e-4
    assert not executable.report.fallbacks


@pytest.mark.parametrize("name", CASES)
def test_every_integer_of_c_equals_the_reference(name):
    program = int8(name)
    assert len(integer_nodes(program)) > 15
    assert_integers_equal(program, "reference", "native", steps=steps(CASES[name], CASES[name].judge)[:3])


def test_rvm_int8_keeps_the_matte():
    """The best peer's figures are the bar; the benchmark measures the same on 48 frames."""
    got, want = torch.cat(rolled(vqc.compile(int8("rvm")), "rvm")), torch.cat(eager("rvm"))
    assert mad(got, want) <= 1.28 and dtssd(got, want) <= 0.72


def test_rvm_int8_keeps_figures_unlike_those_it_was_calibrated_on():
    """Calibrated on one person indoors, played on drawn figures: what that clip never excited must not be cut off."""
    played = [(f[None],) for f in drawn(8, CASES["rvm"].size, seed=1).frames]
    pictures = []
    for executable in (vqc.compile(int8("rvm")), vqc.compile(vqc.apply(captured("rvm"), "float"))):
        state, alphas = None, []
        for step in played:
            results, state = executable.step(step, state)
            alphas.append(results[1])
        pictures.append(torch.cat(alphas))
    assert mad(*pictures) < 15  # 82 and more without a range for channels that calibration did not hear


def test_four_bit_weights_that_make_up_for_each_other():
    """GPTQ against nearest rounding with searched scales, on a person never seen: less than half of the error."""
    net, size = network("rvm"), (96, 160)
    seen, unseen = ([(f[None],) for f in frames(c, size, 8)] for c in ("pexels", "single_face"))
    program = vqc.capture(net, (*unseen[0], None, None, None, None), states=MODELS["rvm"].states,
                          known_ranges=MODELS["rvm"].known_ranges)  # fmt: skip
    base = "canonicalize,fold-constants,fold-bn,canonicalize"
    low = f"{base},observe,quantize{{weight_bits=4,weight_method=mse}}"
    alphas = [torch.cat([y[1] for y in rollout(vqc.apply(program, text, calibration=[seen]), unseen)])
              for text in (base, low, f"{low},gptq{{waves=2}}")]  # fmt: skip
    nearest, gptq = (mad(a.clamp(0, 1), alphas[0]) for a in alphas[1:])
    assert gptq < 0.5 * nearest, (gptq, nearest)


def test_rife_int8_stays_near_its_float_self():
    got, want = rolled(vqc.compile(int8("rife")), "rife"), eager("rife")
    assert min(psnr(a, b) for a, b in zip(got, want, strict=True)) > 34


def test_srvgg_int8_stays_near_its_float_self():
    got, want = rolled(vqc.compile(int8("srvgg")), "srvgg"), eager("srvgg")
    assert min(psnr(a, b) for a, b in zip(got, want, strict=True)) >= 40


def test_reset_forgets():
    stream = vqc.Stream(vqc.compile(int8("rvm")))
    clip_steps = [s[0] for s in steps(CASES["rvm"], "single_face")[:3]]
    first = [r[1] for r in stream.run(clip_steps)]
    stream.reset()
    assert all(torch.equal(a, r[1]) for a, r in zip(first, stream.run(clip_steps), strict=True))
