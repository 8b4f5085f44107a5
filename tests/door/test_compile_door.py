"""`torch.compile(model, backend="vqc")`: options, reports, recipes, sizes and clips, mostly on the eager target."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from door_helpers import Recurrent, Scanning, Small, frames, looped
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from vqc.backend import last_report, reports, vqc_backend

EAGER = {"target": "reference"}


@pytest.fixture(autouse=True)
def _clean():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


class Chain(nn.Module):
    """Three convolutions, so that a recipe has one to quantize between head and tail."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3)
            )
        self.eval()

    def forward(self, src, *, gain=None, past=()):
        y = self.body(src)
        for p in past:
            y = y + p
        return y if gain is None else y * gain


def compiled(model, **options):
    return torch.compile(model, backend="vqc", options={**EAGER, **options})


def raised(**options) -> str:
    with pytest.raises(BackendCompilerFailed) as e:
        torch.compile(Small(), backend="vqc", options=options)(frames(1)[0])
    return str(e.value)


# ---- the name ------------------------------------------------------------------------------------------------------


def test_found_by_name_in_a_process_that_never_imports_vqc():
    code = (
        "import sys, torch\n"
        "assert 'vqc' in torch.compiler.list_backends(exclude_tags=())\n"
        "assert not any(m == 'vqc' or m.startswith('vqc.') for m in sys.modules)\n"
        "f = torch.compile(torch.nn.Conv2d(3, 4, 3).eval(), backend='vqc', options={'target': 'reference'})\n"
        "with torch.no_grad():\n"
        "    print(tuple(f(torch.rand(1, 3, 8, 8)).shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 4, 6, 6)"


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"recip": "int8"}, ["no option 'recip'", "did you mean 'recipe'?", "calibration, debug"]),
        ({"target": "nativ"}, ["no target called 'nativ'", "did you mean 'native'?"]),
        ({"debug": 1}, ["option debug is 1", "true or false"]),
        ({"seed": True}, ["option seed is True"]),
        ({"report": "yes"}, ["option report is not callable"]),
        ({"recipe": "int8"}, ["needs calibration clips", "lists of steps"]),
        ({"recipe": "int88"}, ["no pass called 'int88'"]),
        ({"inductor": {"no_such_setting": 1}}, ["no setting 'no_such_setting'"]),
    ],
)
def test_what_is_not_understood_is_refused(options, expected):
    message = raised(**options)
    for text in expected:
        assert text in message


def test_modes():
    x = frames(1)[0]
    with pytest.raises(BackendCompilerFailed, match="means nothing to target reference"):
        torch.compile(Small(), backend=vqc_backend_with_mode("max-autotune", EAGER))(x)
    with pytest.raises(BackendCompilerFailed, match="no mode 'fastest'"):
        torch.compile(Small(), backend=vqc_backend_with_mode("fastest", None))(x)
    m = Small()
    assert torch.allclose(torch.compile(m, backend=vqc_backend_with_mode("default", EAGER))(x), m(x), atol=1e-6)


def vqc_backend_with_mode(mode, options):
    return lambda gm, example: vqc_backend(gm, example, mode=mode, options=options)


def test_prepare_freezing_is_refused():
    with (
        torch._dynamo.config.patch(prepare_freezing=True),
        pytest.raises(BackendCompilerFailed, match="without a guard"),
    ):
        compiled(Small())(frames(1)[0])


# ---- reports -------------------------------------------------------------------------------------------------------


def test_reports(caplog):
    heard = []
    fast = compiled(Small(), report=heard.append)
    with caplog.at_level(logging.INFO, logger="vqc"):
        fast(frames(1)[0])
    (report,) = reports()
    assert heard == [report]
    assert last_report() is report
    assert (report.calls, report.constants, report.states, report.compilations) == (4, 7, 0, 1)
    assert "recipe float" in report.route
    assert "graph 1: reference" in caplog.text
    torch._dynamo.reset()
    assert reports() == []
    assert last_report() is None


def test_a_graph_without_operators_is_passed_through():
    fast = torch.compile(lambda x: (x, None), backend="vqc")
    x = torch.rand(3)
    assert fast(x)[0] is x
    assert all(r.compilations == 0 for r in reports())


def test_what_cannot_be_captured_goes_to_inductor_and_says_so():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        fast = torch.compile(lambda x: torch.nonzero(x).sum(0), backend="vqc", options=EAGER)
        assert fast(torch.tensor([0.0, 1.0, 0.0, 2.0])).tolist() == [4]
        assert fast(torch.tensor([0.0, 1.0, 1.0, 2.0])).tolist() == [6]
    assert "left to Inductor: aten.nonzero" in str(last_report())


