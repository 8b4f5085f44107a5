"""`.pt2` files: a Program comes back as it went, a network of somebody else's is captured, the rest is refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from handmade import Hand, aten
from interop_nets import frames, matte, play
from torch import nn

import vqc
from vqc.errors import ArtifactError, CaptureError, InputError, TargetError, UnsupportedOp
from vqc.interop import interface, load_pt2, pt2_bytes
from vqc.program import evaluate
from vqc.report.network import network


@pytest.mark.parametrize("recipe", ["", "observe,quantize", "int8"])
def test_a_program_comes_back_from_a_pt2(recipe: str, tmp_path: Path):
    before = matte(recipe)
    folder = vqc.export(before, tmp_path / "net", target="pt2", licence="MIT")
    after = vqc.capture(folder / "matte.pt2")
    assert str(after) == str(before)
    assert (after.inputs, after.outputs, after.history, after.notes) == (
        before.inputs, before.outputs, before.history, before.notes)  # fmt: skip
    assert after.signature == before.signature
    assert [torch.equal(a.reset, b.reset) for a, b in zip(after.states, before.states, strict=True)] == [True]
    assert all(torch.equal(a, b) for a, b in zip(play(after), play(before), strict=True))
    assert [n.meta["source"] for n in after.calls] == [str(n.meta.get("source", "")) for n in before.calls]


def test_a_reader_without_vqc_s_reader_runs_the_file(tmp_path: Path):
    before = matte("int8")
    folder = vqc.export(before, tmp_path / "net", target="pt2")
    module = torch.export.load(folder / "matte.pt2").module()
    found = module(*before.example, *before.initial_state())
    assert all(torch.equal(a, b) for a, b in zip(found, evaluate(before, before.example), strict=True))
    readme, said = (folder / "README.txt").read_text(), json.loads((folder / "interface.json").read_text())
    assert "alpha, next_h = module(x, h)" in readme
    assert "import vqc.ops" in readme and "vqc.qconv2d" in readme and "may run code" in readme
    assert said["states"] == [{"name": "h", "input": "h", "output": 1, "range": said["states"][0]["range"],
                               "origin": "argument"}]  # fmt: skip


def test_somebody_else_s_pt2_is_captured(tmp_path: Path):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), frames(1)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
    program = vqc.capture(tmp_path / "net.pt2", known_ranges={"input": (0, 1)})
    assert program.inputs[0].known_range == (0, 1)
    assert torch.equal(evaluate(program, [x])[0], net(x))
    assert torch.equal(evaluate(vqc.capture(torch.export.export(net, (x,))), [x])[0], net(x))


def test_a_mutated_buffer_of_a_pt2_is_a_state(tmp_path: Path):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("h", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.h.copy_(torch.tanh(x + self.h))
            return self.h * 2

    torch.export.save(torch.export.export(Counting(), (torch.rand(3),)), tmp_path / "net.pt2")
    program = vqc.capture(tmp_path / "net.pt2")
    assert [(s.name, s.origin) for s in program.states] == [("h", "buffer h")]


def test_a_pt2_of_vqc_takes_no_declarations(tmp_path: Path):
    folder = vqc.export(matte(), tmp_path / "net", target="pt2")
    with pytest.raises(CaptureError, match="give the path alone"):
        vqc.capture(folder / "matte.pt2", states={"h": 1})
    with pytest.raises(CaptureError, match="it holds no scan"):
        vqc.capture(folder / "matte.pt2", keep_scan=True)


def test_a_network_needs_an_example():
    with pytest.raises(CaptureError, match="no example"):
        vqc.capture(nn.Linear(3, 3).eval())


def test_load_does_not_open_a_pt2(tmp_path: Path):
    folder = vqc.export(matte(), tmp_path / "net", target="pt2")
    with pytest.raises(ArtifactError, match=r"may run code(.|\n)*vqc.capture"):
        vqc.load(folder / "matte.pt2")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_pt2_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "net.pt2"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"\.pt2 file cannot be read(.|\n)*where(.|\n)*why: \S+: (.|\n)*way out"):
        vqc.capture(path)


def test_a_missing_pt2():
    with pytest.raises(ArtifactError, match="no such file"):
        vqc.capture("nowhere.pt2")


def rewritten(data: bytes, change: dict[str, bytes]) -> io.BytesIO:
    """The archive with some of its members replaced, by the ends of their names."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            new = next((v for k, v in change.items() if name.endswith(k)), None)
            after.writestr(name, before.read(name) if new is None else new)
    return io.BytesIO(out.getvalue())


