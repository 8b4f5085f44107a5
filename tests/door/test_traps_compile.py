"""The traps of a torch.compile backend, each tried on the real engine: Inductor with frozen weights."""

from __future__ import annotations

import copy

import pytest
import torch
from door_helpers import Recurrent, Scanning, Small, frames, looped
from torch import nn

import vqc.backend
from vqc.backend import last_report, reports


@pytest.fixture(autouse=True)
def _clean():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def test_weights_by_identity_and_version():
    """A second instance, loaded, updated and replaced weights: one graph, never another model's weights."""
    x = frames(1)[0]
    first, second = Small(0), Small(1)
    fast_first, fast_second = torch.compile(first, backend="vqc"), torch.compile(second, backend="vqc")
    assert close(fast_first(x), first(x))
    assert close(fast_second(x), second(x))
    assert close(fast_first(x), first(x))
    assert (len(reports()), reports()[0].compilations) == (1, 2)
    first.load_state_dict(second.state_dict())
    assert close(fast_first(x), second(x))
    first.conv.weight.mul_(-1)
    assert close(fast_first(x), first(x))
    first.scale.data.mul_(2)  # counts no version: the documented hole
    vqc.backend.refresh()
    assert close(fast_first(x), first(x))
    first.double()
    assert close(fast_first(x.double()), first(x.double()))
    assert "frozen by Inductor" in last_report().route


def test_configuration_is_left_as_it_was():
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    conv, (x,) = nn.Conv2d(3, 2, 1).eval(), frames(1)
    before = inductor.get_config_copy(), dynamo.prepare_freezing, torch.get_rng_state(), torch.is_grad_enabled()
    torch.compile(conv, backend="vqc", options={"inductor": {"max_fusion_size": 7}})(x)
    after = inductor.get_config_copy(), dynamo.prepare_freezing, torch.get_rng_state(), torch.is_grad_enabled()
    assert after[0] == before[0]
    assert not inductor.freezing
    assert after[1] == before[1]
    assert torch.equal(after[2], before[2])
    assert after[3] == before[3]


def test_recurrent_buffer_is_a_state_and_ships_reset():
    model = Recurrent()
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend="vqc")
    x, *rest = frames(3)
    got, want = fast(x), twin(x)  # compiling must not have run a frame through the state
    assert close(got, want)
    for x in rest:
        assert close(fast(x), twin(x))
        assert close(model.hidden, twin.hidden)
    model.hidden.zero_()
    assert close(fast(frames(1)[0]), want)
    assert (last_report().constants, last_report().states, last_report().compilations) == (2, 1, 1)


def test_training_gets_gradients():
    model, x = Small(), frames(1)[0]
    twin = copy.deepcopy(model)
    fast = torch.compile(model, backend="vqc")
    with torch.enable_grad():
        fast(x).square().mean().backward()
        twin(x).square().mean().backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert close(p.grad, q.grad), name
    assert "training" in str(last_report())
    assert close(fast(x), model(x))  # without gradients it is another graph, with bound weights
    assert "weights bound" in last_report().route


def test_a_forward_that_switches_gradients_off_is_no_training():
    class Quiet(Small):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    model, x = Quiet(), frames(1)[0]
    with torch.enable_grad():
        got = torch.compile(model, backend="vqc")(x)
        assert torch.is_grad_enabled()
    assert close(got, model(x))
    assert not got.requires_grad
    assert "weights bound" in last_report().route


def test_inference_mode():
    model, x = Small(), frames(1)[0]
    fast = torch.compile(model, backend="vqc")
    with torch.inference_mode():
        assert close(fast(x), model(x))
        model.scale.mul_(2)
        assert close(fast(x), model(x))
    with torch.inference_mode():
        made_here = Small(3)
    with torch.inference_mode():
        made_fast = torch.compile(made_here, backend="vqc")
        assert close(made_fast(x), made_here(x))
        made_here.scale.mul_(2)  # such tensors count no versions, so they are no constants
        assert close(made_fast(x), made_here(x))
    assert last_report().constants == 0


def test_random_numbers_are_those_of_eager():
    fast = torch.compile(lambda x: x + torch.rand_like(x) + torch.randn(4), backend="vqc")
    x = torch.zeros(4)
    torch.manual_seed(3)
    got = fast(x), fast(x)
    torch.manual_seed(3)
    for g in got:
        assert torch.allclose(g, x + torch.rand_like(x) + torch.randn(4))


def test_results_that_are_weights_or_inputs_keep_their_memory():
    class Returns(Small):
        def forward(self, x):
            return super().forward(x), self.scale, self.conv.weight.view(-1), x.view(-1)

    model, x = Returns(), frames(1)[0]
    y, scale, weight, flat = torch.compile(model, backend="vqc")(x)
    assert scale is model.scale
    assert weight.data_ptr() == model.conv.weight.data_ptr()
    assert flat.data_ptr() == x.data_ptr()


def test_complex_and_integer_work():
    def rotate(x, angle, table):
        z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(z * torch.polar(torch.ones_like(angle), angle)).flatten(-2) + table[(x > 0).long()]

    x, angle, table = torch.randn(2, 4, 8), torch.randn(4, 4), torch.tensor([10, 20])
    assert torch.allclose(torch.compile(rotate, backend="vqc")(x, angle, table), rotate(x, angle, table), atol=1e-5)


def test_scan_through_inductor():
    model = Scanning()
    fast = torch.compile(model, backend="vqc")
    for t in (3, 5, 7, 9):
        clip = torch.stack(frames(t))
        assert close(fast(clip), looped(model, clip))
    assert len(reports()) == 2


def test_changing_float_argument_keeps_bound_weights():
    class Scaled(Small):
        def forward(self, x, t):
            return super().forward(x) * t + torch.full((1, 4, 1, 1), t)

    model, x = Scaled(), frames(1)[0]
    fast = torch.compile(model, backend="vqc")
    for t in (0.5, 0.25, 0.125):
        assert close(fast(x, t), model(x, t))
    assert [r.constants for r in reports()] == [7, 7]


def test_another_size_after_the_first():
    model = Small()
    fast = torch.compile(model, backend="vqc")
    for size in (8, 12, 10, 14, 16, 8):
        x = frames(1, size)[0]
        assert close(fast(x), model(x))
    assert len(reports()) == 2
    static, dynamic = reports()
    assert (static.compilations, dynamic.compilations) == (1, 3)  # two sizes of their own, then one code for all
    assert "for every size" in dynamic.route
