"""Soft rounding, LSQ gradients and grids against their definitions."""

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.learning.quantizers import (
    ActivationQuantizer,
    WeightQuantizer,
    annealed,
    inverse_soft_round,
    rounding_regulariser,
    soft_round,
)

qd = torch.ops.quantized_decomposed


def test_soft_rounding_inverts_and_ends():
    share = torch.linspace(0.01, 0.99, 99)
    torch.testing.assert_close(soft_round(inverse_soft_round(share)), share, rtol=0, atol=1e-5)
    assert soft_round(torch.tensor([-9.0, 9.0])).tolist() == [0.0, 1.0]
    assert float(rounding_regulariser(torch.tensor([-9.0, 9.0]), 2.0)) == pytest.approx(0, abs=1e-5)
    assert float(rounding_regulariser(inverse_soft_round(torch.tensor([0.5])), 2.0)) == pytest.approx(1, abs=1e-4)


def test_exponent_falls_in_a_line_after_the_warm_up():
    assert [annealed(i, 100, 0.2) for i in (0, 19, 20, 60, 100)] == [20, 20, 20, 11, 2]


def weight(bits=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(5, 3, 3, 3, generator=g)
    top = 2 ** (bits - 1) - 1
    scale = w.abs().amax((1, 2, 3)) / top * 0.8  # some lie beyond the grid
    latent = w / scale.view(-1, 1, 1, 1)
    given = torch.round(latent).clamp(-top, top).to(torch.int8)
    return w, WeightQuantizer(latent, scale, 0, top, given), given


def test_a_weight_starts_as_given_and_softly_as_in_float():
    w, q, given = weight()
    assert torch.equal(q.integers(), given)
    torch.testing.assert_close(q(), given.float() * q.scale.view(-1, 1, 1, 1))
    q.learned = True
    inside = (w / q.scale.view(-1, 1, 1, 1)).abs() < q.top
    share = (w / q.scale.view(-1, 1, 1, 1)).sub(q.below)
    steady = inside & (share > 0.01) & (share < 0.99)
    torch.testing.assert_close(q()[steady], w[steady], rtol=1e-4, atol=1e-5)
    assert torch.equal(q.integers().float().sub(q.below).unique(), torch.tensor([0.0, 1.0]))
    assert int(q.integers().abs().max()) <= q.top


def test_starting_from_other_integers():
    _, q, given = weight()
    q.learned = True
    other = (q.below + torch.randint(-2, 4, given.shape)).clamp(-q.top, q.top).to(torch.int8)
    q.start_from(other)
    assert torch.equal(q.integers(), other)


def test_starting_from_other_integers_leaves_the_choice_of_the_neighbour_on_the_side_of_the_float_weight():
    latent = torch.tensor([[0.4, 0.4, 0.4, 0.4, 6.9, -7.2]])
    q = WeightQuantizer(latent, torch.ones(1), 0, 7, torch.zeros(1, 6, dtype=torch.int8))
    q.start_from(torch.tensor([[0, 1, 3, -2, 7, -7]], dtype=torch.int8), confidence=0.8)
    assert q.below.tolist() == [[0, 0, 2, -2, 6, -7]]  # each of them, or one more
    torch.testing.assert_close(soft_round(q.v), torch.tensor([[0.1, 0.9, 0.9, 0.1, 0.9, 0.1]]))


def test_straight_weights_are_whole_and_have_the_soft_gradient():
    _, q, _ = weight()
    q.learned = True
    whole, soft = q(straight=True), q()
    torch.testing.assert_close(whole.detach(), q(soft=False).detach())
    g = torch.randn(whole.shape)
    (grad,) = torch.autograd.grad((whole * g).sum(), q.v)
    (want,) = torch.autograd.grad((soft * g).sum(), q.v)
    torch.testing.assert_close(grad, want)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.floats(0.01, 3.0), st.integers(0, 255), st.integers(0, 5))
