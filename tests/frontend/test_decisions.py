"""Python reads values of the data: loggers pass, exact tests and input checks are assumed, the rest is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from frontend_help import captured, operators

from vqc.errors import CaptureError
from vqc.frontend import capture

X = torch.linspace(0.9, 0.1, 12).view(3, 4)


def logs_a_number(x: torch.Tensor) -> torch.Tensor:
    logging.getLogger("network").info("mean %f", x.mean().item())
    return x + 1


def prints(x: torch.Tensor) -> torch.Tensor:
    text = f"{x} {x.mean():.3f} {x!r}"
    return x + 1 if text else x


def logs_in_a_branch(x: torch.Tensor) -> torch.Tensor:
    if x.max() > 100 or not torch.isfinite(x).all():
        logging.getLogger("network").warning("large values")
    return x + 1


def cached_then_logged(x: torch.Tensor, store: dict[str, torch.Tensor] = {}) -> torch.Tensor:  # noqa: B006
    if "grid" not in store:
        store["grid"] = torch.linspace(0, 1, 4) * 2
    if x.sum() < 0:
        logging.getLogger("network").warning("negative")
    return x + store["grid"]


@pytest.mark.parametrize("f", [logs_a_number, prints, logs_in_a_branch, cached_then_logged], ids=lambda f: f.__name__)
def test_a_look_without_effect(f: Any, caplog: pytest.LogCaptureFixture):
    program = captured(lambda: f, X)
    assert operators(program) == ["add"]
    assert not program.assumptions
    assert "large values" not in caplog.text  # the branch that is only tried says nothing
    assert any("without effect" in n for n in program.notes) == (f is not prints)


def checks_its_input(x: torch.Tensor) -> torch.Tensor:
    if x.min() < 0:
        raise ValueError("negative pixels")
    return x.sqrt()


def asserts(x: torch.Tensor) -> torch.Tensor:
    assert torch.isfinite(x).all(), "not finite"
    return x.sqrt()


def equal_tensors(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if torch.equal(x[0], x[1]) else x * 3


def exact(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if (x[0] - x[1]).norm() == 0 else x * 3


@pytest.mark.parametrize(
    ("f", "expected", "text"),
    [(checks_its_input, False, "ValueError: negative pixels"), (asserts, True, "not finite"),
     (equal_tensors, False, "exact equality"), (exact, False, "exact equality")],
    ids=lambda v: getattr(v, "__name__", None),
)  # fmt: skip
def test_becomes_an_assumption(f: Any, expected: bool, text: str):
    program = captured(lambda: f, X)
    (a,) = program.assumptions
    assert a.expected is expected and text in a.text and "test_decisions.py" in a.where
    node = program.result_nodes[a.output]
    assert node.meta["val"].dtype == torch.bool and node.meta["val"].ndim == 0


def branches(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.mean() > 0.5 else x * 3


def loops(x: torch.Tensor) -> torch.Tensor:
    while x.mean() < 100:
        x = x * 2
    return x


def size_from_data(x: torch.Tensor) -> torch.Tensor:
    return x[: int(x.sum())]


def list_from_data(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(x.tolist())


def array_from_data(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.numpy() * 2)


def picked_by_mask(x: torch.Tensor) -> torch.Tensor:
    return x[x > 0.5]


def unique_values(x: torch.Tensor) -> torch.Tensor:
    return torch.unique(x)


def repeated(x: torch.Tensor) -> torch.Tensor:
    return torch.repeat_interleave(x, (x[:, 0] * 3).long(), dim=0)


def joint(x: torch.Tensor) -> torch.Tensor:
    flag = False
    if x.mean() > 100:
        flag = True
    if x.max() > 100 and flag:
        return x * 2
    return x * 3


@pytest.mark.parametrize(
    ("f", "line"),
    [(branches, "x.mean() > 0.5"), (loops, "while x.mean()"), (size_from_data, "int(x.sum())"),
     (list_from_data, "x.tolist()"), (array_from_data, "x.numpy()"), (picked_by_mask, "x[x > 0.5]"),
     (unique_values, "torch.unique(x)"), (repeated, "repeat_interleave")],
    ids=lambda v: getattr(v, "__name__", None),
)  # fmt: skip
def test_refused(f: Any, line: str):
    with pytest.raises(CaptureError) as caught:
        capture(f, X)
    assert line in caught.value.where
    assert caught.value.way_out


def test_tests_that_matter_only_together_are_assumed():
    program = capture(joint, X)
    assert program.assumptions and all(a.expected is False for a in program.assumptions)


def test_values_of_constants_are_read_freely():
    def network(x: torch.Tensor) -> torch.Tensor:
        sizes = torch.tensor([1, 2])
        kept = torch.nonzero(sizes > 1)
        return x[: int(sizes.sum())] * kept.shape[0] * sizes.numpy()[0] * (2 if sizes.sum() == 3 else 5)

    assert operators(captured(lambda: network, X)).count("mul") == 3


def test_tensors_made_of_tensors_stay_data():
    def network(x: torch.Tensor) -> torch.Tensor:
        return x * torch.tensor([x.max(), 2.0, x[0, 0], 1])

    assert "stack" in operators(captured(lambda: network, X))


def test_a_mask_s_places_may_take_a_number():
    def network(x: torch.Tensor) -> torch.Tensor:
        m = x > 0.5
        m[torch.where(m.sum(-1) == m.shape[-1])] = False
        return m.float()

    for example in (torch.zeros(3, 4), torch.ones(3, 4), X):
        captured(lambda: network, example)


def test_values_that_leak_past_the_operators_are_noticed():
    def network(x: torch.Tensor) -> torch.Tensor:
        return x * torch.FloatTensor([x[0, 0], 2.0, 3.0, 4.0])

    with pytest.raises(CaptureError, match="not the network's"):
        capture(network, X)


def test_random_numbers():
    def network(x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(4)

    def unused(x: torch.Tensor) -> torch.Tensor:
        torch.rand(3).normal_()
        return x + 1

    def slopes(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rrelu(x - 1, training=True)

    with pytest.raises(CaptureError, match="random numbers") as caught:
        capture(network, X)
    assert "torch.randn(4)" in caught.value.where
    with pytest.raises(CaptureError, match="random numbers"):
        capture(slopes, X)
    state = torch.get_rng_state()
    capture(unused, X)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_mode():
    with pytest.raises(CaptureError, match="training mode") as caught:
        capture(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)), torch.rand(1, 3, 4, 4))
    assert "eval()" in caught.value.way_out
