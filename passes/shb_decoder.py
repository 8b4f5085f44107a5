"""shb-decoder: the decoder in one bit, computed in full where the matte is uncertain and by 1x1 layers elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

import vqc.ops  # noqa: F401  (registers the operators)
from vqc.calibration import as_clips
from vqc.errors import PipelineError
from vqc.learning.signs import Aim, Layer, fit_layers, given_by, thresholds
from vqc.learning.uncertainty import choose_threshold, fit_producer, mask_nodes
from vqc.learning.upward import Decoder, ends, find_decoder, why_not
from vqc.learning.witness import Samples
from vqc.ops.fake_binary import SURROGATES, WEIGHT_FORMS
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program, shape_of

aten = torch.ops.aten
v = torch.ops.vqc


WIDEST = 5400  # inputs of a least-squares fit, signs of all levels and taps counted


@register
@dataclass(frozen=True)
class ShbDecoder(Pass):
    """shb-decoder: conv3x3 behind an upsample -> U(M) * B3(x) + B1(x), B binary layers in training form (BiVM, eq. 17).

    The float network says what each layer should give, so nothing has to be trained first: layer by layer, on what it
    sees of the layers before it and with the state carried, a layer's signs, factors and shifts are fitted to its float
    twin's result by least squares (`vqc.learning.signs`; behind a ReLU, what is below zero is free). Inputs are cut at
    `levels` thresholds a channel, all their signs feed one binary layer, and each further one of `bases` is fitted to
    what is left: n levels and m bases cost n * m times the operations of one, and lose far less. `mimic` can train the
    result on; `lower-binary` makes it binary and sparse operators.

    The mask M is 1 where a matte, guessed from the coarsest feature by a small float layer and cut at a threshold,
    changes when it loses an octave (eq. 14 and 15); the threshold is that of the greatest entropy (eq. 16) whose mask
    covers no more than `density`. B3 is fitted where its scale's U(M) is above zero, to what B1 leaves. One activation
    stands behind the sum, where BiVM has one behind each part.

    The decoder is found by form: all that is reached from a value resized upwards. Preconditions of a layer, each a
    reason when it fails: (1) it is behind such a value, at a finer scale than the coarsest; (2) conv2d, 3x3, stride,
    padding and dilation 1, no groups, a constant weight; (3) no pattern of `keep` fits it. With masks one result must
    be a matte [1,1,H,W], or be named by `result`. Valid before: a float program in canonical form, norms folded, with
    clips. Valid after: new nodes carry `meta["unit"]`; what stands for a twin's value has its name and
    `meta["imitates"]`. Counts "binary unit", "float unit", "mask producer", "mask".

    Options: `form`, `surrogate`: of signs (`vqc.ops.fake_binary`), for training; `sparse`: how many scales, the finest
    first, have masks (layers of the others are B3 alone; 0: no masks); `first`, `last`: "float" makes B3 and B1 of the
    layers that no other feeds, or that make results, float ones (without a mask: leaves them alone); `levels`, fewer in
    layers of so many inputs that a fit would take minutes; `bases`; `density`; `samples`: positions a layer is fitted
    at; `augment`: half of the frames are moved, recoloured and put over other backgrounds. Raises PipelineError for
    unknown ones, CalibrationError without clips.
    """

    name: ClassVar[str] = "shb-decoder"
    numerics: ClassVar[Numerics] = Lossy(-20.0)
    form: str = "reactnet"
    surrogate: str = "clip"
    keep: tuple[str, ...] = ()
    sparse: int = 4
    first: Literal["binary", "float"] = "binary"
    last: Literal["binary", "float"] = "binary"
    levels: int = 3
    bases: int = 2
    density: float = 0.35
    result: str = ""
    samples: int = 12000
    augment: bool = True

    def apply(self, program: Program, context: PassContext) -> PassResult:
        self._check()
        result = PassResult(program)
        decoder = find_decoder(program)
        if decoder is None:
            result.decline(program.name, "nothing is resized upwards: no decoder is found")
            return result
        units = self._units(program, decoder, result)
        if not units:
            return result
        twin = context.twin if context.twin is not None else program.clone()
        clips = as_clips(context.calibration, program)
        samples = Samples(program, twin, clips, units, self.samples, context.seed, self.augment, [decoder.top])
        masks: dict[tuple[int, int], fx.Node] = {}
        if self.sparse:
            matte = self._matte(program)
            if matte is None:
                result.decline(decoder.top, "no result is a matte [1,1,H,W]: nothing tells where it is uncertain "
                               "(sparse=0 needs none)")  # fmt: skip
                return result
            masks = self._masks(program, decoder, units, samples, matte, context, result)
        first, last = ends(program, units)
        for i, conv in enumerate(units):
            real = (conv in first and self.first == "float") or (conv in last and self.last == "float")
            if real and _size(conv) not in masks:
                result.decline(conv, "it is the first or the last of the decoder and stays float")
                continue
            context.report(f"{self.name} {conv.name}", i, len(units))
            samples.settle(units[i:], masks.values())
            self._replace(program, conv, masks.get(_size(conv)), samples, real)
            result.count("float unit" if real else "binary unit")
        return result

    def _check(self) -> None:
        for what, value, known in (("form", self.form, tuple(WEIGHT_FORMS)), ("surrogate", self.surrogate, SURROGATES),
                                   ("first", self.first, ("binary", "float")),
                                   ("last", self.last, ("binary", "float"))):  # fmt: skip
            if value not in known:
                raise PipelineError(f"shb-decoder has no {what} {value!r}", way_out="use one of " + ", ".join(known))
        if self.sparse < 0 or self.levels < 1 or self.bases < 1 or self.samples < 1 or not 0 < self.density <= 1:
            raise PipelineError(
                "shb-decoder needs levels, bases and samples of at least 1, a density in (0, 1], sparse from 0 up"
            )

    def _units(self, program: Program, decoder: Decoder, result: PassResult) -> list[fx.Node]:
        units = []
        for n in decoder.behind:
            if n.target in (aten.conv2d.default, aten.conv_transpose2d.input):
                reason = why_not(program, n, decoder.top, self.keep)
                if reason is None:
                    units.append(n)
                else:
                    result.decline(n, reason)
        return units

    def _matte(self, program: Program) -> str | None:
        """The result that tells where the network is uncertain: the one named, or the only one of one channel."""
        results = dict(zip(program.outputs, program.result_nodes, strict=False))
        if self.result and self.result not in results:
            raise PipelineError(f"program {program.name} has no result {self.result!r}",
                                way_out="use one of " + ", ".join(results))  # fmt: skip
        found = [k for k, n in results.items() if len(shape_of(n)) == 4 and shape_of(n)[:2] == (1, 1)]
        return self.result or (found[0] if len(found) == 1 else None)

    def _masks(self, program: Program, decoder: Decoder, units: list[fx.Node], samples: Samples, matte: str,
               context: PassContext, result: PassResult) -> dict[tuple[int, int], fx.Node]:  # fmt: skip
        features, mattes = samples.coarse(decoder.top, matte)
        producer, error = fit_producer(features, mattes)
        guesses = producer(features)
        threshold, entropy, density = choose_threshold(guesses, self.density)
        sizes = sorted({_size(n) for n in units})[-self.sparse :]  # the finest
        masks = mask_nodes(program, decoder.top, producer, threshold, sizes, matte)
        result.count("mask producer")
        result.count("mask", len(masks))
        size = "x".join(map(str, shape_of(decoder.top)[2:]))
        result.notes.append(f"the matte guessed at {size} is off by {error:.3f} on average; cut at {threshold:.3g} "
                            f"(entropy {entropy:.3f}) the mask covers "
                            f"{100 * density:.1f} % of the finer scales")  # fmt: skip
        if density == 0:
            result.notes.append("the mask is empty on every calibration frame: 1x1 layers alone are computed")
        return masks

    def _replace(self, program: Program, conv: fx.Node, mask: fx.Node | None, samples: Samples, real: bool) -> None:
        """Put a pair (or, without a mask, one layer) in place of a convolution and its ReLU, fitted to the twin."""
        x, want, share = samples.at(conv, mask, 3)
        x_node = conv.args[0]
        assert isinstance(x_node, fx.Node)
        inputs = shape_of(x_node)[1]
        relu = _only_relu(conv)
        centre = x.view(len(x), inputs, 9)[:, :, 4]
        levels = max(1, min(self.levels, WIDEST // (9 * inputs)))
        cuts = None if real else thresholds(centre, levels)
        form = None if real else self.form
        aim = Aim(want, relu=relu is not None)
        narrow: list[Layer] = []
        if mask is not None:
            narrow, given = self._narrow(centre, cuts, aim, share, inputs, form)
            inside = share > 0
            x, aim = x[inside], Aim(want[inside], given[inside], share[inside], relu is not None)
        wide, _ = fit_layers(x, cuts, aim, inputs, form, self.bases)
        old = relu or conv
        with program.graph.inserting_before(old):
            y = self._unit(program, conv, narrow, None, None) if mask is not None else None
            y = self._unit(program, conv, wide, mask, y)
            if relu is not None:
                slope = program.add_constant(f"{_base(conv)}.slope", torch.zeros(len(want[0])))
                y = program.call(aten.prelu.default, (y, slope), like=old)
                y.meta["unit"] = True
        _stand_in(program, conv, old, y)

    def _narrow(self, centre: Tensor, cuts: Tensor | None, aim: Aim, share: Tensor, inputs: int, form: str | None
                ) -> tuple[list[Layer], Tensor]:  # fmt: skip
        """The 1x1 layer, for where it speaks alone, unless that is hardly anywhere; what it gives everywhere."""
        alone = share < 0.5
        if int(alone.sum()) < 4 * inputs * self.levels:
            return fit_layers(centre, cuts, aim, inputs, form, self.bases)
        layers, _ = fit_layers(centre[alone], cuts, Aim(aim.want[alone], relu=aim.relu), inputs, form, self.bases)
        return layers, given_by(layers, centre, inputs, form)

    def _unit(self, program: Program, conv: fx.Node, layers: list[Layer], mask: fx.Node | None, y: fx.Node | None
              ) -> fx.Node:  # fmt: skip
        """A float convolution, or binary layers that read the same signs, each under the mask; added to `y`."""
        x: Any = conv.args[0]
        kernel = layers[0].weight.shape[-1]
        base = f"{_base(conv)}.bin{kernel}"
        before = set(program.calls)
        geometry = ([1, 1], [kernel // 2] * 2)

        def const(what: str, value: Tensor) -> fx.Node:
            return program.add_constant(f"{base}.{what}", value.contiguous())

        def term(value: fx.Node) -> fx.Node:
            value = value if mask is None else program.call(aten.mul.Tensor, (mask, value), like=conv)
            return value if y is None else program.call(aten.add.Tensor, (value, y), like=conv)

        tau = layers[0].tau
        if tau is None:
            weight, bias = const("weight", layers[0].weight), const("bias", layers[0].shift.flatten())
            y = term(program.call(aten.conv2d.default, (x, weight, bias, *geometry), like=conv))
        else:
            if len(tau) > shape_of(x)[1]:
                x = program.call(aten.cat.default, ([x] * (len(tau) // shape_of(x)[1]), 1), like=conv)
            x = program.call(v.fake_binarize.default, (x, const("tau", tau), self.surrogate), like=conv)
            for i, layer in enumerate(layers):
                end = "" if i == 0 else str(i + 1)
                assert layer.factor is not None
                weight = const(f"weight{end}", layer.weight)
                signs = program.call(v.fake_binarize_weight.default, (weight, self.form), like=conv)
                sums = program.call(aten.conv2d.default, (x, signs, None, *geometry), like=conv)
                sums = program.call(aten.mul.Tensor, (sums, const(f"factor{end}", layer.factor)), like=conv)
                if i == 0:
                    sums = program.call(aten.add.Tensor, (sums, const("shift", layer.shift)), like=conv)
                y = term(sums)
        assert y is not None
        for n in program.calls:
            if n not in before:
                n.meta["unit"] = True
        return y


def _base(conv: fx.Node) -> str:
    return str(conv.args[1].target).removesuffix("_folded").removesuffix(".weight")


def _size(n: fx.Node) -> tuple[int, int]:
    shape = shape_of(n)
    return shape[-2], shape[-1]


def _only_relu(conv: fx.Node) -> fx.Node | None:
    users = list(conv.users)
    return users[0] if len(users) == 1 and users[0].target is aten.relu.default else None


def _stand_in(program: Program, conv: fx.Node, old: fx.Node, new: fx.Node) -> None:
    """Put `new` in place of `old`, under its name: the twin's value of that name is what it should be."""
    old.replace_all_uses_with(new)
    program.graph.erase_node(old)
    if conv is not old:
        program.graph.erase_node(conv)
    new.name = old.name
    users = list(new.users)
    gate = len(users) == 1 and users[0].target in (aten.sigmoid.default, aten.tanh.default)
    (users[0] if gate else new).meta["imitates"] = True  # a gate is judged by what it lets through
