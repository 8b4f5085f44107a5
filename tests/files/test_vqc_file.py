"""The .vqc file: a program comes back as it was, with everything that passes and backends read."""

from __future__ import annotations

import functools
import operator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from handmade import Hand
from torch import nn

import vqc
from vqc import files
from vqc.backends.c.backend import generate_model
from vqc.errors import ArtifactError
from vqc.files.container import PREAMBLE, READERS
from vqc.program import Assumption, Program, evaluate
from vqc.report.network import network
from vqc.report.session import recipe_program

aten = torch.ops.aten


def again(program: Program, folder: Path, **said: Any) -> Program:
    return vqc.load(vqc.save(program, folder / "p.vqc", **said))


def same(a: Program, b: Program) -> None:
    """Everything a Program is made of."""
    assert str(a) == str(b)
    assert [(n.name, n.op, str(n.target), repr(n.args), repr(n.kwargs)) for n in a.graph.nodes] == [
        (n.name, n.op, str(n.target), repr(n.args), repr(n.kwargs)) for n in b.graph.nodes]  # fmt: skip
    assert list(a.constants) == list(b.constants)
    for name, value in a.constants.items():
        assert value.dtype == b.constants[name].dtype and value.shape == b.constants[name].shape
        assert bits(value) == bits(b.constants[name]), name
        assert value.is_contiguous() == b.constants[name].is_contiguous()
    for s, t in zip(a.states, b.states, strict=True):
        assert bits(s.reset) == bits(t.reset)
        assert [getattr(s, f.name) for f in fields(s) if f.name != "reset"] == [
            getattr(t, f.name) for f in fields(t) if f.name != "reset"]  # fmt: skip
    assert (a.inputs, a.outputs, a.assumptions, a.history, a.notes) == (
        b.inputs,
        b.outputs,
        b.assumptions,
        b.history,
        b.notes,
    )
    assert a.signature == b.signature
    assert [bits(x) for x in a.example] == [bits(x) for x in b.example]


def bits(x: torch.Tensor) -> bytes:
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def pictures(count: int, *size: int) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.network
@pytest.mark.parametrize(("name", "size", "recipe"), [
    ("srvgg", (16, 24), "int8"), ("rife", (64, 64), "int8"), ("rvm", (64, 96), "int8"), ("bivm", (64, 96), "xnor"),
])  # fmt: skip
def test_a_network_compiles_to_the_same_c(name: str, size: tuple[int, int], recipe: str, tmp_path: Path) -> None:
    net = network(name, size)
    program = recipe_program(net, recipe, pictures(3, *size) if recipe == "int8" else None)
    loaded = again(program, tmp_path, recipe=recipe, licence=net.licence)
    same(program, loaded)
    want, got = generate_model(program, "native"), generate_model(loaded, "native")
    assert want.sources == got.sources
    assert want.weights == got.weights
    for a, b in zip(evaluate(program, program.example), evaluate(loaded, loaded.example), strict=True):
        assert bits(a) == bits(b)


class Result(NamedTuple):
    picture: torch.Tensor
    extra: dict[str, Any]


