"""Which private names of torch the door stands on: a new torch that drops one fails here first."""

from __future__ import annotations

import pytest
import torch
from door_helpers import Small
from torch import nn

from vqc import compat
from vqc.backends import backend_for
from vqc.errors import BackendError, TargetError


@pytest.fixture(autouse=True)
def _clean():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def caught(fn, *args, **kwargs):
    """The graph, example inputs and frame of the one graph that Dynamo makes of a call."""
    found = []

    def backend(gm, example):
        nodes = [n for n in gm.graph.nodes if n.op == "placeholder"]
        found.append((nodes, list(example), compat.frame_signature()))
        return gm.forward

    with torch.no_grad():
        torch.compile(fn, backend=backend)(*args, **kwargs)
    (only,) = found
    return only


def test_inputs_and_their_sources():
    class Net(Small):
        def __init__(self):
            super().__init__()
            self.plain = torch.ones(1)

        def forward(self, x, *, extra=()):
            return super().forward(x) + self.plain + extra[0]

    nodes, example, _ = caught(Net(), torch.rand(1, 3, 8, 8), extra=(torch.ones(1),))
    by_source = {compat.source_name(n): (n, x) for n, x in zip(nodes, example, strict=True)}
    static = {s for s, (_, x) in by_source.items() if compat.is_static_input(x)}
    registered = {s for s, (n, _) in by_source.items() if compat.is_registered(n)}
    assert {"L['x']", "L['extra'][0]"} <= set(by_source) - static
    assert static - registered == {"L['self'].plain"}
    assert "L['self']._modules['bn']._buffers['running_mean']" in registered
    paths = dict(zip(by_source, compat.weight_paths(nodes), strict=True))
    assert paths["L['self']._modules['bn']._buffers['running_mean']"] == "bn.running_mean"
    assert paths["L['self']._parameters['scale']"] == "scale"
    assert paths["L['x']"] == ""
    assert all(isinstance(x, torch.Tensor) and not hasattr(x, "fake_mode") for x in example)


def test_weights_of_a_module_that_is_assigned_to_are_registered():
    """Dynamo then reaches for the module's own dictionary, and names it."""

    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.h = nn.Parameter(torch.ones(1)), None
            self.register_buffer("floor", torch.zeros(1))

        def forward(self, x):
            self.h = x * self.gain + self.floor
            return self.h

    nodes, _, _ = caught(nn.Sequential(Cell()), torch.rand(1, 3))
    assert {p for p in compat.weight_paths(nodes) if p} == {"0.gain", "0.floor"}
    assert sum(compat.is_registered(n) for n in nodes) == 2


def test_paths_of_two_objects_are_given_up():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    nodes, _, _ = caught(lambda x: a(x) + b(x), torch.rand(1, 2))
    assert set(compat.weight_paths(nodes)) == {""}


def test_frame_of_a_forward_a_function_and_a_container():
    class Net(nn.Module):
        def forward(self, src, *rest, scale=2.0):
            return src * scale + sum(rest)

    signature, owner = caught(Net(), torch.ones(2), torch.ones(2))[2]
    assert (list(signature.parameters), owner) == (["self", "src", "rest", "scale"], "self")
    captured = torch.ones(2)
    signature, owner = caught(lambda x, y: x + y + captured, torch.ones(2), torch.ones(2))[2]
    assert (list(signature.parameters), owner) == (["x", "y"], "")
    nodes, _, (signature, owner) = caught(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
    assert (list(signature.parameters), owner) == (["args", "kwargs"], "")
    assert "L['args'][0]" in [compat.source_name(n) for n in nodes]
    assert compat.frame_signature() is None


def test_settings_of_inductor():
    assert compat.inductor_mode("max-autotune-no-cudagraphs")
    assert compat.inductor_mode("nonsense") is None
    assert compat.unknown_inductor_settings(["freezing", "fallback_random", "triton.cudagraphs", "nonsense"]) == [
        "nonsense"
    ]
    assert compat.prepares_freezing() is False


def test_unknown_torch_is_refused(monkeypatch):
    compat.require_supported_torch()
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.raises(BackendError, match=r"does not know torch 2\.99\.0"):
        compat.require_supported_torch()


def test_random_state_is_kept():
    before = torch.get_rng_state()
    with compat.own_random_state():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_compiler_of_inductor_is_told(tmp_path):
    assert compat.inductor_compiler()
    missing = torch._inductor.config.patch("cpp.cxx", (None, str(tmp_path / "c++")))
    with missing, pytest.raises(TargetError, match="no C\\+\\+ compiler"):
        backend_for("inductor").ready("inductor")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_sums_are_put_out_of_place_and_back():
    from torch._inductor.fx_passes import mkldnn_fusion

    before = mkldnn_fusion._can_be_inplace
    with compat.sums_out_of_place():
        assert mkldnn_fusion._can_be_inplace(None) is False
    assert mkldnn_fusion._can_be_inplace is before
