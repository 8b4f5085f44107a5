"""binarize: convolutions and linear layers of a float network in one bit, in training form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import fx

import vqc.ops  # noqa: F401  (registers the vqc:: operators)
from vqc.calibration.clips import Clips, as_clips
from vqc.calibration.observe import rollout
from vqc.models.binary import METHODS
from vqc.ops.exact import argument
from vqc.ops.fake_binary import WEIGHT_FORMS
from vqc.passes.observe import quantizable
from vqc.passes.quantize import first_layers, tail_layers
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, op_text, shape_of

aten = torch.ops.aten
v = torch.ops.vqc

Method = Literal["bnn", "xnor", "dorefa", "reactnet", "recu", "bimatting"]  # keys of vqc.models.binary.METHODS

# What an RPReLU takes the place of.
ACTIVATIONS = {aten.relu.default, aten.relu6.default, aten.prelu.default, aten.leaky_relu.default, aten.elu.default,
               aten.hardswish.default, aten.hardtanh.default, aten.silu.default, aten.gelu.default}  # fmt: skip
SLOPE = 0.25  # of an RPReLU to begin with, as ReActNet's


@register
@dataclass(frozen=True)
class Binarize(Pass):
    """binarize: layer(x, w, b) -> layer(sign(x - tau), sign(w)) * factor + shift, a constant each for every channel.

    The program is in training form then (`vqc::fake_binarize`, straight-through gradients) and begins far from the
    float network: it has to be trained before it is lowered. Factor and shift begin so that mean and standard deviation
    of each channel of a layer's result are those of the float layer on the calibration clips; without clips the factor
    is the mean size of the channel's weights and the shift the layer's bias. A layer's input changes with the layers
    before it, so all are measured `rounds` times over: layers that have fewer binary ones before them are then exact.
    Thresholds that a method learns begin at the mean of the input's channel, else at 0: behind a ReLU every sign would
    be +1. Where a method has none, such layers are noted.

    Preconditions of a rewrite, each a reason when it fails: (1) the weight is a constant; (2) conv2d, or linear on
    [N,C]; (3) the layer is not kept by `keep` or `ends`; (4) it has no groups, or `force_groups`: a depthwise layer of
    nine signs makes ten different sums, which is where binarized mobile networks fail.
    Valid before: a float program in canonical form, norms folded. Valid after: `fold-constants` and `lower-binary` make
    it binary operators (layers of groups stay in floats). Counts "layer", "rprelu".

    Options: `method` - weight form, surrogate gradient and thresholds of a published method; `ends` - "float" keeps the
    layers that a picture reaches first and those that make results; `keep` - names of nodes or modules (shell
    patterns) kept float; `force_groups`; `rprelu` - the activation behind a layer becomes ReActNet's
    prelu(x - g) + z, with g = z = 0 and slopes 0.25 to begin with; `rounds`.
    Sources: `vqc.ops.fake_binary` names those of the methods.
    """

    name: ClassVar[str] = "binarize"
    numerics: ClassVar[Numerics] = Lossy(-20.0)  # of the same mean and size, no more
    method: Method = "bimatting"
    ends: Literal["float", "binary"] = "float"
    keep: tuple[str, ...] = ()
    force_groups: bool = False
    rprelu: bool = False
    rounds: int = 3

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        ends = first_layers(program) | tail_layers(program) if self.ends == "float" else set()
        layers = set(quantizable(program))
        chosen = []
        for n in program.calls:
            if n in layers or _reads_floats(n):
                reason = self._reason(n, n in layers, n in ends)
                if reason is None:
                    chosen.append(n)
                else:
                    result.decline(n, reason)
        clips = None if context.calibration is None or not chosen else as_clips(context.calibration, program)
        want: dict[str, Spread] = {}
        inputs: dict[str, Spread] = {}
        if clips is not None:
            want = _spread(program, clips, [*chosen, *(n.args[0] for n in chosen)])
            inputs = {n.name: want[n.args[0].name] for n in chosen}
        sites = {}
        for n in chosen:
            name = n.name
            sites[name] = self._rewrite(program, n, inputs.get(name))
            result.count("layer")
        if clips is not None:
            for i in range(self.rounds):
                context.report("binarize: rounds of measuring", i, self.rounds)
                have = _spread(program, clips, [s.sums for s in sites.values()])
                for name, site in sites.items():
                    site.match(program, have[site.sums.name], want[name])
                    if i + 1 == self.rounds and not have[site.sums.name].deviation.any():
                        result.notes.append(f"{name}: its sums are always the same: no input crosses its threshold")
            context.report("binarize: rounds of measuring", self.rounds, self.rounds)
        if self.rprelu:
            for site in sites.values():
                self._activation(program, site.last, result)
        return result

    def _reason(self, n: fx.Node, constant: bool, end: bool) -> str | None:
        for pattern in self.keep:
            if fnmatchcase(n.name, pattern) or fnmatchcase(n.meta.get("module", ""), pattern):
                return f"kept in float by {pattern!r}"
        if n.target not in (aten.conv2d.default, aten.linear.default):
            return f"there is no binary operator for {op_text(n.target)}"
        if not constant:
            return "its weight is no constant of float32"
        want = 4 if n.target is aten.conv2d.default else 2
        if len(shape_of(n)) != want:
            return f"its result has {len(shape_of(n))} axes, binary operators make {want} here"
        if end:
            return "a picture reaches it first, or it makes a result (ends=float)"
        groups = 1 if n.target is aten.linear.default else int(argument(n, "groups"))
        if groups > 1 and not self.force_groups:
            return f"it has {groups} groups, and signs of few weights say little (force_groups=true binarizes it)"
        return None

    def _rewrite(self, program: Program, n: fx.Node, seen: Spread | None) -> Site:
        how = METHODS[self.method]
        base = str(n.args[1].target)
        weight, bias = program.constant(n.args[1]), program.constant(argument(n, "bias"))
        assert weight is not None and isinstance(n.args[0], fx.Node)
        start = torch.zeros(shape_of(n.args[0])[1] if how.threshold == "channel" else 1)
        if seen is not None and how.threshold != "zero":
            start = seen.mean.float() if how.threshold == "channel" else seen.mean.mean(0, keepdim=True).float()
        form = self.method if WEIGHT_FORMS[self.method].scale != "one" else "reactnet"
        view = (-1, *[1] * (len(shape_of(n)) - 2))
        factor = v.binary_scale(weight, form)
        shift = torch.zeros(len(weight)) if bias is None else bias.clone()
        with program.graph.inserting_before(n):
            tau = program.add_constant(f"{base}_tau", start)
            by = program.add_constant(f"{base}_factor", factor.view(view))
            to = program.add_constant(f"{base}_shift", shift.view(view))
            signs = program.call(v.fake_binarize.default, (n.args[0], tau, how.surrogate), like=n)
            binary = program.call(v.fake_binarize_weight.default, (n.args[1], how.form), like=n)
            sums = program.call(
                n.target, (signs, binary, None, *n.args[3:]), {k: a for k, a in n.kwargs.items() if k != "bias"}, like=n
            )
            scaled = program.call(aten.mul.Tensor, (sums, by), like=n)
            last = program.call(aten.add.Tensor, (scaled, to), like=n)
        n.replace_all_uses_with(last)
        name = n.name
        program.graph.erase_node(n)
        last.name = name  # it stands for the float layer's value: learning passes look it up in the twin
        return Site(sums, last, str(by.target), str(to.target))

    def _activation(self, program: Program, last: fx.Node, result: PassResult) -> None:
        users = list(last.users)
        if len(users) != 1 or users[0].target not in ACTIVATIONS or users[0].args[0] is not last:
            result.decline(last, "no activation alone reads it: no RPReLU")
            return
        act, channels = users[0], shape_of(last)[1]
        view = (-1, *[1] * (len(shape_of(last)) - 2))
        with program.graph.inserting_before(act):
            before, behind, slope = (
                program.add_constant(f"{last.name}_rprelu_{what}", torch.full((channels,), value).view(shape))
                for what, value, shape in (("g", 0.0, view), ("z", 0.0, view), ("slope", SLOPE, (-1,)))
            )
            y = program.call(aten.sub.Tensor, (last, before), like=act)
            y = program.call(aten.prelu.default, (y, slope), like=act)
            y = program.call(aten.add.Tensor, (y, behind), like=act)
        act.replace_all_uses_with(y)
        name = act.name
        program.graph.erase_node(act)
        y.name = name
        result.count("rprelu")


def _reads_floats(n: fx.Node) -> bool:
    """Layers that `quantizable` leaves out: those of other kinds, and of weights that are no constants."""
    return op_text(n.target).split(".")[-1] in ("conv1d", "conv2d", "conv3d", "linear")


@dataclass(frozen=True)
class Site:
    """A rewritten layer: its sums of signs, its result, and the names of its constants."""

    sums: fx.Node
    last: fx.Node
    factor: str
    shift: str

    def match(self, program: Program, have: Spread, want: Spread) -> None:
        """Set factor and shift so that sums of mean and deviation `have` become results of `want`."""
        old, mean = program.constants[self.factor], want.mean
        moves = have.deviation > 0
        factor = torch.where(moves, want.deviation / have.deviation.clamp_min(1e-30), old.reshape(-1).double())
        program.constants[self.factor] = factor.float().view(old.shape)
        program.constants[self.shift] = (mean - have.mean * factor).float().view(old.shape)


@dataclass
class Spread:
    """Moments of each channel (axis 1), float64 [C]."""

    count: int
    first: torch.Tensor
    second: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        return self.first / self.count

    @property
    def deviation(self) -> torch.Tensor:
        return (self.second / self.count - self.mean.square()).clamp_min(0).sqrt()


def _spread(program: Program, clips: Clips, nodes: Sequence[Any]) -> dict[str, Spread]:
    """Moments of the values of nodes over clips, the state carried, by the nodes' names."""
    watched = set(nodes)
    found: dict[str, Spread] = {}

    def add(n: fx.Node, value: Any) -> None:
        x = value.detach().double()
        axes = [a for a in range(x.ndim) if a != 1]
        new = Spread(x.numel() // x.shape[1], x.sum(axes), x.square().sum(axes))
        old = found.get(n.name)
        if old is not None:
            new = Spread(old.count + new.count, old.first + new.first, old.second + new.second)
        found[n.name] = new

    rollout(program, clips, lambda n, value, t: add(n, value) if n in watched else None)
    return found
