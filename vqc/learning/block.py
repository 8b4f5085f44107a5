"""Learning the roundings and grids of one block, so that it does what its float twin does on real frames.

AdaRound (arXiv 2004.10568), BRECQ (Li et al., ICLR 2021, arXiv 2102.05426), QDrop (Wei et al., ICLR 2022, arXiv
2203.05740). A block with a state is rolled out over several steps, from states as they are in the middle of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from vqc.calibration.split import Split
from vqc.distributed import Shard
from vqc.learning.frontier import Frontier, Place
from vqc.learning.quantizers import annealed, rounding_regulariser, soft_round
from vqc.learning.regions import Block
from vqc.learning.student import Student


@dataclass(frozen=True)
class Learning:
    """How a block learns.

    `iterations` steps of Adam, each on `batch` windows of `frames` consecutive frames. `drop`: the share of activations
    that stay float (QDrop; 0: none). `rounding`, `grids`: which parameters learn, at `rate` and `grid_rate`. `strength`
    of the rounding regulariser against the loss at the start; `warm_up`: the share of iterations without it.
    `straight`: weights are whole numbers while they learn, not soft ones.
    """

    iterations: int
    batch: int
    frames: int
    drop: float
    rounding: bool
    grids: bool
    rate: float
    grid_rate: float
    strength: float
    warm_up: float
    straight: bool
    float_activations: bool = False


Weights = dict[fx.Node, Tensor]  # of an output's squared error: one value, or [1,C,1,1] from a Fisher estimate


class BlockLearner:
    """One block of a student: its loss, and the parameters that lower it."""

    def __init__(self, frontier: Frontier, block: Block, split: Split, weights: Weights, generator: torch.Generator):
        self.frontier, self.block, self.split, self.generator = frontier, block, split, generator
        self.student: Student = frontier.student
        self.weights = weights
        self.scale = {n: 1 / power if (power := self._power(n)) > 0 else 0.0 for n in self.targets}
        self._pool: Tensor | None = None

    @property
    def targets(self) -> list[fx.Node]:
        """What has to be as in the twin: the block's outputs, next states among them."""
        return list(dict.fromkeys([*self.block.outputs, *self.block.states.values()]))

    def _power(self, n: fx.Node) -> float:
        total = [_mean_square(self.frontier.get("float", n, p)) for p in self.frontier.places if self.split.learns(*p)]
        return sum(total) / max(len(total), 1)

    # ---- judging -------------------------------------------------------------------------------------------------

    def error(self, held: bool, tag: str = "") -> float:
        """Mean error of the outputs kept under a tag, on held-out frames or on those learned from."""
        found = [self._distance(p, partial(self._kept, tag, p))
                 for p in self.frontier.places if self.split.learns(*p) != held]  # fmt: skip
        return float(torch.stack(found).mean())

    def _kept(self, tag: str, place: Place, n: fx.Node) -> Any:
        return self.frontier.get("low" + tag, n, place)

    def _distance(self, place: Place, value: Callable[[fx.Node], Any]) -> Tensor:
        total = torch.zeros(())
        for n in self.targets:
            pairs = zip(_tensors(value(n)), _tensors(self.frontier.get("float", n, place)), strict=True)
            for a, b in pairs:
                total = total + ((a - b).square() * self.weights.get(n, 1.0)).mean() * self.scale[n]
        return total / len(self.targets)

    # ---- learning ------------------------------------------------------------------------------------------------

    def learn(self, how: Learning, start: float, report: Callable[[int, int], None],
              shard: Shard) -> bool:  # fmt: skip
        """Learn; False when it diverged.

        The windows of a batch are shared by the processes of `shard`; all of them end with the same parameters.
        """
        if how.drop and self._pool is None:
            sizes = [x.numel() for n in (*self.block.nodes, *self.block.inputs) for x in _tensors(n.meta["val"])]
            self._pool = torch.rand(2 * max(sizes), generator=self.generator) < how.drop
        layers = [self.student.layers[n] for n in self.block.layers]
        grids = [self.student.activations[n] for n in self.block.nodes if n in self.student.activations]
        rounding = [layer.quantizer.v for layer in layers] if how.rounding else []
        moved = [p for q in grids if q.learns for p in (q.log_scale, q.zero)] if how.grids else []
        for layer in layers:
            layer.quantizer.learned = layer.quantizer.learned or how.rounding
        groups = [{"params": rounding, "lr": how.rate}, {"params": moved, "lr": how.grid_rate}]
        if not rounding and not moved:
            return True
        optimiser = torch.optim.Adam([g for g in groups if g["params"]])
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, how.iterations)
        count = sum(v.numel() for v in rounding)
        starts = [p for p in self.frontier.places if self.split.learns(*p)]
        for i in range(how.iterations):
            optimiser.zero_grad(set_to_none=True)
            drawn = [(starts[_below(len(starts), self.generator)], _below(1 << 40, self.generator))
                     for _ in range(how.batch)]  # fmt: skip
            mine = shard.share(drawn)
            loss = sum((self._window(place, seed, how) for place, seed in mine), torch.zeros(())) / max(len(mine), 1)
            if not math.isfinite(shard.mean(float(loss.detach()), len(mine))):
                return False
            if rounding and i >= how.warm_up * how.iterations:
                b = annealed(i, how.iterations, how.warm_up)
                pull = sum(rounding_regulariser(v, b) for v in rounding)
                loss = loss + how.strength * start / count * pull
            if loss.requires_grad:  # a process that got no window of the batch has nothing to add
                loss.backward()
            shard.average([p for g in optimiser.param_groups for p in g["params"]], len(mine))
            optimiser.step()
            if moved:
                cosine.step()
            report(i + 1, how.iterations)
        return True

    def _window(self, place: Place, seed: int, how: Learning) -> Tensor:
        """The loss over a few consecutive frames from a place on, the low-bit state carried."""
        generator = torch.Generator().manual_seed(seed)
        c, t = place
        frames = how.frames if self.block.states else 1
        first = max(0, min(t, self.split.starts[c] - frames))
        state = {s: self.frontier.get("low", s, (c, first)) for s in self.block.states}
        keep: Callable[[Tensor], Tensor] | None = None
        if how.float_activations:
            keep = _everything
        elif how.drop:
            keep = partial(self._mask, generator=generator)
        overrides = self.student.overrides(self.block.nodes, soft=True, straight=how.straight, keep=keep)
        losses = []
        for at in range(first, min(first + frames, self.split.starts[c])):
            inputs = self.frontier.inputs("low", self.block, (c, at))
            if how.drop:
                real = self.frontier.inputs("float", self.block, (c, at))
                inputs = {n: self._mixed(v, real[n], generator) for n, v in inputs.items()}
            out, after = self.frontier.step("low", self.block, inputs, state, overrides)
            found = out | {self.block.states[p]: v for p, v in after.items()}
            losses.append(self._distance((c, at), found.__getitem__))
            state = after
        return torch.stack(losses).mean()

    def _mixed(self, low: Any, real: Any, generator: torch.Generator) -> Any:
        """Some values of the low-bit input, the others of the float one (QDrop, equation 9)."""

        def mix(a: Any, b: Any) -> Any:
            return torch.where(self._mask(a, generator), b, a) if isinstance(a, Tensor) and a.is_floating_point() else a

        return pytree.tree_map(mix, low, real)

    def _mask(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A bool of x's shape, True where a value stays float: a random stretch of a pool that is drawn once."""
        assert self._pool is not None
        offset = _below(self._pool.numel() - x.numel() + 1, generator)
        return self._pool[offset : offset + x.numel()].view(x.shape)

    def undecided(self) -> float:
        """The share of soft roundings that are neither 0 nor 1 (h between 0.01 and 0.99)."""
        shares = [soft_round(self.student.layers[n].quantizer.v.detach()) for n in self.block.layers]
        every = torch.cat([h.reshape(-1) for h in shares])
        return float(((every > 0.01) & (every < 0.99)).float().mean())


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _everything(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(value) if isinstance(x, Tensor) and x.is_floating_point()]


def _mean_square(value: Any) -> float:
    found = [float(x.double().square().mean()) for x in _tensors(value)]
    return sum(found) / max(len(found), 1)