def test_a_grid_is_that_of_the_operators(bits, scale, zero, seed):
    top = 2**bits - 1
    zero = min(zero, top)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 3
    q = ActivationQuantizer(torch.tensor([scale]), torch.tensor([zero]), top)
    want = qd.dequantize_per_tensor(qd.quantize_per_tensor(x, scale, zero, 0, top, torch.uint8), scale, zero, 0, top,
                                    torch.uint8)  # fmt: skip
    got = q(x).detach()
    # the scale is a float32 here and a double there: a value between two steps may go to either
    differs = (got - want).abs() > 1e-5 * scale * top
    assert float(differs.float().mean()) < 0.02
    assert float((got - want).abs().max()) <= scale * 1.001


def test_a_grid_puts_every_value_where_the_operator_does():
    """For a step that is a float32, to the last value; so it multiplies by 1 / step, as the operator does."""
    scale = float(torch.tensor(0.1))
    halves = (torch.arange(0, 255) + 0.5) * torch.tensor(0.1)
    x = torch.cat([halves, halves.nextafter(torch.tensor(0.0)), halves.nextafter(torch.tensor(99.0))])
    want = qd.quantize_per_tensor(x, scale, 0, 0, 255, torch.uint8)
    got = ActivationQuantizer(torch.tensor([scale]), torch.tensor([0]), 255)(x).detach() / scale
    assert torch.equal(got.round(), want.float())


def test_zero_points_stay_on_the_grid():
    q = ActivationQuantizer(torch.tensor([0.5]), torch.tensor([3]), 7)
    for value, want in ((-2.4, 0.0), (3.4, 3.0), (11.0, 7.0)):
        with torch.no_grad():
            q.zero.fill_(value)
        assert q.zero_point().item() == want


def test_grids_of_frames_learn_one_by_one():
    q = ActivationQuantizer(torch.tensor([0.5, 0.25]), torch.tensor([0, 4]), 7, axis=0)
    with torch.no_grad():
        q.log_scale += torch.tensor([2.0, 1.0]).log()
    torch.testing.assert_close(q.scale.detach(), torch.tensor([1.0, 0.25]))
    x = torch.tensor([[2.2, 9.0], [-9.0, 0.3]])
    y = q(x)
    assert y.tolist() == [[2.0, 7.0], [-1.0, 0.25]]
    y.sum().backward()
    # round(x/s) - x/s inside, the grid's end less the zero point outside, times s for the logarithm
    want = torch.tensor([2 - 2.2 + 7, (-4 + 1 - 1.2) * 0.25]) / (4 * 7) ** 0.5
    torch.testing.assert_close(q.log_scale.grad, want)


def test_channel_grids_do_not_learn():
    q = ActivationQuantizer(torch.tensor([0.1, 1.0]), torch.tensor([0, 300]), 255, axis=1)
    assert not q.learns and not q.zero.requires_grad and not q.log_scale.requires_grad
    x = torch.tensor([[[[1.03]], [[-290.2]]]])
    torch.testing.assert_close(q(x), torch.tensor([[[[1.0]], [[-290.0]]]]))


def test_gradients_are_those_of_lsq():
    """d/ds: round(x/s) - x/s inside, the grid's end less the zero point outside; d/dz: -s outside; d/dx: 1 inside."""
    x = torch.tensor([-5.0, -0.33, 0.2, 1.27, 9.0], requires_grad=True)
    q = ActivationQuantizer(torch.tensor([0.5]), torch.tensor([3]), 7)
    g = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (q(x) * g).sum().backward()
    steps = x.detach() / 0.5
    inside = torch.tensor([False, True, True, True, False])
    by_scale = torch.where(inside, torch.round(steps) - steps, torch.tensor([-3.0, 0, 0, 0, 4.0]))
    share = 1 / (5 * 7) ** 0.5
    assert q.log_scale.grad.item() == pytest.approx(float((by_scale * g).sum()) * 0.5 * share, rel=1e-5)
    assert q.zero.grad.item() == pytest.approx(float((-0.5 * g)[~inside].sum()) * share, rel=1e-5)
    assert torch.equal(x.grad, g * inside)


def test_values_that_stay_float_have_gradient_one():
    x = torch.tensor([9.0, 9.0], requires_grad=True)
    q = ActivationQuantizer(torch.tensor([0.5]), torch.tensor([3]), 7)
    y = q(x, torch.tensor([True, False]))
    y.sum().backward()
    assert y.tolist() == [9.0, 2.0] and x.grad.tolist() == [1.0, 0.0]
