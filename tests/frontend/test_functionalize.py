"""Writes through views become values: fixed cases, and random chains of views and writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from frontend_help import captured, operators, run, same
from hypothesis import given, settings
from hypothesis import strategies as st

from vqc.errors import CaptureError
from vqc.frontend import capture

Fn = Callable[[torch.Tensor], Any]


def slices_into_zeros(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    out[:-1, :1] = x[1:, :1]
    out[1:, 1:2] = x[:-1, 1:2]
    out[:, 2:] = x[:, 2:]
    return out


def numbers_into_slices(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    y[1:3] = 2.0
    y[..., ::2] = -1
    y[0, 1].fill_(x[0, 0, 0])
    return y


def view_of_a_view(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = x.clone()
    v = y.permute(1, 0, 2)[1:3].transpose(0, 2)
    v[0].mul_(3)
    return y, v


def read_after_a_write_to_the_base(x: torch.Tensor) -> torch.Tensor:
    y = x + 0
    row = y[1]
    y.add_(1)
    return row * 2


def chunks(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    a, b = y.chunk(2, 1)
    a.exp_()
    b[:] = a
    return y


def unbound(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    for i, row in enumerate(y.unbind(2)):
        row *= i
    return y


def diagonal(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.diagonal(0, 1, 2)[:] = 7
    return y


def windows(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.unfold(2, 2, 2).mul_(torch.tensor([1.0, -1.0]))
    return y


def strided(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    torch.as_strided(y, (2, 4), (1, 4), 2).zero_()
    return y + torch.as_strided(y, (4,), (1,), 1)


def masked(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[y > 0.5] = 0
    y.masked_fill_(y < 0.1, 1.0)
    y[:, (x[0, :, 0] > 0.3)] = 2
    return y


def by_number(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, torch.tensor([0, 2])] = x[:, :2]
    y.index_add_(0, torch.tensor([1]), x[:1])
    return y.scatter_(2, torch.zeros(3, 4, 1, dtype=torch.int64), 9.0)


def data_attribute(x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    y.data.add_(1)
    z = y.detach()
    z.data = z.data * 2
    return y + z


def out_argument(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    torch.add(x, 1, out=out)
    torch.mul(x[0], 2, out=out[1])
    return out


def in_place_shapes(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y.unsqueeze_(0).transpose_(1, 2)
    y[0, 1] += 1
    return y.squeeze_(0)


def written_empty(x: torch.Tensor) -> torch.Tensor:
    buffer = x.new_empty(2, *x.shape)
    for i in range(2):
        buffer[i] = x * i
    return buffer


def dtype_of_the_target(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(x.shape, dtype=torch.float64)
    y.copy_(x)
    y += x
    n = torch.zeros(3, dtype=torch.int64)
    n[1:] += 2
    return y * n[:, None, None]


def complex_views(x: torch.Tensor) -> torch.Tensor:
    y = x.reshape(3, 4, 1, 2).clone() if x.shape[2] == 2 else x[..., :2].clone()
    c = torch.view_as_complex(y)
    c.mul_(1j)
    return y


FIXED: list[Fn] = [
    slices_into_zeros, numbers_into_slices, view_of_a_view, read_after_a_write_to_the_base, chunks, unbound, diagonal,
    windows, strided, masked, by_number, data_attribute, out_argument, in_place_shapes, written_empty,
    dtype_of_the_target, complex_views,
]  # fmt: skip


@pytest.mark.parametrize("f", FIXED, ids=lambda f: f.__name__)
def test_writes(f: Fn):
    program = captured(lambda: f, torch.rand(3, 4, 4))
    assert not any(n.target._schema.is_mutable for n in program.calls if hasattr(n.target, "_schema"))


def test_writes_to_disjoint_parts_do_not_touch_the_others():
    def halves(x: torch.Tensor) -> torch.Tensor:
        a, b = (x * 1).split(2, 1)
        a += 1
        b *= 2
        return a + b

    assert "slice_scatter" not in operators(captured(lambda: halves, torch.rand(3, 4, 4)))


def test_a_whole_overwrite_leaves_nothing_of_the_old_value():
    def overwritten(x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(x)
        y[:] = x * 2
        return y

    assert operators(captured(lambda: overwritten, torch.rand(3, 4))) == ["mul"]


def test_memory_that_no_operator_wrote():
    def unwritten(x: torch.Tensor) -> torch.Tensor:
        y = torch.empty(3)
        return x + y

    with pytest.raises(CaptureError, match="no PyTorch operator has written") as caught:
        capture(unwritten, torch.rand(3))
    assert "return x + y" in caught.value.where and "torch.empty(3)" in caught.value.why


# ---- random chains ---------------------------------------------------------------------------------------------------

VIEWS: dict[str, Fn] = {
    "permute": lambda t: t.permute(*reversed(range(t.ndim))),
    "first": lambda t: t[:1],
    "odd": lambda t: t[..., 1::2],
    "select": lambda t: t[0] if t.ndim > 1 else t,
    "flat": lambda t: t.reshape(-1),
    "rows": lambda t: t.view(t.shape[0], -1) if t.is_contiguous() else t,
    "unsqueeze": lambda t: t.unsqueeze(1),
    "half": lambda t: t.chunk(2, 0)[0],
    "narrow": lambda t: t.narrow(-1, 0, max(1, t.shape[-1] - 1)),
}
WRITES: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "add": lambda t, x: t.add_(1),
    "scale": lambda t, x: t.mul_(x.mean()),
    "relu": lambda t, x: t.sub_(0.5).relu_(),
    "fill": lambda t, x: t.fill_(0.25),
    "copy": lambda t, x: t.copy_(x.flatten()[0]),
    "where": lambda t, x: t.masked_fill_(t > 0.5, 0.0),
}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_views_and_writes(data: st.DataObject):
    """Every view ever taken is written or read again in random order; all of them are returned."""
    plan = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["view", "write"]), st.integers(0, 9), st.sampled_from(sorted(VIEWS)),
                      st.sampled_from(sorted(WRITES))),
            min_size=1, max_size=8,
        )
    )  # fmt: skip

    def network(x: torch.Tensor) -> list[torch.Tensor]:
        known = [x * 1, torch.zeros(2, 4)]
        for kind, which, view, write in plan:
            t = known[which % len(known)]
            if t.numel() == 0:
                continue
            if kind == "view":
                known.append(VIEWS[view](t))
            else:
                WRITES[write](t, x)
        return [t.clone() for t in known]

    example = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(len(plan)))
    program = capture(network, example)
    other = example.flip(0) * 0.9
    same(run(program, (other,)), network(other))
