"""Recipes: named pipelines, as data. A recipe's text round-trips through `vqc.pipeline.parse`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A pipeline's text under a name, with one line for whom it is. `needs_calibration`: it runs calibration clips."""

    name: str
    pipeline: str
    about: str
    needs_calibration: bool = False


_FLOAT = "canonicalize,fold-constants,fold-bn,canonicalize"
# Before integers: 3-d convolutions have float kernels, integers only where they are 2-d ones.
_PLANAR = "canonicalize,fold-constants,fold-bn,conv3d-to-conv2d,canonicalize"
_INTEGER = "lower-integer,exact-float,canonicalize"

# Rounding to nearest of fewer than 8 bits wants the search for weight scales. First and last layers keep 8 bits where
# activations have fewer: a picture in 4 bits is another picture.
_W4A8 = "observe,quantize{weight_bits=4,weight_method=mse,edge_bits=8}"
_W3A8 = "observe,quantize{weight_bits=3,weight_method=mse,edge_bits=8}"
_W4A4 = "observe,quantize{weight_bits=4,activation_bits=4,method=mse,weight_method=mse,headroom=0.0,edge_bits=8}"


def _slots(bits: int) -> str:
    # PMQ-VE's search fits the clips it sees: at 4 bits a percentile holds farther on others.
    method = "btbi" if bits < 4 else "percentile"
    few = f"weight_bits={bits},activation_bits={bits},method={method},weight_method=mse,headroom=0.0,"
    return f"observe{{policy=frame}},quantize{{{'' if bits == 8 else few}edge_bits=8,frames=true}}"


@dataclass(frozen=True)
class _Learned:
    """A recipe that learns, as `name` (minutes on two cores) and as `name-full` (hours, or a larger machine)."""

    name: str
    start: str
    quick: str
    full: str
    about: str

    def recipes(self) -> tuple[Recipe, Recipe]:
        def text(learning: str) -> str:
            return ",".join(filter(None, (_PLANAR, self.start, learning, _INTEGER)))

        return (Recipe(self.name, text(self.quick), self.about, True),
                Recipe(f"{self.name}-full", text(self.full), f"{self.about}; long", True))  # fmt: skip


_BLOCKS = "reconstruct{iterations=60,drop=0.0}"
_MANY_BLOCKS = "reconstruct{iterations=2000,batch=4,frames=4,drop=0.0}"
# Half of the activations stay float while it learns (QDrop): it fits what calibration has not seen better, and 4-bit
# ones need it. From GPTQ's weights, with all of them in 8 bits, it ends farther from float than from nearest ones.
# More iterations help 8-bit activations; with 4-bit ones they fit the calibration clips alone.
_DROP_BLOCKS = "reconstruct{iterations=60}"
_MORE_DROP_BLOCKS = "reconstruct{iterations=200}"
_MANY_DROP_BLOCKS = "reconstruct{iterations=2000,batch=4,frames=4}"
# In the quick forms of 4-bit activations alone: with 8 bits it steadies the scenes it learns from and unsettles others.
_GATES = "affine-calibrate{iterations=40,rate=0.001,flow=still,flow_weight=1.0}"
_MANY_GATES = "affine-calibrate{iterations=880,batch=4,flow=dense}"
_GPTQ = "gptq{alpha=0.25}"

_LEARNED = (
    _Learned("gptq-w4", _W4A8, _GPTQ, "gptq{alpha=0.25,waves=24}",
             "4-bit weights that make up for each other's rounding (GPTQ, GPTAQ), 8-bit activations"),
    _Learned("foem-w4", _W4A8, "gptq{beta=0.1}", "gptq{beta=0.1,waves=24}",
             "as gptq-w4, held back towards the float weights (FOEM): for few calibration frames"),
    _Learned("foem-w3", _W3A8, "gptq{beta=0.1}", "gptq{beta=0.1,waves=24}", "as foem-w4, with 3-bit weights"),
    _Learned("ptq4vm-w8a8", "observe,quantize", _BLOCKS, f"{_MANY_BLOCKS},{_MANY_GATES}",
             "8 bits, blocks reconstructed with their states (PTQ4VM)"),
    _Learned("ptq4vm-w4a8", _W4A8, _MORE_DROP_BLOCKS, f"{_MANY_DROP_BLOCKS},{_MANY_GATES}",
             "as ptq4vm-w8a8, with 4-bit weights"),
    _Learned("ptq4vm-w4a4", _W4A4, f"{_DROP_BLOCKS},{_GATES}", f"{_MANY_DROP_BLOCKS},{_MANY_GATES}",
             "as ptq4vm-w4a8, with 4-bit activations"),
    _Learned("pmqve-w8a8", _slots(8), "", "distill{steps=1000,rate=0.002,feature_weight=0.5,looks=10}",
             "8 bits, bounds for each frame of a window (PMQ-VE)"),
    _Learned("pmqve-w4a4", _slots(4),
             f"{_DROP_BLOCKS},distill{{steps=60,feature_weight=0.5,train_weights=scales,looks=3}}",
             f"{_MANY_DROP_BLOCKS},distill{{teachers=[8],steps=2000,teacher_steps=500,rate=0.002,feature_weight=0.5,"
             "train_weights=scales,looks=10}",
             "4 bits, bounds for each frame of a window, blocks reconstructed, then all learned together (PMQ-VE)"),
    _Learned("pmqve-w2a2", _slots(2),
             "distill{teachers=[8,4],steps=60,teacher_steps=30,feature_weight=0.5,train_weights=scales,looks=3}",
             "distill{teachers=[8,4],steps=2000,teacher_steps=500,rate=0.002,feature_weight=0.5,train_weights=scales,"
             "looks=10}", "as pmqve-w4a4, with 2 bits"),
)  # fmt: skip

# Layers are quantized while those of signs are in training form: constants are folded after that, so that +1 and -1 are
# no weights of 8 bits.
_SIGNS_UP = "shb-decoder{sparse=0}"
_TAUGHT = "mimic{rate=0.0003,other_rate=0.002}"  # what is fitted already moves little
_BESIDE_SIGNS = "observe,quantize,fold-constants,lower-binary,lower-integer,exact-float,fold-bn-sign,canonicalize"
_OF_SIGNS = "the way back up of a trained network in signs, six for each weight; the rest in 8 bits (BiVM)"

RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe("float", _FLOAT, "the same network in float32: batch norm folded, constants and duplicates gone"),
        Recipe("int8", f"{_PLANAR},observe,quantize,{_INTEGER}",
               "8-bit weights and activations in every layer but those that make the results; pictures without loss",
               needs_calibration=True),
        Recipe("int8-all", f"{_PLANAR},observe,quantize{{tail=quantized,displacements=quantized}},{_INTEGER}",
               "as int8, with the layers that make the results in 8 bits as well", needs_calibration=True),
        Recipe("xnor", "canonicalize,fold-constants,fold-bn{scales=false},canonicalize,lower-binary,exact-float,"
               "fold-bn-sign,canonicalize",
               "a network trained in one bit (vqc.models.binary, vqc::fake_binarize): signs as bits, masks skipped"),
        Recipe("bivm-decoder", f"{_PLANAR},{_SIGNS_UP},{_BESIDE_SIGNS}", _OF_SIGNS, needs_calibration=True),
        Recipe("bivm-decoder-full", f"{_PLANAR},{_SIGNS_UP},{_TAUGHT},{_BESIDE_SIGNS}",
               f"{_OF_SIGNS}; then trained, long", needs_calibration=True),
        *(r for learned in _LEARNED for r in learned.recipes()),
    )
}  # fmt: skip
