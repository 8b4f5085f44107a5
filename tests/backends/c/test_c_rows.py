"""What follows the sums of an 8-bit convolution in its own call: pointwise chains, several readers, states."""

from __future__ import annotations

import pytest
import torch
from c_helpers import aten, chain, check, compiled
from c_random import Grower, same_results
from hypothesis import given, settings
from hypothesis import strategies as st

import vqc.ops  # noqa: F401
from vqc.program import evaluate

vops, qd = torch.ops.vqc, torch.ops.quantized_decomposed
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def generator():
    """Weights of this file's convolutions."""
    global G
    G = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.randn(shape, generator=G)


def levels(*shape):
    return torch.randint(0, 256, shape, generator=G).to(torch.uint8)


def conv(b, x, o=6, kernel=3, scale=1e-3, zero=12, groups=1):
    """A convolution with a float result of its input's size."""
    c = x.meta["val"].shape[1]
    weight = torch.randint(-128, 128, (o, c // groups, kernel, kernel), generator=G).to(torch.int8)
    zeros, pad = torch.tensor([zero], dtype=torch.int32), [kernel // 2] * 2
    scales = (torch.rand(o, generator=G) + 0.1) * scale
    return b.call(vops.qconv2d.default, x, weight, scales, rand(o), zeros, [1, 1], pad, [1, 1], groups)


def quantize(b, x, scale=0.05, zero=100, low=0, high=255, kind=torch.uint8):
    return b.call(qd.quantize_per_tensor.default, x, scale, zero, low, high, kind)


def quantize_channels(b, x, axis=1):
    size = x.meta["val"].shape[axis]
    scales, zeros = torch.rand(size, generator=G) * 0.1 + 0.01, torch.randint(0, 100, (size,), generator=G)
    return b.call(qd.quantize_per_channel.default, x, scales, zeros, axis, 0, 255, torch.uint8)


def same(program, names=(), **options):
    """Assert that two steps give the evaluated results to the bit; returns the kernels in order."""
    exe = compiled(program, **options)
    state = program.initial_state()
    for step in range(2):
        want = evaluate(program, program.example, state)
        exe.model._arena.fill_(255)  # what memory held before must not matter: as floats these are NaN
        same_results(want, exe.trace(program.example, state), f"step {step}, ", names)
        state = [want[s.output] for s in program.states]
    return [c.kernel for c in exe.model.model.lowered.calls]


X = (1, 5, 6, 9)


def each(*builds, target="native"):
    """Every function's results as those of one Program, with one u8 and two float inputs."""
    names: list[str] = []

    def build(b, x, y, z):
        results = []
        for f in builds:
            found = f(b, x, y, z)
            found = found if isinstance(found, tuple) else (found,)
            names.extend(f"{f.__name__} {i}" for i in range(len(found)))
            results += found
        return tuple(results)

    return same(chain(build, levels(2, *X[1:]), rand(2, 6, 6, 9), rand(2, 6, 1, 1)), names, target=target)


def relu_and_scale(b, x, y, z):
    return b.call(aten.relu.default, b.call(aten.mul.Tensor, conv(b, x), 0.5))


def activations(b, x, y, z):
    def last(v):
        return quantize(b, b.call(aten.add.Tensor, v, 0.25), 0.02)

    kinds = (vops.hardswish.default, vops.sigmoid.default, vops.tanh.default, vops.exp.default, aten.neg.default)
    made = [last(b.call(k, conv(b, x))) for k in kinds]
    made.append(last(b.call(aten.prelu.default, conv(b, x), rand(6))))
    made.append(last(b.call(aten.leaky_relu.default, conv(b, x), 0.1)))
    made.append(last(b.call(aten.clamp.default, conv(b, x), -1.0, 1.5)))
    made.append(last(b.call(aten.clamp.default, conv(b, x), None, INF)))
    return tuple(conv(b, m, 3) for m in made)


def residuals(b, x, y, z):
    before = b.call(aten.add.Tensor, y, conv(b, x))
    after = b.call(aten.relu.default, b.call(aten.sub.Tensor, b.call(aten.relu.default, conv(b, x)), y))
    both = b.call(aten.add.Tensor, conv(b, x), conv(b, x))
    alone = conv(b, x)
    return before, after, both, b.call(aten.mul.Tensor, alone, alone)


def gates(b, x, y, z):
    """Operands that do not move along positions, or along batches, and some that no row can hold."""
    shapes = ((6, 1, 1), (1, 6, 1, 1), (2, 1, 6, 9), (1, 1, 6, 9), (9,), (6, 1), (1,))
    factors = [z, *(rand(*s) for s in shapes)]
    made = [conv(b, quantize(b, b.call(aten.mul.Tensor, conv(b, x), v), 0.1), 3) for v in factors]
    turned = b.call(aten.permute.default, b.call(aten.view.default, y, [2, 6, 9, 6]), [0, 1, 3, 2])
    made.append(b.call(aten.add.Tensor, conv(b, x), turned))
    spread = b.call(aten.expand.default, b.call(aten.slice.Tensor, y, 1, 2, 3, 1), [2, 6, 6, 9])
    made.append(b.call(aten.maximum.default, conv(b, x), spread))
    some = b.call(aten.slice.Tensor, b.call(aten.cat.default, [y, y], 1), 1, 3, 9, 1)
    made.append(b.call(aten.add.Tensor, some, conv(b, x)))
    return tuple(made)


def choices(b, x, y, z):
    v = conv(b, x)
    mask = b.call(aten.lt.Scalar, y, 0.3)
    first = b.call(aten.where.self, mask, conv(b, x), y)
    own = b.call(aten.where.self, b.call(aten.gt.Scalar, v, 0.0), v, b.call(aten.mul.Tensor, v, 0.125))
    truth = b.call(aten.ge.Tensor, conv(b, x), y)
    either = b.call(aten.add.Tensor, b.call(aten.lt.Scalar, conv(b, x), 0.0), mask)  # of truth values: or
    return first, own, truth, either


def several_readers(b, x, y, z):
    """A float result that is stored once, and levels of it for several convolutions, before and after relu."""
    v = b.call(aten.add.Tensor, conv(b, x), y)
    r = b.call(aten.relu.default, v)
    found = [conv(b, quantize(b, v, 0.01 * k, 10 * k), 3) for k in range(1, 4)]
    found += [conv(b, q, 3) for q in (quantize_channels(b, v), quantize(b, r, 0.02, 0), quantize(b, r, 0.04, 7))]
    return (*found, b.call(aten.view.default, v, [2, 3, 12, 9]), r)


def one_level_and_its_readers(b, x, y, z):
    q = quantize(b, conv(b, x))
    return (conv(b, q, 3), q, b.call(qd.dequantize_per_tensor.default, q, 0.05, 100, 0, 255, torch.uint8),
            b.call(aten.add.Tensor, q, q), b.call(aten.max_pool2d.default, q, [2, 2]))  # fmt: skip


def followed_through_floats(b, x, y, z):
    """A reader that is levels only after some steps, one that is no convolution's, one whose step has no row."""
    v = b.call(aten.mul.Tensor, conv(b, x), 0.7)
    a = conv(b, quantize(b, b.call(aten.relu.default, b.call(aten.mul.Tensor, v, rand(6, 1, 1)))), 3)
    c = quantize(b, b.call(aten.relu.default, v), kind=torch.int8, low=-128, high=127, zero=3)
    d = conv(b, quantize(b, b.call(aten.remainder.Scalar, v, 1.25)), 3)
    e = b.call(qd.quantize_per_channel.default, v, torch.full((9,), 0.03), torch.arange(9), 3, 0, 255, torch.uint8)
    i = b.call(aten.add.Tensor, quantize(b, v, 0.07), levels(1))  # wraps
    return a, c, d, conv(b, e, 3), conv(b, i, 3), v


def every_result_type(b, x, y, z):
    """Limits of every integer, and truth: what is stored is held in the type's range."""
    wide = [conv(b, x, scale=s) for s in (1e-2, 1e0, 1e3, 1e12)]
    made = [quantize(b, v, 0.05, 0, -32768, 32767, torch.int16) for v in wide[:2]]
    kinds = ((wide[2], torch.int32), (wide[3], torch.int64), (wide[0], torch.bool))
    made += [b.call(aten._to_copy.default, v, dtype=kind) for v, kind in kinds]
    return (*made, quantize(b, conv(b, x), 0.5, -3, -100, 90, torch.int8))


def narrow_levels(b, x, y, z):
    """Limits inside u8, and zero points at both ends."""
    return tuple(conv(b, quantize(b, conv(b, x), 0.05, zero, low, high), 3)
                 for zero, low, high in ((0, 0, 255), (255, 0, 255), (100, 7, 200), (0, 0, 1), (3, 0, 15)))  # fmt: skip


def integers_as_operands(b, x, y, z):
    ints = [b.call(aten._to_copy.default, b.call(aten.mul.Tensor, y, 9.0), dtype=d)
            for d in (torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)]  # fmt: skip
    return tuple(b.call(aten.add.Tensor, conv(b, x), i) for i in ints)


def long_chains(b, x, y, z):
    """More operations than a row program takes, more tensors than it reads."""
    v, w, u = conv(b, x), conv(b, x), conv(b, x)
    for k in range(100):
        v = b.call((aten.add if k % 3 else aten.mul).Tensor, v, 1.0 - k / 50)
    for _ in range(25):
        w = b.call(aten.add.Tensor, w, rand(6, 1, 1))
        u = b.call(aten.sub.Tensor, u, b.call(aten.mul.Tensor, y, rand(2, 6, 6, 9)))
    return v, w, conv(b, quantize(b, u), 3)


def many_tensors_with_many_readers(b, x, y, z):
    """Each of the readers fits a row program, all of them together do not."""
    v = conv(b, x)
    for _ in range(11):
        v = b.call(aten.mul.Tensor, v, torch.rand(6, 1, 1, generator=G) + 0.5)
    found = []
    for _ in range(3):
        u = b.call(aten.add.Tensor, b.call(aten.mul.Tensor, v, rand(6, 1, 1)), rand(1, 6, 1, 1))
        found.append(conv(b, quantize_channels(b, u), 3))
    return (v, *found)


def odd_order(b, x, y, z):
    """Readers in another order than their operands, a result nobody reads, and one whose readers come late."""
    v = conv(b, x)
    conv(b, x)
    q = quantize(b, y)
    w = b.call(aten.relu.default, v)
    a = conv(b, q)
    late = b.call(aten.add.Tensor, a, w)
    again = b.call(aten.mul.Tensor, late, v)
    return conv(b, quantize(b, again), 3), late


def special_numbers(b, x, y, z):
    odd = rand(2, 6, 6, 9)
    odd[0, 0, 0, :6] = torch.tensor([NAN, INF, -INF, 1e30, -1e30, -0.0])
    v = b.call(aten.add.Tensor, conv(b, x), b.call(aten.mul.Tensor, y, odd))
    relu = b.call(aten.relu.default, v)
    return v, relu, conv(b, quantize(b, v), 3), conv(b, quantize(b, relu, 0.1, 0), 3)


def no_convolution_before(b, x, y, z):
    """Row programs without sums fill what a convolution reads."""
    a = conv(b, quantize(b, b.call(aten.relu.default, b.call(aten.mul.Tensor, y, z)), 0.02), 3)
    c = conv(b, quantize_channels(b, b.call(aten.sub.Tensor, y, 0.5)), 3)
    m = conv(b, b.call(aten.maximum.default, x, x), 3)
    whole = b.call(aten.abs.default, b.call(aten.mul.Tensor, y, 40.0))
    n = conv(b, b.call(aten._to_copy.default, whole, dtype=torch.uint8), 3)
    return a, c, m, quantize(b, y, 0.3), n


SMALL = (
    relu_and_scale, activations, residuals, gates, choices, several_readers, one_level_and_its_readers,
    followed_through_floats, narrow_levels, integers_as_operands, long_chains, many_tensors_with_many_readers,
    odd_order, special_numbers, no_convolution_before,
)  # fmt: skip


@pytest.mark.parametrize("target", ["native", "portable"])
def test_chains_after_a_convolution(target):
    calls = each(*SMALL, target=target)
    assert calls.count("vqc_rows_c4") and calls.count("vqc_qconv_c4") > 60


def test_results_of_every_type():
    check(chain(lambda b, x: every_result_type(b, x, None, None), levels(2, *X[1:])), exact=True)


def test_a_chain_is_one_call():
    def build(b, x, y):
        v = b.call(aten.add.Tensor, b.call(vops.hardswish.default, conv(b, x)), y)
        return conv(b, quantize(b, b.call(aten.relu.default, v)), 3), v

    assert same(chain(build, levels(*X), rand(1, 6, 6, 9))) == ["vqc_pack_c4", "vqc_qconv_c4", "vqc_qconv_c4"]


# ---- states --------------------------------------------------------------------------------------------------------


def test_a_state_is_read_before_it_is_written():
    """Fused readers of the old state run when their convolution does, and that is late."""

    def build(b, x, s, t):
        v = conv(b, x)
        new = b.call(aten.add.Tensor, v, s)  # the sums, the old state and the new one in one call
        gate = b.call(vops.sigmoid.default, conv(b, x))
        mixed = b.call(aten.add.Tensor, b.call(aten.mul.Tensor, gate, t), b.call(aten.mul.Tensor, new, 0.5))
        old = conv(b, quantize(b, s), 6)  # reads the old state once more, after the new one is there
        return [b.call(aten.add.Tensor, old, t), b.call(aten.mul.Tensor, s, 2.0)], [new, mixed]

    same(chain(build, levels(*X), states=[rand(1, 6, 6, 9), rand(1, 6, 6, 9)]))


def test_a_state_of_which_one_channel_is_read_by_all_is_not_written_over():
    def build(b, x, s):
        first = b.call(aten.slice.Tensor, s, 1, 0, 1, 1)
        new = b.call(aten.add.Tensor, conv(b, x), first)
        return [b.call(aten.neg.default, new)], [new]

    same(chain(build, levels(*X), states=[rand(1, 6, 6, 9)]))


def test_states_change_places_and_one_is_levels():
    def build(b, x, s, t, q):
        v = b.call(aten.relu.default, b.call(aten.add.Tensor, conv(b, q, 6), t))
        levels_next = quantize(b, b.call(aten.sub.Tensor, conv(b, x, 5), 0.5), 0.1)
        return [v, conv(b, q, 2)], [t, b.call(aten.add.Tensor, v, s), levels_next]

    same(chain(build, levels(*X), states=[rand(1, 6, 6, 9), rand(1, 6, 6, 9), levels(*X)]))


def test_a_gated_recurrence():
    """A GRU: the state is quantized, gated, mixed and written."""

    def build(b, x, h):
        q = b.call(aten.cat.default, [x, quantize(b, h)], 1)
        z, r = b.call(vops.sigmoid.default, conv(b, q)), b.call(vops.sigmoid.default, conv(b, q))
        reset = b.call(aten.mul.Tensor, r, h)
        new = b.call(vops.tanh.default, conv(b, b.call(aten.cat.default, [x, quantize(b, reset)], 1)))
        mixed = b.call(aten.add.Tensor, h, b.call(aten.mul.Tensor, z, b.call(aten.sub.Tensor, new, h)))
        return [b.call(aten.relu.default, mixed)], [mixed]

    same(chain(build, levels(*X), states=[rand(1, 6, 6, 9)]), threads=2)


# ---- large results without a convolution ---------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_large_results_in_the_memory_of_their_operands(threads):
    """Operands that die are written over, the old state too; those that are read otherwise as well are not."""

    def build(b, x, y, gate, mask, s):
        a = b.call(aten.relu.default, b.call(aten.add.Tensor, b.call(aten.mul.Tensor, x, 0.5), y))
        c = b.call(aten.mul.Tensor, b.call(vops.sigmoid.default, a), a)
        d = b.call(aten.mul.Tensor, b.call(aten.relu.default, c), gate)
        e = b.call(aten.where.self, mask, d, x)
        turned = b.call(aten.permute.default, b.call(aten.view.default, e, [2, 7, 40, 20]), [0, 1, 3, 2])
        f = b.call(aten.sub.Tensor, e, turned)  # reads e in two ways
        first = b.call(aten.expand.default, b.call(aten.slice.Tensor, f, 1, 0, 1, 1), [2, 7, 20, 40])
        g = b.call(aten.maximum.default, f, first)
        new = b.call(aten.add.Tensor, b.call(aten.mul.Tensor, s, 0.75), b.call(aten.clamp.default, g, -2.0, 2.0))
        return [b.call(aten.neg.default, g), b.call(aten.mul.Tensor, f, f), c], [new]

    shape = (2, 7, 20, 40)
    made = chain(build, rand(*shape), rand(*shape), rand(2, 7, 1, 1), rand(*shape) > 0, states=[rand(*shape)])
    assert same(made, threads=threads).count("vqc_rows_c4") >= 5
    shared = [c for c in compiled(made, threads=threads).model.model.lowered.calls if c.inplace and c.inplace[0].home]
    assert any(c.kernel == "vqc_rows_c4" for c in shared)


def test_large_results_of_every_rank():
    def build(b, *inputs):
        found = []
        for v in inputs:
            size = v.meta["val"].shape[-1]
            for w in (0.3, rand(size), b.call(aten.neg.default, v)):
                found.append(b.call(aten.relu.default, b.call(aten.mul.Tensor, b.call(aten.sub.Tensor, v, w), 1.5)))
        return tuple(found)

    same(chain(build, rand(5000), rand(70, 90), rand(3, 40, 100), rand(2, 3, 4, 5, 100), rand(5, 1, 900)))


# ---- random graphs -------------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 2**30))
def test_random_programs(seed):
    same(Grower(seed).grow(50), target="portable" if seed % 4 == 3 else "native")
