"""A pass of one's own that looks at clips: relu6 becomes relu where nothing ever comes near 6.

python examples/own_pass.py
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx, nn

import vqc
from vqc.calibration import as_clips, rollout
from vqc.pipeline import Lossy, Numerics, Pass, PassContext, PassResult, register
from vqc.program import Program

aten = torch.ops.aten


@register
@dataclass(frozen=True)
class OpenRelu6(Pass):
    """open-relu6: relu6(x) -> relu(x), where no x on the calibration clips is above 6 / `margin`.

    Calibration then takes the range that is used, where 8 bits were spread over [0, 6].

    Preconditions: (1) the context holds calibration clips; (2) x stayed low enough on them.
    Valid before: any float program. Valid after: the same values on such clips.

    Options: `margin` - how much larger x may become on other clips.
    """

    name: ClassVar[str] = "open-relu6"
    numerics: ClassVar[Numerics] = Lossy(20.0)
    margin: float = 2.0

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        # capture brings relu6, hardtanh and clamp to one form
        found = [n for n in program.calls if n.target is aten.clamp.default and tuple(n.args[1:]) == (0.0, 6.0)]
        largest: dict[fx.Node, float] = {n.args[0]: 0.0 for n in found}

        def visit(node: fx.Node, value: Any, since_reset: int) -> None:
            if node in largest:
                largest[node] = max(largest[node], float(value.max()))

        rollout(program, as_clips(context.calibration, program), visit)
        for node in found:
            top = largest[node.args[0]]
            if top * self.margin > 6:
                result.decline(node, f"its input came to {top:.2f}")
                continue
            with program.graph.inserting_before(node):
                node.replace_all_uses_with(program.call(aten.relu.default, (node.args[0],), like=node))
            result.count("relu6")
        return result


def main() -> None:
    torch.manual_seed(0)
    loud = nn.Conv2d(8, 8, 3, padding=1)
    loud.weight.data *= 20
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), loud, nn.ReLU6(), nn.Conv2d(8, 3, 1)).eval()
    clip = torch.rand(8, 3, 32, 48)
    program = vqc.capture(model, clip[:1])
    program = vqc.apply(program, "open-relu6{margin=1.5},observe,quantize,lower-integer", calibration=clip)
    for record in program.history:
        print(record)


if __name__ == "__main__":
    main()