def test_a_size_that_depends_on_the_data_is_left_to_dynamo():
    pool = nn.AvgPool2d(4)
    pool.kernel_size = np.int64(4)  # Dynamo makes a tensor of a numpy number
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), pool).eval(), frames(1)[0]
    assert torch.allclose(torch.compile(model, backend="vqc")(x), model(x), atol=1e-6)


def test_changing_float_argument():
    model = WithNumber(Small())
    fast = compiled(model)
    for t in (0.5, 0.25, 0.125, 0.75):
        x = frames(1)[0]
        assert torch.allclose(fast(x, t)[0], model(x, t)[0], atol=1e-6)
    assert len(reports()) == 2


# ---- recipes -------------------------------------------------------------------------------------------------------


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10((b.max() - b.min()) ** 2 / (a - b).square().mean()))


@pytest.mark.parametrize(
    "clips",
    [
        frames(4),
        torch.cat(frames(4)),
        [[(x,) for x in frames(2)], [(x,) for x in frames(2, seed=2)]],
        [{"src": x} for x in frames(4)],
        lambda: frames(4),
        [(x,) for x in [*frames(2, 16), *frames(3)]],  # steps of another size run through another graph
    ],
    ids=["steps", "tensor", "clips", "names", "function", "sizes"],
)
def test_recipe_with_calibration(clips):
    model, x = Chain(), frames(1, seed=9)[0]
    fast = torch.compile(model, backend="vqc", options={"recipe": "int8-all", "calibration": clips, **EAGER})
    got = fast(x)
    assert not torch.equal(got, model(x))
    assert psnr(got, model(x)) > 30
    assert "vqc.qconv2d" in " ".join(last_report().details.kernels.values())


def test_calibration_finds_nested_arguments():
    model = Chain()
    steps = [{"src": x, "gain": torch.ones(1), "past": (x[..., 1:-1, 1:-1],)} for x in frames(3)]
    fast = torch.compile(model, backend="vqc", options={"recipe": "int8-all", "calibration": steps, **EAGER})
    assert psnr(fast(**steps[0]), model(**steps[0])) > 30


def test_calibration_that_fits_nothing_says_what_the_graph_takes():
    options = {"recipe": "int8", "calibration": [(torch.rand(1, 3, 9, 9),)], **EAGER}
    with pytest.raises(BackendCompilerFailed) as e:
        torch.compile(Chain(), backend="vqc", options=options)(frames(1)[0])
    for text in ("no calibration step fits", "L['src'] float32[1, 3, 8, 8]", "is f32[1,3,9,9] in a step"):
        assert text in str(e.value)


def test_a_missing_compiler_is_told_before_calibration(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    options = {"recipe": "int8", "calibration": [(torch.rand(1, 3, 9, 9),)]}  # clips that fit nothing
    with pytest.raises(BackendCompilerFailed, match="(?s)C compiler .* does not run.*set option cc or the variable CC"):
        torch.compile(Chain(), backend="vqc", options=options)(frames(1)[0])


class Keeping(nn.Module):
    """Keeps its state in an attribute, which no call brings."""

    def __init__(self):
        super().__init__()
        self.look, self.show, self.past = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1), None
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, src):
        x = self.look(src) * self.gain
        self.past = x if self.past is None else 0.5 * self.past + x
        return self.show(self.past.relu())


def test_calibration_of_what_a_network_keeps_in_an_attribute_points_to_capture():
    model, clip = Keeping().eval(), frames(3)
    fast = torch.compile(model, backend="vqc", options={"recipe": "int8-all", "calibration": clip, **EAGER})
    with torch.no_grad():
        fast(clip[0])  # the first frame needs no state: its graph has the frame alone, the weights bound
        with pytest.raises(BackendCompilerFailed) as e:
            fast(clip[1])
    for text in ("no call brings L['self'].past: the network keeps it itself", "the graph of Keeping.forward",
                 "vqc.capture"):  # fmt: skip
        assert text in str(e.value)


