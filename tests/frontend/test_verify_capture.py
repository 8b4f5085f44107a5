"""The check at the end of capture, and the private names that capture stands on."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import nn

from vqc.errors import CaptureError
from vqc.frontend import capture, compat
from vqc.frontend.verify import amount, difference


def test_memory_written_behind_an_operator_s_back():
    def network(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(4)
        values = (ctypes.c_float * 4).from_address(out.data_ptr())
        values[0] = 5.0
        return x + out

    with pytest.raises(CaptureError, match="not the network's"):
        capture(network, torch.rand(4))


CALLS = [0]


@torch.library.custom_op("vqc_test::rounds_differently", mutates_args=())
def rounds_differently(x: torch.Tensor) -> torch.Tensor:
    CALLS[0] += 1
    return x * (1 + 2e-7 * (CALLS[0] % 2))


@rounds_differently.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_a_network_that_amplifies_rounding_is_let_through_with_a_note():
    program = capture(lambda x: torch.sin(torch.ops.vqc_test.rounds_differently(x) * 1e7), torch.rand(3, 4) + 1)
    assert any("amplifies rounding" in n for n in program.notes)


def test_a_network_that_refuses_other_data():
    example = torch.rand(4)

    class Picky(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            type(self).calls += 1
            if type(self).calls == 2:
                raise ValueError("not this one")
            return x * 2

    program = capture(Picky().eval(), example)
    assert any("raises ValueError" in n for n in program.notes)


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        (torch.ones(3), torch.ones(3) + 1e-6, ""),
        (torch.ones(3), torch.ones(3) + 1e-2, "largest difference"),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), ""),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([1.0, 1.0]), "NaN"),
        (torch.tensor([float("inf")]), torch.tensor([float("-inf")]), "infinite"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "1 of 2"),
        (torch.ones(2), torch.ones(3), "became"),
        (torch.ones(2), torch.ones(2).double(), "became"),
        (torch.ones(2) * 1j, torch.ones(2) * 1j, ""),
        (torch.ones(0), torch.ones(0), ""),
    ],
)
def test_difference(a: torch.Tensor, b: torch.Tensor, problem: str):
    found = difference(a, b, 1e-4)
    assert (found == "") == (problem == "") and problem in found
    assert problem == "" or amount(a, b) > 0


def test_the_recorder_hears_whole_operators_before_autograd():
    heard = []

    def handler(op: object, args: tuple, kwargs: dict) -> object:
        heard.append(str(op))
        return op(*args, **kwargs)

    mode = compat.PreDispatchMode(handler)
    with torch.no_grad(), compat.listen(), mode:
        nn.functional.layer_norm(nn.functional.linear(torch.ones(2, 3), torch.ones(3, 3)), [3])
    assert heard == ["aten.ones.default", "aten.ones.default", "aten.linear.default", "aten.layer_norm.default"]
    assert compat.is_composite(torch.ops.aten.linear.default)
    assert not compat.is_composite(torch.ops.aten.relu.default)


def test_storage_keys():
    x = torch.rand(4)
    assert compat.storage_key(x) == compat.storage_key(x[1:]) == compat.storage_key(x.data)
    assert compat.storage_key(x) != compat.storage_key(x.clone())
    assert compat.storage_key(torch.eye(2).to_sparse()) == -1


def test_sparse_tensors_are_refused():
    with pytest.raises(CaptureError, match="to_dense"):
        capture(lambda x: torch.sparse.mm(torch.eye(3).to_sparse(), x), torch.rand(3, 3))


def test_capture_inside_inference_mode():
    with torch.inference_mode():
        program = capture(nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)).eval(), torch.rand(2, 3))
    assert len(program.calls) == 2
