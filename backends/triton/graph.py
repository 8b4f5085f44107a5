"""A step as one CUDA graph: one launch by the host in place of one for every kernel.

Graphs repeat the same launches on the same memory. So inputs and states are copied into tensors of its own, it is
played, and its results are copied out: they stay what they are when the next step, or another stream, plays it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqc.backends.triton.backend import TritonExecutable
from vqc.backends.triton.environment import check_device
from vqc.errors import TargetError
from vqc.executable import Executable
from vqc.program import op_text

Body = Callable[[], Sequence[Tensor]]
Play = Callable[[], None]
# Records a body on the device: gives what it gave, tensors whose content is new after each call of the second.
Recorder = Callable[[Body], tuple[Sequence[Tensor], Play]]
# Operators of PyTorch that are launches and nothing else: of others nothing is known. What Inductor compiles is, too.
LAUNCHES = ("aten.conv2d", "aten.conv_transpose2d.input", "aten.neg", "aten.sqrt", "aten.exp", "aten.log",
            "aten.gt.Scalar", "aten.gt.Tensor", "aten.ge.Scalar", "aten.ge.Tensor", "aten.abs",
            "aten._to_copy")  # fmt: skip
WARM_UP = 3  # steps before the recording: kernels are compiled, memory is known


def cuda_graph(body: Body) -> tuple[Sequence[Tensor], Play]:
    """The recorder of CUDA devices."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            body()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = body()
    return results, graph.replay


class GraphedExecutable(Executable):
    """A TritonExecutable whose step is recorded once and played ever after.

    Raises TargetError for a step with operators of PyTorch beyond LAUNCHES: they may wait for the host, which no graph
    can hold.
    """

    def __init__(self, inner: TritonExecutable, record: Recorder = cuda_graph):
        left = [inner.program.node(d.node) for d in inner.report.fallbacks]
        waiting = [n.name for n in left if op_text(n.target) not in LAUNCHES
                   and not inner.report.kernels[n.name].startswith("inductor ")]  # fmt: skip
        if waiting:
            raise TargetError(f"the step of {inner.program.name} is no graph",
                              why=f"PyTorch runs {len(waiting)} of its operators that may wait for the host "
                              f"({', '.join(waiting[:5])})", way_out="leave out option graph")  # fmt: skip
        super().__init__(inner.program, inner.report)
        self._inner = inner
        device = inner.place.device
        given = [torch.zeros(i.shape, dtype=i.dtype, device=device) for i in inner.program.inputs]
        held = [*given, *(s.reset.to(device, copy=True) for s in inner.program.states)]
        self._given = [x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in held]
        count = len(given)
        self._results, self._play = record(lambda: inner.trace(self._given[:count], self._given[count:]))
        inner.report.notes.append("a step is one CUDA graph")

    def _run(self, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> Sequence[Tensor]:
        check_device(inputs, self._inner.place, self.program.name)
        for mine, x in zip(self._given, [*inputs, *state], strict=True):
            mine.copy_(x)
        self._play()
        return [r.clone() for r in self._results]