def test_calibration_of_a_broken_graph_names_its_function():
    def scaled(x):
        x.requires_grad = False  # Dynamo breaks the graph here
        return x * 0.5

    class Broken(Chain):
        def forward(self, src):
            return super().forward(scaled(src[..., 1:, 1:]))

    with pytest.raises(BackendCompilerFailed) as e:
        torch.compile(Broken(), backend="vqc", options={"recipe": "int8", "calibration": frames(2), **EAGER})(
            frames(1)[0]
        )
    for text in ("no calibration step fits", "the graph of ", "several graphs", "vqc.capture takes it whole"):
        assert text in str(e.value)


def test_two_models_of_a_class_with_their_own_clips():
    x = frames(1)[0]
    for seed in range(2):
        model = Chain(seed)
        options = {"recipe": "int8-all", "calibration": frames(3, seed=seed), **EAGER}
        fast = torch.compile(model, backend="vqc", options=options)
        assert psnr(fast(x), model(x)) > 30
    assert len(reports()) == 2


def test_recipe_follows_changed_weights():
    model, x = Chain(), frames(1)[0]
    fast = torch.compile(model, backend="vqc", options={"recipe": "int8-all", "calibration": frames(3), **EAGER})
    fast(x)
    model.load_state_dict(Chain(4).state_dict())
    assert psnr(fast(x), model(x)) > 30


def test_recipe_starts_a_recurrent_model_from_its_reset_state():
    model = Recurrent()
    twin = copy.deepcopy(model)
    fast = torch.compile(
        model, backend="vqc", options={"recipe": "int8-all", "calibration": frames(6), "target": "reference"}
    )
    for x in frames(3, seed=5):
        assert psnr(fast(x), twin(x)) > 25
        assert psnr(model.hidden, twin.hidden) > 25
    model.hidden.zero_()
    again = fast(frames(1, seed=5)[0])
    model.hidden.zero_()
    assert torch.equal(again, fast(frames(1, seed=5)[0]))


def test_recipe_with_gradients_is_detached_and_says_so():
    model, x = Chain(), frames(1)[0]
    fast = torch.compile(model, backend="vqc", options={"recipe": "int8-all", "calibration": frames(3), **EAGER})
    with torch.enable_grad():
        assert not fast(x).requires_grad
    assert "gradients are not computed" in str(last_report())


# ---- clips and sizes -------------------------------------------------------------------------------------------------


def test_scan_compiles_at_most_twice_for_any_clip_length():
    model = Scanning()
    fast = compiled(model)
    for t in (3, 5, 7, 9):
        clip = torch.stack(frames(t))
        assert torch.allclose(fast(clip), looped(model, clip), atol=1e-6)
    assert len(reports()) == 2


def test_a_second_and_third_frame_size():
    model = Small()
    fast = compiled(model)
    for size in (8, 12, 10, 8, 12):
        for x in frames(2, size):
            assert torch.allclose(fast(x), model(x), atol=1e-6)
    assert len(reports()) == 2
    assert [r.compilations for r in reports()] == [1, 3]


def test_state_that_is_none_at_first():
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 3, 3, padding=1)
            self.eval()

        def forward(self, x, h=None):
            h = torch.zeros_like(x) if h is None else h
            h = torch.tanh(self.conv(torch.cat((x, h), 1)))
            return h * 2, h

    model = Cell()
    fast = compiled(model)
    h = g = None
    for x in frames(4):
        (want, h), (got, g) = model(x, h), fast(x, g)
        assert torch.allclose(got, want, atol=1e-6)
    assert len(reports()) == 2


def test_graph_break_and_list_argument():
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.eval()

        def forward(self, items):
            for i in range(len(items)):
                items[i] = self.first(items[i])
            keep = int((items[0].sum(1) > 0).sum())
            rows = items[0].sum(1).argsort(descending=True)[:keep]
            out = items[1].clone()
            out[rows] = self.second(items[0][rows])
            return out

    model = Picks()
    fast = compiled(model)
    g = torch.Generator().manual_seed(0)
    for _ in range(3):
        items = [torch.randn(6, 4, generator=g), torch.randn(6, 4, generator=g)]
        mine, theirs = list(items), list(items)
        assert torch.allclose(fast(mine), model(theirs), atol=1e-6)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, theirs, strict=True))
    assert len(reports()) >= 2


def test_numbers_as_arguments():
    model = Small()
    fast = compiled(nn_with_number := WithNumber(model))
    for n in (1, 2, 3, 4):
        x = frames(1)[0]
        y, k, none = fast(x, n)
        assert torch.allclose(y, nn_with_number(x, n)[0], atol=1e-6)
        assert (k, none) == (n + 1, None)


class WithNumber(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x, n):
        return self.inner(x) * n, n + 1, None