def test_notes_that_do_not_fit_the_graph_are_refused():
    data = pt2_bytes(matte())
    assert load_pt2(rewritten(data, {})).name == "matte"
    with pytest.raises(ArtifactError, match="no JSON"):
        load_pt2(rewritten(data, {"vqc.json": b"{"}))
    with pytest.raises(ArtifactError, match="format 9"):
        load_pt2(rewritten(data, {"vqc.json": b'{"format": 9, "calls": []}'}))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        said = json.loads(archive.read(next(n for n in archive.namelist() if n.endswith("vqc.json"))))
    empty_range = [said["inputs"][0] | {"range": []}]
    with pytest.raises(ArtifactError, match="IndexError"):
        load_pt2(rewritten(data, {"vqc.json": json.dumps(said | {"inputs": empty_range}).encode()}))
    for key, value in {"states": [], "outputs": 3, "inputs": [{"name": "x"}], "calls": None}.items():
        with pytest.raises((ArtifactError, vqc.errors.SpecError)):
            load_pt2(rewritten(data, {"vqc.json": json.dumps(said | {key: value}).encode()}))


class Foreign(nn.Module):
    """A network whose body is given; `h` is a buffer that it may write."""

    def __init__(self, body) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("h", torch.zeros(3))

    def forward(self, x, y=None):
        return self.body(self, x, y)


def written(net, x, y):
    net.h.copy_(torch.tanh(x + net.h))
    return net.h * 2


X = torch.linspace(-1, 1, 3)
FOREIGN = {
    "by name": (lambda net, x, y: torch.tanh(x + y), (X,), {"y": X}, "2 inputs are not tensors"),
    "nested": (lambda net, x, y: torch.tanh(x[0] + x[1]), ([X, X],), {}, "2 inputs are not tensors"),
    "a number": (lambda net, x, y: torch.tanh(x + y), (X, 2), {}, "2 inputs are not tensors"),
    "no result": (lambda net, x, y: (torch.tanh(x), None), (X,), {}, "results is no tensor"),
    "in place": (lambda net, x, y: torch.tanh(x.add_(1)), (X,), {}, "add_ writes in place: aten.add_"),
    "a buffer in place": (written, (X,), {}, "copy_ writes in place: aten.copy_"),
    "a buffer's next value": (written, (X,), {}, "it writes h: BUFFER_MUTATION"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_notes_beside_a_graph_that_vqc_did_not_write_are_refused(case: str):
    body, args, kwargs, why = FOREIGN[case]
    h = Hand()
    y = h(aten.tanh, h(aten.add.Tensor, h.input("x", 3), h.const("h", torch.zeros(3))))
    said = interface.of(h.done(y, h(aten.mul.Tensor, y, 2)))  # two results, as many as of the functional graph
    exported = torch.export.export(Foreign(body), args, kwargs)
    if case == "a buffer's next value":
        exported = exported.run_decompositions({})
    out = io.BytesIO()
    torch.export.save(exported, out, extra_files={"vqc.json": json.dumps(said)})
    with pytest.raises(ArtifactError, match=rf"did not write its graph(.|\n)*{why}(.|\n)*vqc\.capture"):
        load_pt2(io.BytesIO(out.getvalue()))


def test_assumptions_and_the_order_of_results_survive():
    h = Hand("assuming")
    x = h.input("x", 1, 4)
    s = h.state("s", torch.ones(1, 4))
    y = h(aten.add.Tensor, x, s)
    program = h.done(y, y, x, states=[y])
    test = program.clone()
    with test.graph.inserting_before(test.output_node):
        positive = test.call(aten.all.default, (test.call(aten.gt.Scalar, (test.node(y.name), -100.0)),))
    test.output_node.args = ((*test.output_node.args[0], positive),)
    test.assumptions = (vqc.program.Assumption(4, True, "here", "it is large"),)
    again = load_pt2(io.BytesIO(pt2_bytes(test)))
    assert again.assumptions == test.assumptions and again.states[0].output == 3 and len(again.outputs) == 3
    assert str(again) == str(test)


def test_a_sub_graph_is_declined():
    class Clip(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            from torch._higher_order_ops.scan import scan

            return scan(lambda s, v: (s + v, (s * v).clone()), x[0], x)[1]

    program = vqc.capture(Clip().eval(), torch.rand(3, 4), keep_scan=True)
    with pytest.raises(UnsupportedOp, match="keep_scan"):
        pt2_bytes(program)


def test_a_pt2_stands_where_a_network_is_named(tmp_path: Path):
    before = matte("int8")
    folder = vqc.export(before, tmp_path / "net", target="pt2")
    net = network(str(folder / "matte.pt2"))
    assert net.size == (8, 12) and str(net.program) == str(before)
    steps = [net.module(*step)["alpha"] for step in net.steps(frames())]
    assert torch.equal(torch.cat(steps), torch.cat(play(before)[::2]))
    with pytest.raises(InputError, match="captured at 8x12"):
        network(str(folder / "matte.pt2"), (16, 24))
    torch.export.save(torch.export.export(nn.Linear(3, 3), (torch.rand(3),)), tmp_path / "line.pt2")
    with pytest.raises(InputError, match="does not take frames"):
        network(str(tmp_path / "line.pt2"))


def test_targets_and_options(tmp_path: Path):
    with pytest.raises(TargetError, match="pt2:decomposed"):
        vqc.export(matte(), tmp_path / "net", target="pt2:other")
    with pytest.raises(TargetError, match="threads"):
        vqc.export(matte(), tmp_path / "net", target="pt2", threads=2)
    assert not (tmp_path / "net").exists()