class Recurrent(nn.Module):
    """A state in a buffer, a decision on data, a result of many shapes, a constant laid out in columns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.mix = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4)
        self.mix.weight = nn.Parameter(self.mix.weight.detach().t().contiguous().t())
        self.register_buffer("memory", torch.zeros(1, 4, 8, 8))

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.relu(self.conv(x))
        self.memory = 0.5 * self.memory + 0.5 * y
        if x.sum() == 0.125:
            y = y * 2
        mixed = self.mix(self.memory.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return {"picture": mixed, "list": [y, 1.5, None, "text"], "pair": (x, float("inf"))}


@pytest.fixture(scope="module")
def recurrent() -> Program:
    return vqc.capture(Recurrent().eval(), pictures(1, 8, 8), known_ranges={"x": (0, 1)})


def test_states_decisions_and_structure(recurrent: Program, tmp_path: Path) -> None:
    loaded = again(recurrent, tmp_path)
    same(recurrent, loaded)
    assert recurrent.states and recurrent.assumptions
    want, got = (vqc.Stream(vqc.compile(p, "reference")) for p in (recurrent, loaded))
    for frame in pictures(3, 8, 8).split(1):
        a, b = want(frame), got(frame)
        assert list(a) == list(b) and bits(a["picture"]) == bits(b["picture"]) and b["list"][1:] == [1.5, None, "text"]


def test_a_half_finished_pipeline_goes_on_where_it_was(recurrent: Program, tmp_path: Path) -> None:
    """Observations, allocated bits and module names are notes on nodes; `quantize` gives the same with and without a
    file in between, and every single pass leaves what a file can hold."""
    program = recurrent
    for step in ("canonicalize,fold-constants", "observe{policy=frame}", "quantize{tail=quantized}",
                 "lower-integer", "exact-float,canonicalize"):  # fmt: skip
        clip = pictures(3, 8, 8)
        straight = vqc.apply(program, step, calibration=clip)
        through = vqc.apply(again(program, tmp_path), step, calibration=clip)
        same(straight, through)
        assert ("vqc.qconv2d" in str(straight)) == (step in ("lower-integer", "exact-float,canonicalize"))
        program = straight


def test_odd_values(tmp_path: Path) -> None:
    h = Hand("odd values")
    x = h.input("input", 2, 3, dtype=torch.float64)
    low = h.const("low", torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.float64))
    shared = torch.arange(6).view(2, 3).t()
    a, b = h.const("one", shared), h.const("two.weight", shared)
    h.program.constants["two.weight"] = h.program.constants["one"]
    y = h(aten.clamp, x, -float("inf"), 1e-323)
    y = h(aten.add.Tensor, h(aten._to_copy, y, dtype=torch.float64, memory_format=torch.preserve_format), low, alpha=3)
    parts = h(aten.split_with_sizes, y, [1, 2], 1)
    z = h(operator.getitem, parts, 1)
    w = h(aten.sum.dim_IntList, h(aten.add.Tensor, a, b), [0, 1], True)
    y.meta |= {"source": 'file.py:3 "*/ x', "offset": torch.tensor([0.1], dtype=torch.float64), "bits": (4, 8)}
    state = h.state("class_", torch.zeros(3, 2, dtype=torch.uint8).t())
    program = h.done(z, w, states=[state])
    program.assumptions = ()
    program.notes = ("Lizenz: frei – 自由",)
    loaded = again(program, tmp_path)
    same(program, loaded)
    assert loaded.node(y.name).meta["bits"] == (4, 8)
    assert bits(loaded.node(y.name).meta["offset"]) == bits(y.meta["offset"])
    assert loaded.constants["one"].stride() == (1, 3) and loaded.constants["one"] is loaded.constants["two.weight"]


def test_what_a_file_says_of_itself(recurrent: Program, tmp_path: Path) -> None:
    clip = pictures(4, 8, 8)
    path = vqc.save(
        recurrent, tmp_path / "a.vqc", recipe="none", calibration=clip, licence="mine", network={"picture": 0}
    )
    said = files.about(path)
    assert (said["recipe"], said["licence"], said["network"], said["vqc"]) == (
        "none",
        "mine",
        {"picture": 0},
        vqc.__version__,
    )
    assert said["calibration"]["steps"] == 4
    assert said["calibration"]["inputs"]["x"]["high"] == pytest.approx(float(clip.max()))
    assert len(said["calibration"]["sha256"]) == 64
    assert path.read_bytes() == vqc.save(recurrent, tmp_path / "b.vqc", recipe="none", calibration=clip, licence="mine",
                                         network={"picture": 0}).read_bytes()  # fmt: skip


def test_results_in_a_users_own_class_come_back_as_tuples(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> Result:
            return Result(x * 2, {"a": x + 1})

    program = vqc.capture(Named().eval(), torch.ones(1, 2))
    result = vqc.Stream(vqc.compile(again(program, tmp_path), "reference"))(torch.ones(1, 2))
    assert type(result) is tuple and result[1]["a"].tolist() == [[2.0, 2.0]]


def refused(path: Path, **options: Any) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        vqc.load(path, **options)
    assert str(path) in caught.value.where and caught.value.why and caught.value.way_out
    return caught.value


def test_refusals_name_the_file_the_reason_and_the_way_out(recurrent: Program, tmp_path: Path) -> None:
    path = vqc.save(recurrent, tmp_path / "p.vqc")
    data = path.read_bytes()
    assert "limit is 100" in refused(path, max_bytes=100).why
    assert "No such file" in refused(tmp_path / "missing.vqc").why
    assert "regular" in refused(Path("/dev/zero")).why
    assert "directory" in refused(tmp_path).why
    for content, why in (
        (data[:50], "fewer than"), (data[:-1], "truncated"), (data + b"x", "followed"), (b"PK" + data[2:], "begin"),
        (data[:200] + bytes([data[200] ^ 1]) + data[201:], "hash"), (data[:-1] + bytes([data[-1] ^ 128]), "hash"),
    ):  # fmt: skip
        path.write_bytes(content)
        assert why in refused(path).why
    magic, _, zero, header, payload, _, digest = PREAMBLE.unpack_from(data)
    path.write_bytes(PREAMBLE.pack(magic, 7, zero, header, payload, b"0.9.1", digest) + data[PREAMBLE.size :])
    error = refused(path)
    assert "format 7" in error.why and "vqc '0.9.1' or later" in error.way_out
    assert set(READERS) == {1}


def test_a_sparse_giant_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "giant.vqc"
    with open(path, "wb") as f:
        f.truncate(1 << 40)
    assert "limit" in refused(path).why


def test_what_cannot_be_saved_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    h = Hand()
    x = h.input("x", 2, 2)
    noisy = h.done(h(aten.bernoulli, x))
    with pytest.raises(ArtifactError, match="bernoulli calls aten.bernoulli, which is not among"):
        vqc.save(noisy, tmp_path / "p.vqc")
    h = Hand()
    y = h(aten.relu, h.input("x", 2, 2))
    y.meta["mine"] = object()
    with pytest.raises(ArtifactError, match="relu is noted with 'mine'"):
        vqc.save(h.done(y), tmp_path / "p.vqc")
    assert list(tmp_path.iterdir()) == []


def test_a_file_appears_whole_or_not_at_all(recurrent: Program, tmp_path: Path) -> None:
    path = vqc.save(recurrent, tmp_path / "p.vqc")
    before = path.read_bytes()
    (tmp_path / "folder.vqc").mkdir()
    with pytest.raises(ArtifactError, match="cannot be written"):
        vqc.save(recurrent, tmp_path / "folder.vqc")
    with pytest.raises(ArtifactError, match="cannot be written"):
        vqc.save(recurrent, tmp_path / "nowhere" / "p.vqc")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.vqc", "p.vqc"]


def test_an_assumption_that_is_no_boolean_is_refused(recurrent: Program, tmp_path: Path) -> None:
    wrong = recurrent.clone()
    wrong.assumptions = (Assumption(0, True, "here", "x > 0"),)
    with pytest.raises(ArtifactError, match="no boolean scalar"):
        vqc.save(wrong, tmp_path / "p.vqc")


def _square(x: torch.Tensor) -> torch.Tensor:
    return x[0, 0] @ x[0, 0].T + torch.eye(8)


SEVERAL = {
    "cummax": lambda x: x.cummax(1),
    "cummin": lambda x: x.cummin(-1),
    "mode": lambda x: x.round().mode(1),
    "nanmedian": lambda x: x.nanmedian(1),
    "kthvalue": lambda x: x.kthvalue(2, 1),
    "frexp": torch.frexp,
    "aminmax": lambda x: torch.aminmax(x, dim=1),
    "std_mean": lambda x: torch.std_mean(x, 1),
    "svd": lambda x: torch.linalg.svd(x[0, 0]),
    "qr": lambda x: torch.linalg.qr(x[0, 0]),
    "eig": lambda x: torch.linalg.eig(x[0, 0]),
    "eigh": lambda x: torch.linalg.eigh(_square(x)),
    "slogdet": lambda x: torch.linalg.slogdet(_square(x)),
    "cholesky": lambda x: torch.linalg.cholesky(_square(x)),
    "inverse": lambda x: torch.linalg.inv(_square(x)),
    "solve": lambda x: torch.linalg.solve(_square(x), x[0, 1]),
    "lu": lambda x: torch.linalg.lu(x[0, 0]),
    "lu_factor": lambda x: torch.linalg.lu_factor(_square(x)),
    "ldl_factor": lambda x: torch.linalg.ldl_factor(_square(x)),
    "lu_unpack": lambda x: torch.lu_unpack(*torch.linalg.lu_factor(_square(x))),
    "weight_norm": lambda x: torch.ops.aten._weight_norm_interface(x, x.sum((1, 2, 3), keepdim=True)),
}
ONE = {
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "nansum": lambda x: x.nansum(1),
    "cross": lambda x: torch.linalg.cross(x, x.roll(1, 3), dim=1),
    "matrix_exp": lambda x: torch.linalg.matrix_exp(x[0, 0]),
    "diag_embed": lambda x: x.diag_embed(),
    "trace": lambda x: x[0, 0].trace(),
    "ldexp": lambda x: torch.ldexp(x, torch.tensor(3)),
    "isin": lambda x: torch.isin(x, torch.tensor([0.5, 0.25])),
    "i0e": torch.special.i0e,
    "renorm": lambda x: x.renorm(2, 1, 0.5),
    "huber_loss": lambda x: nn.functional.huber_loss(x, x.flip(1)),
    "triangular": lambda x: torch.linalg.solve_triangular(x[0, 0].triu() + torch.eye(8), x[0, 1], upper=True),
}


@pytest.mark.parametrize("name", [*SEVERAL, *ONE])
def test_operators_beside_those_that_networks_are_made_of(name: str, tmp_path: Path):
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    program = vqc.capture((SEVERAL | ONE)[name], x)
    loaded = again(program, tmp_path)
    assert str(loaded) == str(program)  # their named tuples come back as tuples
    for a, b in zip(evaluate(program, [x]), evaluate(loaded, [x]), strict=True):
        assert torch.equal(a, b)


def test_operators_that_trust_numbers_in_tensors_are_left_out(tmp_path: Path):
    x = torch.rand(1, 3, 8, 8)
    factors, pivots = torch.linalg.lu_factor(_square(x))
    for solve in (torch.linalg.lu_solve, torch.linalg.ldl_solve):
        program = vqc.capture(functools.partial(solve, factors, pivots), x[0, 1])
        with pytest.raises(ArtifactError, match="not among the operators a file may name"):
            again(program, tmp_path)
