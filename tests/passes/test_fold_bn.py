"""fold-bn: every kind of convolution, before and after, shared weights, and what it must leave alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from handmade import Hand, aten, reasons
from torch import fx

from vqc import testing
from vqc.passes.fold_bn import FoldBN
from vqc.pipeline import PassContext
from vqc.program import Program

DEBUG = PassContext(debug=True)
CONV = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}


def statistics(h: Hand, channels: int, tag: str = "bn", affine: bool = True, shifts: bool = True) -> list[Any]:
    """weight, bias, mean and variance constants of a batch norm far from identity."""
    value = {
        "weight": h.rand(channels) + 2,
        "bias": h.rand(channels) if shifts else torch.zeros(channels),
        "mean": h.rand(channels) if shifts else torch.zeros(channels),
        "var": h.rand(channels).abs() + 0.3,
    }
    names = ("weight", "bias", "mean", "var") if affine else ("mean", "var")
    found = {n: h.const(f"{tag}.{n}", value[n]) for n in names}
    return [found.get(n) for n in ("weight", "bias", "mean", "var")]


def norm(h: Hand, x: fx.Node, stats: list[Any], eps: float = 1e-5, training: bool = False) -> fx.Node:
    return h(aten.batch_norm, x, *stats, training, 0.1, eps, False)


def weight_of(h: Hand, dim: int, transposed: bool, c_in: int, c_out: int, groups: int, kernel: int = 3) -> fx.Node:
    shape = (c_in, c_out // groups) if transposed else (c_out, c_in // groups)
    return h.const("conv.weight", h.rand(*shape, *([kernel] * dim)))


def convolve(h: Hand, dim: int, transposed: bool, x: fx.Node, w: fx.Node, b: Any, groups: int = 1,
             stride: int = 1, padding: int = 1) -> fx.Node:  # fmt: skip
    s, p, one = [stride] * dim, [padding] * dim, [1] * dim
    if transposed:
        return h(TRANSPOSED[dim], x, w, b, s, p, [0] * dim, groups, one)
    return h(CONV[dim], x, w, b, s, p, one, groups)


def changes(before: Program, *, rtol: float = 1e-5, **options: Any) -> Program:
    """Fold with the promise checked, and compare once more on other data, tighter."""
    after = FoldBN(**options)(before, DEBUG)
    testing.assert_same(before, after, 2, rtol=rtol, atol=1e-5)
    return after


# ---- the matrix: bn after ------------------------------------------------------------------------------------------

KINDS = list(itertools.product((1, 2, 3), (False, True)))
GROUPS = {"one": (4, 6, 1), "two": (4, 6, 2), "depthwise": (4, 4, 4), "multiplied": (2, 6, 2)}


@pytest.mark.parametrize(("dim", "transposed"), KINDS, ids=lambda v: str(v))
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("affine", [False, True], ids=["statistics", "affine"])
def test_norm_after(dim: int, transposed: bool, groups: str, bias: bool, affine: bool):
    """D7 among them: transposed convolutions of several groups."""
    c_in, c_out, g = GROUPS[groups]
    h = Hand()
    x = h.input("x", 2, c_in, *([5] * dim))
    w = weight_of(h, dim, transposed, c_in, c_out, g)
    b = h.const("conv.bias", h.rand(c_out)) if bias else None
    stats = statistics(h, c_out, affine=affine)
    before = h.done(norm(h, convolve(h, dim, transposed, x, w, b, g, stride=2), stats, eps=1e-3))
    after = changes(before)
    assert after.history[-1].rewrites == {"fold-bn-after": 1}
    testing.assert_ops(after, {"aten.batch_norm": 0, "*conv*": 1})
    assert sorted(after.constants) == ["conv.bias_folded", "conv.weight_folded"]


# ---- the matrix: bn before -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shifts", [False, True], ids=["centred", "shifts"])
@pytest.mark.parametrize("padding", [0, 1])
def test_norm_before(dim: int, groups: str, bias: bool, shifts: bool, padding: int):
    c_in, c_out, g = GROUPS[groups]
    h = Hand()
    x = h.input("x", 2, c_in, *([5] * dim))
    w = weight_of(h, dim, False, c_in, c_out, g)
    b = h.const("conv.bias", h.rand(c_out)) if bias else None
    stats = statistics(h, c_in, shifts=shifts)
    before = h.done(convolve(h, dim, False, norm(h, x, stats), w, b, g, stride=2, padding=padding))
    after = changes(before)
    if shifts and padding:
        assert after.history[-1].rewrites == {}
        conv = f"conv{dim}d"
        assert reasons(after) == {
            "batch_norm": f"its input x is no convolution; "
            f"{conv} sees a border of zeros, which the shift of the norm does not reach"
        }
    else:
        assert after.history[-1].rewrites == {"fold-bn-before": 1}
        testing.assert_ops(after, {"aten.batch_norm": 0})


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "folds"),
    [(3, 1, 0, False), (3, 1, 1, False), (3, 1, 2, True), (1, 1, 0, True), (2, 2, 0, False)],
)
@pytest.mark.parametrize("groups", ["one", "two"])
def test_norm_before_transposed(kernel: int, stride: int, padding: int, folds: bool, groups: str):
    """Only a crop that removes every position some tap does not reach leaves a constant shift."""
    c_in, c_out, g = GROUPS[groups]
    h = Hand()
    x = h.input("x", 1, c_in, 6, 6)
    w = weight_of(h, 2, True, c_in, c_out, g, kernel)
    stats = statistics(h, c_in)
    before = h.done(convolve(h, 2, True, norm(h, x, stats), w, None, g, stride, padding))
    assert changes(before).history[-1].rewrites == ({"fold-bn-before": 1} if folds else {})


def test_a_forced_fold_over_a_border_would_be_wrong(monkeypatch: pytest.MonkeyPatch):
    """The border precondition is not only careful: without it results are wrong, and debug mode says so."""
    from vqc.errors import NumericsError
    from vqc.passes import fold_bn

    h = Hand()
    x = h.input("x", 1, 3, 6, 6)
    w, stats = h.const("w", h.rand(4, 3, 3, 3)), statistics(h, 3)
    before = h.done(convolve(h, 2, False, norm(h, x, stats), w, None))
    monkeypatch.setattr(fold_bn.Layer, "sees_only_data", lambda self: True)
    with pytest.raises(NumericsError, match="pass fold-bn changed output 0"):
        FoldBN()(before, DEBUG)


def test_norm_before_several_layers():
    h = Hand()
    x = h.input("x", 1, 4, 5, 5)
    a, b = h.const("a.weight", h.rand(2, 4, 1, 1)), h.const("b.weight", h.rand(3, 4, 3, 3))
    stats = statistics(h, 4)
    y = norm(h, x, stats)
    both = h.done(convolve(h, 2, False, y, a, None, padding=0), convolve(h, 2, False, y, b, None, padding=0))
    assert changes(both).history[-1].rewrites == {"fold-bn-before": 2}


def test_norm_before_layers_of_which_one_cannot():
    h = Hand()
    x = h.input("x", 1, 4, 5, 5)
    a, stats = h.const("a.weight", h.rand(2, 4, 1, 1)), statistics(h, 4)
    y = norm(h, x, stats)
    after = changes(h.done(convolve(h, 2, False, y, a, None, padding=0), h(aten.relu, y)))
    assert after.history[-1].rewrites == {}
    assert reasons(after) == {"batch_norm": "its input x is no convolution; its reader relu is no convolution"}


# ---- linear ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_linear(bias: bool):
    h = Hand()
    x = h.input("x", 5, 4)
    w = h.const("fc.weight", h.rand(6, 4))
    b = h.const("fc.bias", h.rand(6)) if bias else None
    first, second = statistics(h, 4, "first"), statistics(h, 6, "second")
    before = h.done(norm(h, h(aten.linear, norm(h, x, first), w, b), second))
    after = changes(before)
    assert after.history[-1].rewrites == {"fold-bn-after": 1, "fold-bn-before": 1}
    testing.assert_ops(after, {"aten.linear": 1, "aten.batch_norm": 0})


def test_linear_over_another_dimension_stays():
    h = Hand()
    x = h.input("x", 2, 6, 4)
    w, stats = h.const("fc.weight", h.rand(6, 4)), statistics(h, 6)
    after = changes(h.done(norm(h, h(aten.linear, x, w), stats)))
    reason = reasons(after)["batch_norm"]
    assert reason.startswith("its channels are dimension 1, those of linear dimension 2")


# ---- shared weights --------------------------------------------------------------------------------------------------


def test_d5_one_weight_with_a_norm_per_step():
    """A convolution shared by time steps, each with its own batch norm: every step gets its own folded weight."""
    h = Hand()
    frames = [h.input(f"x{t}", 1, 3, 5, 5) for t in range(3)]
    w, b = h.const("conv.weight", h.rand(4, 3, 3, 3)), h.const("conv.bias", h.rand(4))
    stats = [statistics(h, 4, f"bn{t}") for t in range(3)]
    results = [norm(h, convolve(h, 2, False, x, w, b), s) for x, s in zip(frames, stats, strict=True)]
    after = changes(h.done(*results))
    assert after.history[-1].rewrites == {"fold-bn-after": 3}
    assert sum(name.startswith("conv.weight") for name in after.constants) == 3


def test_one_weight_with_a_shared_norm_is_folded_once():
    h = Hand()
    frames = [h.input(f"x{t}", 1, 3, 5, 5) for t in range(3)]
    w, stats = h.const("conv.weight", h.rand(4, 3, 3, 3)), statistics(h, 4)
    after = changes(h.done(*(norm(h, convolve(h, 2, False, x, w, None), stats) for x in frames)))
    assert after.history[-1].rewrites == {"fold-bn-after": 3}
    assert sorted(after.constants) == ["conv.bias_folded", "conv.weight_folded"]


def test_a_weight_used_with_and_without_norm():
    h = Hand()
    x = h.input("x", 1, 3, 5, 5)
    w, stats = h.const("conv.weight", h.rand(4, 3, 3, 3)), statistics(h, 4)
    after = changes(h.done(norm(h, convolve(h, 2, False, x, w, None), stats), convolve(h, 2, False, x, w, None)))
    assert sorted(after.constants) == ["conv.bias_folded", "conv.weight", "conv.weight_folded"]


@pytest.mark.parametrize("shared", [True, False], ids=["one-norm", "norm-per-step"])
def test_d6_unrolled_recurrence(shared: bool):
    """h <- relu(bn(conv(h + x))) three times over: the same convolution on its own folded result."""
    h = Hand()
    x = h.input("x", 1, 4, 5, 5)
    state = h.state("s", torch.zeros(1, 4, 5, 5))
    w, b = h.const("conv.weight", h.rand(4, 4, 3, 3) * 0.3), h.const("conv.bias", h.rand(4))
    stats = [statistics(h, 4, f"bn{t}") for t in range(1 if shared else 3)]
    hidden = state
    for t in range(3):
        total = h(aten.add.Tensor, hidden, x)
        hidden = h(aten.relu, norm(h, convolve(h, 2, False, total, w, b), stats[0 if shared else t]))
    after = changes(h.done(hidden, states=[hidden]))
    assert after.history[-1].rewrites == {"fold-bn-after": 3}
    testing.assert_ops(after, {"aten.batch_norm": 0, "aten.conv2d": 3})
    assert len(after.constants) == (2 if shared else 6)
    assert [s.name for s in after.states] == ["s"]


# ---- what stays ------------------------------------------------------------------------------------------------------


def test_a_convolution_with_another_reader_stays():
    h = Hand()
    x = h.input("x", 1, 3, 5, 5)
    w, stats = h.const("conv.weight", h.rand(4, 3, 3, 3)), statistics(h, 4)
    y = convolve(h, 2, False, x, w, None)
    relu = h(aten.relu, y)
    after = changes(h.done(norm(h, y, stats), relu))
    assert after.history[-1].rewrites == {}
    assert reasons(after) == {"batch_norm": "relu reads the result of conv2d too; the program returns it"}


def test_two_norms_on_one_result_stay():
    h = Hand()
    x = h.input("x", 1, 3, 5, 5)
    w, s1, s2 = h.const("conv.weight", h.rand(4, 3, 3, 3)), statistics(h, 4, "a"), statistics(h, 4, "b")
    y = convolve(h, 2, False, x, w, None)
    after = changes(h.done(norm(h, y, s1), norm(h, y, s2)))
    assert after.history[-1].rewrites == {}
    assert set(reasons(after)) == {"batch_norm", "batch_norm_1"}


def test_batch_statistics_stay():
    h = Hand()
    x = h.input("x", 2, 3, 5, 5)
    w, stats = h.const("conv.weight", h.rand(4, 3, 3, 3)), statistics(h, 4)
    before = h.done(norm(h, convolve(h, 2, False, x, w, None), [*stats[:2], None, None], training=True))
    after = changes(before, affine=True)
    assert reasons(after) == {"batch_norm": "it takes the statistics of the batch"}


def test_computed_parameters_stay():
    h = Hand()
    x = h.input("x", 1, 3, 5, 5)
    w, stats = h.const("conv.weight", h.rand(4, 3, 3, 3)), statistics(h, 4)
    scaled = h(aten.mul.Tensor, w, 0.5)
    after = changes(h.done(norm(h, convolve(h, 2, False, x, scaled, None), stats)))
    assert "the weight of conv2d is computed (fold-constants first" in reasons(after)["batch_norm"]


def test_a_norm_behind_a_view_stays_and_becomes_affine_on_request():
    h = Hand()
    x = h.input("x", 2, 3, 5, 5)
    w, stats = h.const("conv.weight", h.rand(4, 3, 3, 3)), statistics(h, 4)
    y = h(aten.reshape, convolve(h, 2, False, x, w, None), [2, 4, 25])
    before = h.done(h(aten.relu, norm(h, y, stats)))
    assert reasons(changes(before)) == {
        "batch_norm": "its input reshape is no convolution; its reader relu is no convolution"
    }
    after = changes(before, affine=True)
    assert after.history[-1].rewrites == {"affine": 1}
    testing.assert_text(after, """
        program hand
          input x: f32[2,3,5,5]
          conv2d: f32[2,4,5,5] = aten.conv2d(x, conv.weight, None, [1,1], [1,1])
          reshape: f32[2,4,25] = aten.reshape(conv2d, [2,4,25])
          mul: f32[2,4,25] = aten.mul.Tensor(reshape, batch_norm_scale)
          add: f32[2,4,25] = aten.add.Tensor(mul, batch_norm_shift)
          relu: f32[2,4,25] = aten.relu(add)
          return y = relu
    """)  # fmt: skip


def test_norms_in_a_row_before_a_convolution():
    """The second goes into the convolution, and then the first is the one before it."""
    h = Hand()
    x = h.input("x", 1, 3, 5, 5)
    w, s1, s2 = h.const("conv.weight", h.rand(4, 3, 3, 3)), statistics(h, 3, "a"), statistics(h, 3, "b")
    after = changes(h.done(convolve(h, 2, False, norm(h, norm(h, x, s1), s2), w, None, padding=0)))
    assert after.history[-1].rewrites == {"fold-bn-before": 2}


def test_an_unbatched_convolution_is_not_taken_for_a_batched_one():
    """conv2d of [C,H,W] has its channels first; a batch norm over dimension 1 of that is over rows."""
    h = Hand()
    x = h.input("x", 3, 5, 5)
    w, stats = h.const("conv.weight", h.rand(5, 3, 3, 3)), statistics(h, 5)
    after = changes(h.done(norm(h, convolve(h, 2, False, x, w, None), stats)))
    assert after.history[-1].rewrites == {}


# ---- scales ----------------------------------------------------------------------------------------------------------


def scaled(op: Any, *shape: int, swap: bool = False, **kwargs: Any) -> Program:
    h = Hand()
    x = h.input("x", 2, 3, 5, 5)
    w, b = h.const("conv.weight", h.rand(4, 3, 3, 3)), h.const("conv.bias", h.rand(4))
    other = h.const("gamma", h.rand(*shape) + 2) if shape else 0.25
    y = convolve(h, 2, False, x, w, b)
    return h.done(h(op, other, y, **kwargs) if swap else h(op, y, other, **kwargs))


@pytest.mark.parametrize("op", [aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1)], ids=str)
def test_scale(op: Any, shape: tuple[int, ...]):
    after = changes(scaled(op, *shape))
    assert after.history[-1].rewrites == {"fold-scale": 1}
    testing.assert_ops(after, {"*": 1})


def test_scale_from_the_left_and_alpha():
    assert changes(scaled(aten.mul.Tensor, 4, 1, 1, swap=True)).history[-1].rewrites == {"fold-scale": 1}
    assert changes(scaled(aten.sub.Tensor, 4, 1, 1, alpha=3)).history[-1].rewrites == {"fold-scale": 1}
    assert changes(scaled(aten.sub.Tensor, 4, 1, 1, swap=True)).history[-1].rewrites == {}
    assert changes(scaled(aten.add.Tensor, 4, 1, 1, swap=True, alpha=3)).history[-1].rewrites == {}


def test_what_is_no_scale_stays():
    assert changes(scaled(aten.mul.Tensor, 5)).history[-1].rewrites == {}  # one per column
    assert changes(scaled(aten.mul.Tensor, 2, 1, 1, 1)).history[-1].rewrites == {}  # one per picture
    assert changes(scaled(aten.div.Tensor_mode, 4, 1, 1, rounding_mode="floor")).history[-1].rewrites == {}
    assert changes(scaled(aten.mul.Tensor, 4, 1, 1), scales=False).history[-1].rewrites == {}


def test_scale_then_norm_then_scale():
    h = Hand("chain")
    x = h.input("x", 1, 3, 5, 5)
    w, gamma, stats = h.const("conv.weight", h.rand(4, 3, 3, 3)), h.const("gamma", h.rand(4, 1, 1)), statistics(h, 4)
    y = h(aten.mul.Tensor, norm(h, h(aten.mul.Tensor, convolve(h, 2, False, x, w, None), gamma), stats), 2.0)
    before = h.done(h(aten.relu, y))
    after = changes(before)
    assert after.history[-1].rewrites == {"fold-scale": 2, "fold-bn-after": 1}
    testing.assert_text(before, """
        program chain
          input x: f32[1,3,5,5]
          conv2d: f32[1,4,5,5] = aten.conv2d(x, conv.weight, None, [1,1], [1,1])
          mul: f32[1,4,5,5] = aten.mul.Tensor(conv2d, gamma)
          batch_norm: f32[1,4,5,5] = aten.batch_norm(mul, bn.weight, bn.bias, bn.mean, bn.var, False, 0.1, 1e-05, False)
          mul_1: f32[1,4,5,5] = aten.mul.Tensor(batch_norm, 2)
          relu: f32[1,4,5,5] = aten.relu(mul_1)
          return y = relu
    """)  # fmt: skip
    testing.assert_text(after, """
        program chain
          input x: f32[1,3,5,5]
          conv2d: f32[1,4,5,5] = aten.conv2d(x, conv.weight_folded_2, conv.bias_folded_2, [1,1], [1,1])
          relu: f32[1,4,5,5] = aten.relu(conv2d)
          return y = relu
    """)  # fmt: skip


def test_the_user_s_program_does_not_change():
    before = scaled(aten.mul.Tensor, 4, 1, 1)
    text, weight = str(before), before.constants["conv.weight"].clone()
    FoldBN()(before)
    assert str(before) == text
    assert torch.equal(before.constants["conv.weight"], weight)


def test_options_as_text():
    from vqc.pipeline import parse

    assert str(parse("fold-bn{affine=true,scales=false}")) == "fold-bn{affine=true,scales=false}"
    assert parse("fold-bn").passes == (FoldBN(),)
