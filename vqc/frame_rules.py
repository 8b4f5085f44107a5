"""How each family of operators carries frames from its arguments to its result; see `vqc.frames`.

A rule gets a `Call` and returns the frames of its result. Operators that no table names mix the frames they see.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from vqc.arguments import bind, is_elementwise, op_name
from vqc.frames import MIXED, NONE, Frames, mix, placed, reshaped

Result = Frames | tuple[Frames, ...]


@dataclass
class Call:
    """One call with the frames of everything it reads."""

    node: fx.Node
    layout: Mapping[str, Frames]

    def __post_init__(self) -> None:
        has_schema = isinstance(self.node.target, torch._ops.OpOverload)
        self.args: dict[str, Any] = bind(self.node) if has_schema else {}
        self.first: Any = self.node.args[0] if self.node.args else None

    def of(self, value: Any) -> Frames:
        return self.layout[value.name] if isinstance(value, fx.Node) else NONE

    def inputs(self) -> list[fx.Node]:
        return [n for n in self.node.all_input_nodes if "val" in n.meta]

    def shape(self, value: fx.Node | None = None) -> tuple[int, ...]:
        return tuple((value or self.node).meta["val"].shape)

    def mixed(self) -> Frames:
        return mix([self.layout[n.name] for n in self.inputs()])

    def others_neutral(self, *but: Any) -> bool:
        return not any(self.layout[n.name].carries for n in self.inputs() if not any(n is b for b in but))

    def dims(self, name: str, rank: int) -> list[int]:
        """A dim argument as non-negative numbers; none given means all."""
        value = self.args.get(name)
        if value is None or value == []:
            return list(range(rank))
        return [d % rank for d in (value if isinstance(value, (list, tuple)) else [value])]


def join(parts: Sequence[tuple[Frames, tuple[int, ...]]], rank: int) -> Frames:
    """Frames of an elementwise combination, shapes broadcast from the right to `rank` dimensions."""
    seen = [f.moved(f.axis + rank - len(shape)) for f, shape in parts if f.carries]
    if not seen:
        return NONE
    return seen[0] if all(f == seen[0] for f in seen) else mix(seen)


def elementwise(c: Call) -> Result:
    return join([(c.layout[n.name], c.shape(n)) for n in c.inputs()], len(c.shape()))


def reshape(c: Call) -> Result:
    return reshaped(c.of(c.first), c.shape(c.first), c.shape())


def permute(c: Call) -> Result:
    f, rank = c.of(c.first), len(c.shape(c.first))
    if not f.placed:
        return f
    # the order is read off by permuting a tensor whose sizes are the dimensions' own numbers
    probe = torch.empty([i + 1 for i in range(rank)], device="meta")
    order = [s - 1 for s in c.node.target(probe, *c.node.args[1:], **c.node.kwargs).shape]
    return f.moved(order.index(f.axis))


def expand(c: Call) -> Result:
    f = c.of(c.first)
    return f.moved(f.axis + len(c.shape()) - len(c.shape(c.first)))


def repeat(c: Call) -> Result:
    f = c.of(c.first)
    if not f.placed:
        return f
    from_right = f.axis - len(c.shape(c.first))
    times = c.args["repeats"] if "repeats" in c.args else c.args["dims"]  # repeat's and tile's names for the same
    outer = f.outer * (times[from_right] if len(times) >= -from_right else 1)
    return placed(c.shape(), from_right + len(c.shape()), f.count, f.index, outer, f.slots)


def select(c: Call) -> Result:
    f, shape = c.of(c.first), c.shape(c.first)
    dim, index = c.args["dim"] % len(shape), c.args["index"]
    if not f.placed or dim != f.axis:
        return f.moved(f.axis - (dim < f.axis))
    index = index % shape[dim]
    return f.one((index // f.inner(shape)) % f.count)


def window_of(f: Frames, shape: tuple[int, ...], start: int, stop: int) -> Frames:
    """Frames of the elements [start, stop) of the axis that holds time."""
    inner = f.inner(shape)
    if start // inner == (stop - 1) // inner and f.outer == 1:
        return f.one(start // inner)
    if f.outer != 1 or start % inner or stop % inner:
        return mix([f])
    size = list(shape)
    size[f.axis] = stop - start
    return placed(size, f.axis, (stop - start) // inner, f.index + start // inner, 1, f.slots)


def slice_(c: Call) -> Result:
    f, shape = c.of(c.first), c.shape(c.first)
    dim = c.args["dim"] % len(shape)
    if not f.placed or dim != f.axis or c.shape() == shape:
        return f
    size = shape[dim]
    start, stop, _ = slice(c.args["start"], c.args["end"]).indices(size)
    if c.args["step"] != 1 or stop <= start:
        return mix([f])
    return window_of(f, shape, start, stop)


def split(c: Call) -> Result:
    f, shape = c.of(c.first), c.shape(c.first)
    pieces = [tuple(v.shape) for v in c.node.meta["val"]]
    dim = c.args["dim"] % len(shape)
    if not f.placed or dim != f.axis:
        return tuple(f for _ in pieces)
    result, start = [], 0
    for p in pieces:
        result.append(window_of(f, shape, start, start + p[dim]) if p[dim] else mix([f]))
        start += p[dim]
    return tuple(result)


def unbind(c: Call) -> Result:
    f, shape = c.of(c.first), c.shape(c.first)
    dim = c.args["dim"] % len(shape)
    if f.placed and dim == f.axis:
        return tuple(f.one((k // f.inner(shape)) % f.count) for k in range(shape[dim]))
    return tuple(f.moved(f.axis - (dim < f.axis)) for _ in range(shape[dim]))


def _run(parts: Sequence[Frames], sizes: Sequence[int], shape: Sequence[int], axis: int) -> Frames:
    """Frames of pieces laid one after another along `axis`: consecutive frames of equal size make an axis of time."""
    first, expected, inners = parts[0], parts[0].index, set()
    slots = {p.count if p.kind == "slot" else p.slots for p in parts}
    count = 0
    for p, size in zip(parts, sizes, strict=True):
        if p.placed:
            fits = p.axis == axis and p.outer == 1
            frames, inner = p.count, size // p.count
        else:
            fits, frames, inner = p.kind in ("step", "slot"), 1, size
        if not fits or p.index != expected:
            return mix(parts)
        inners.add(inner)
        expected, count = expected + frames, count + frames
    if len(inners) != 1 or len(slots) != 1:
        return mix(parts)
    return placed(shape, axis, count, first.index, 1, slots.pop())


def cat(c: Call) -> Result:
    shape = c.shape()
    tensors = [t for t in c.args["tensors"] if c.shape(t) != (0,)]
    dim = c.args["dim"] % len(shape)
    parts = [c.of(t) for t in tensors]
    carrying = [p for p in parts if p.carries]
    if not carrying:
        return NONE
    if all(p == carrying[0] for p in carrying) and not (carrying[0].placed and carrying[0].axis == dim):
        return carrying[0]
    if len(carrying) < len(parts):
        return mix(parts)
    return _run(parts, [c.shape(t)[dim] for t in tensors], shape, dim)


def stack(c: Call) -> Result:
    shape = c.shape()
    dim = c.args["dim"] % len(shape)
    parts = [c.of(t) for t in c.args["tensors"]]
    carrying = [p for p in parts if p.carries]
    if not carrying:
        return NONE
    if all(p == carrying[0] for p in carrying):
        return carrying[0].moved(carrying[0].axis + (dim <= carrying[0].axis))
    if len(carrying) < len(parts):
        return mix(parts)
    return _run(parts, [1] * len(parts), shape, dim)


def reduce(c: Call) -> Result:
    f, rank = c.of(c.first), len(c.shape(c.first))
    dims = c.dims("dim", rank)
    if not f.placed:
        return c.mixed()
    if f.axis in dims:
        return mix([f])
    return f if len(c.shape()) == rank else f.moved(f.axis - sum(d < f.axis for d in dims))


def along_dim(c: Call) -> Result:
    """Operators that mix one or some dimensions and keep the shape: softmax, cumsum, flip, roll, index_select."""
    f, rank = c.of(c.first), len(c.shape(c.first))
    name = "dim" if "dim" in c.args else "dims"
    ok = c.others_neutral(c.first) and not (f.placed and f.axis in c.dims(name, rank))
    return f if ok else c.mixed()


def pad(c: Call) -> Result:
    f, rank = c.of(c.first), len(c.shape(c.first))
    pads = c.args["pad"] if "pad" in c.args else c.args["padding"]
    touched = {rank - 1 - i // 2 for i, p in enumerate(pads) if p}
    return f if not (f.placed and f.axis in touched) else mix([f])


def leading(mixed_dims: int) -> Callable[[Call], Result]:
    """Operators that work on the last `mixed_dims` dimensions and treat all before them alike."""

    def rule(c: Call) -> Result:
        f = c.of(c.first)
        keeps = not f.placed or f.axis < len(c.shape(c.first)) - mixed_dims
        result = f if keeps and c.others_neutral(c.first) else c.mixed()
        value = c.node.meta["val"]
        return tuple(result for _ in value) if isinstance(value, (tuple, list)) else result

    return rule


def batched(kernel_dims: int) -> Callable[[Call], Result]:
    """Convolutions and other operators on [N, C, *kernel_dims]: only the batch keeps frames apart."""

    def rule(c: Call) -> Result:
        f = c.of(c.first)
        keeps = not f.placed or (f.axis == 0 and len(c.shape(c.first)) == kernel_dims + 2)
        if not keeps and kernel_dims == 3 and f.kind == "axis" and f.axis >= 2:
            keeps = _one_tap(c, f.axis - 2)
        return f if keeps and c.others_neutral(c.first) else c.mixed()

    return rule


def _one_tap(c: Call, spatial: int) -> bool:
    """Whether a 3-d convolution sees one sample at a time along a spatial dimension."""

    def at(name: str) -> Any:
        value = c.args.get(name)
        return value if not isinstance(value, (list, tuple)) else value[spatial if len(value) > 1 else 0]

    kernel = c.shape(c.args["weight"])[2 + spatial]
    return len(c.shape(c.first)) == 5 and kernel == 1 and at("stride") == 1 and at("padding") == 0


def batch_norm(c: Call) -> Result:
    f = c.of(c.first)
    if not c.others_neutral(c.first) or (c.args["training"] and f.placed):
        return c.mixed()
    return f


def group_norm(c: Call) -> Result:
    f = c.of(c.first)
    return f if c.others_neutral(c.first) and not (f.placed and f.axis > 0) else c.mixed()


def layer_norm(c: Call) -> Result:
    return leading(len(c.args["normalized_shape"]))(c)


def matrix_product(c: Call) -> Result:
    """matmul, bmm, attention: dimensions before the last two keep frames apart."""
    parts = [(c.layout[n.name], c.shape(n)) for n in c.inputs()]
    if any(f.placed and f.axis >= len(s) - 2 for f, s in parts):
        return c.mixed()
    return join(parts, len(c.shape())) if all(len(s) >= 2 for _, s in parts) else c.mixed()


def grid_sample(c: Call) -> Result:
    parts = [(c.layout[n.name], c.shape(n)) for n in c.inputs()]
    return c.mixed() if any(f.placed and f.axis != 0 for f, _ in parts) else join(parts, len(c.shape()))


def scan(c: Call) -> Result:
    """The sequence form: what is stacked along the scanned axis belongs to the step it was made at."""
    init: Any = c.node.args[1]
    xs: Any = c.node.args[2]
    carries, values = len(init), len(c.node.meta["val"])
    frames = {c.of(x) for x in xs}
    last = c.mixed()
    only = frames.pop() if len(frames) == 1 else MIXED
    if only.kind == "axis" and only.axis == 0 and c.others_neutral(*xs):
        return (*([last] * carries), *([only] * (values - carries)))
    return tuple(last for _ in range(values))


def _same(names: str, rule: Callable[[Call], Result], prefix: str = "aten.") -> dict[str, Callable[[Call], Result]]:
    return {prefix + n: rule for n in names.split()}


RULES: dict[str, Callable[[Call], Result]] = {
    **_same("view reshape _unsafe_view _reshape_copy flatten unflatten squeeze unsqueeze view_as reshape_as", reshape),
    **_same("permute transpose t swapaxes swapdims movedim", permute),
    **_same("expand expand_as broadcast_to", expand),
    **_same("repeat tile", repeat),
    **_same("select", select),
    **_same("slice narrow", slice_),
    **_same("split split_with_sizes chunk", split),
    **_same("unbind", unbind),
    **_same("cat concat", cat),
    **_same("stack", stack),
    **_same("mean sum amax amin var std prod any all argmax argmin logsumexp linalg_vector_norm", reduce),
    **_same("softmax _softmax log_softmax cumsum flip roll glu index_select", along_dim),
    **_same("constant_pad_nd pad reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d", pad),
    **_same("conv1d conv_transpose1d", batched(1)),
    **_same("conv2d conv_transpose2d", batched(2)),
    **_same("conv3d conv_transpose3d", batched(3)),
    **_same("linear", leading(1)),
    **_same("max_pool1d avg_pool1d adaptive_avg_pool1d upsample_linear1d upsample_nearest1d", leading(1)),
    **_same("max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d", leading(2)),
    **_same("upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa", leading(2)),
    **_same("pixel_shuffle pixel_unshuffle avg_pool3d max_pool3d adaptive_avg_pool3d", leading(3)),
    **_same("batch_norm", batch_norm),
    **_same("group_norm", group_norm),
    **_same("instance_norm", group_norm),
    **_same("layer_norm rms_norm", layer_norm),
    **_same("matmul bmm scaled_dot_product_attention", matrix_product),
    **_same("grid_sampler grid_sampler_2d", grid_sample),
    **_same("clone contiguous detach alias lift_fresh _to_copy to type_as dropout", elementwise),
    **_same("zeros_like ones_like full_like new_zeros new_ones new_full", lambda c: NONE),
    **_same("prelu", leading(0)),
    **_same("lut", leading(0), "vqc."),
    **_same("quantize_per_tensor dequantize_per_tensor quantize_per_channel dequantize_per_channel", elementwise,
            "quantized_decomposed."),
    **_same("qconv2d qconv2d_requantize qconv_transpose2d qconv_transpose2d_requantize", batched(2), "vqc."),
    **_same("conv2d conv_transpose2d", batched(2), "vqc."),
    **_same("qlinear qlinear_requantize", leading(1), "vqc."),
    **_same("mean_hw avg_pool2d resize_bilinear", leading(2), "vqc."),
    **_same("grid_sample", grid_sample, "vqc."),
}  # fmt: skip


def call_frames(node: fx.Node, layout: Mapping[str, Frames], several: Mapping[str, tuple[Frames, ...]]) -> Result:
    """Frames of one call's result; a tuple of them when the call has several results."""
    call, name = Call(node, layout), op_name(node.target)
    if name == "getitem":
        source, index = node.args
        pieces = several.get(source.name) if isinstance(source, fx.Node) else None
        return pieces[index] if pieces is not None and isinstance(index, int) else call.mixed()
    rule = RULES.get(name)
    if rule is None and is_elementwise(node.target):
        rule = elementwise
    if name == "scan":
        rule = scan
    if rule is None:
        unknown = call.mixed()
        value = node.meta.get("val")
        return tuple(unknown for _ in value) if isinstance(value, (tuple, list)) else unknown
    return rule(call)
