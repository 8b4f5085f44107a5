"""What the wild networks share: making random networks lively, and the list that a module adds its networks to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Case = tuple[nn.Module, tuple[Any, ...]]
Registry = dict[str, Callable[[], Case]]


def lively(model: nn.Module) -> nn.Module:
    """The model in eval mode with running statistics and scales that are not the defaults (folding must show)."""
    for m in model.modules():
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None:
            m.running_mean.uniform_(-0.3, 0.3)
            m.running_var.uniform_(0.5, 1.5)
        if isinstance(m, (_BatchNorm, nn.LayerNorm, nn.GroupNorm)) and m.weight is not None:
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.2, 0.2)
    return model.eval()


def registrar(registry: Registry) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """A decorator that files a maker of (model, example arguments) under its own name."""

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        def made() -> Case:
            model, example = make()
            return lively(model), example

        registry[make.__name__] = made
        return made

    return register
