"""One run by several processes: who does what, and how they come to the same result.

    torchrun --nproc-per-node 2 -m vqc run ...         # the command line joins by itself
    vqc.apply(program, ..., shard=distributed.current())   # Python joins when it is asked to

Every process runs the same passes on the same Program. A pass that takes a share of the work asks `context.shard` for
it and brings the shares together before it returns, so that all processes hold the same Program after every pass; the
pass manager compares them. `docs/distributed.md` says what a pass may rely on.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from vqc.calibration.clips import Clips
from vqc.calibration.deal import Stretch, deal
from vqc.calibration.observe import Observed
from vqc.calibration.wire import from_bytes, to_bytes
from vqc.errors import CalibrationError, DistributedError
from vqc.program import Program

T = TypeVar("T")
TIMEOUT = 600.0  # seconds that a process waits for the others; VQC_DISTRIBUTED_TIMEOUT changes it
_FAILED = "vqc/failed"  # the store's key of the last failure


@dataclass(frozen=True)
class Shard:
    """Process number `rank` of `world`. With a world of one every method is the identity and nothing is started.

    All methods but `share` and `shard_clips` are meetings: each process has to call them, in the same order. They
    raise DistributedError when the processes cannot find each other, one of them ends or is not there in time.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a batch: consecutive items, none if there are fewer items than processes."""
        n = len(items)
        return items[n * self.rank // self.world : n * (self.rank + 1) // self.world]

    def shard_clips(self, clips: Clips, recurrent: bool) -> tuple[Stretch, ...]:
        """The stretches of the clips that this process observes (`vqc.calibration.deal`): whole clips where a state is
        carried and there are enough of them. Raises CalibrationError when there are fewer frames than processes."""
        lengths = [len(clip) for clip in clips]
        if sum(lengths) < self.world:
            raise CalibrationError(f"{sum(lengths)} frames of calibration cannot be shared by {self.world} processes",
                                   why="each has to observe at least one",
                                   way_out="give more frames, or start fewer processes (--nproc-per-node)")  # fmt: skip
        return deal(lengths, self.world, recurrent)[self.rank]

    def gather(self, data: bytes, doing: str = "exchanging data") -> list[bytes]:
        """What every process gave, by rank. Lengths may differ."""
        if self.world == 1:
            return [data]
        with self._meeting(doing):
            sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
            dist.all_gather(sizes, torch.tensor([len(data)]))
            longest = max(int(n) for n in sizes)
            mine = torch.zeros(longest, dtype=torch.uint8)
            mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else 0
            parts = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(parts, mine)
        return [part.numpy().tobytes()[: int(n)] for part, n in zip(parts, sizes, strict=True)]

    def merge_observed(self, observed: Mapping[str, Observed]) -> dict[str, Observed]:
        """What all processes together observed, by node name: exactly what one process would have, in any case."""
        if self.world == 1:
            return dict(observed)
        merged = {name: Observed(o.policy) for name, o in observed.items()}
        for part in self.gather(to_bytes(observed), "merging observers"):
            for name, o in from_bytes(part).items():
                merged[name].merge(o)
        for o in merged.values():
            o.groups = dict(sorted(o.groups.items()))
        return merged

    def average(self, parameters: Iterable[torch.Tensor], weight: float = 1.0) -> None:
        """Replace every gradient by its mean over the processes, sum(weight * grad) / sum(weight), added in float64.

        `weight`: how many samples this process's loss is the mean of; the result is then the gradient of the mean over
        all of them. A process without samples gives 0. A gradient that no process has stays None, one that some have
        counts as zero in the others. Parameters are on one device. Raises DistributedError when all weights are 0.
        """
        if self.world == 1:
            return
        params = list(parameters)
        if not params:
            return
        device = params[0].device
        parts = [torch.tensor([weight, *(p.grad is not None for p in params)], dtype=torch.float64, device=device)]
        for p in params:
            known = p.grad is not None and weight > 0
            parts.append(p.grad.detach().reshape(-1).double() * weight if known else
                         torch.zeros(p.numel(), dtype=torch.float64, device=device))  # fmt: skip
        flat = torch.cat(parts)
        with self._meeting("averaging gradients"):
            dist.all_reduce(flat)
        head, begin = flat[: 1 + len(params)].tolist(), 1 + len(params)
        if not head[0] > 0:
            raise DistributedError("gradients cannot be averaged", why="no process had a sample",
                                   way_out="give a batch that is not empty")  # fmt: skip
        for p, holders in zip(params, head[1:], strict=True):
            mean = (flat[begin : begin + p.numel()] / head[0]).reshape(p.shape).to(p.dtype)
            begin += p.numel()
            if p.grad is not None:
                p.grad.copy_(mean)
            elif holders:
                p.grad = mean

    def mean(self, value: float, weight: float = 1.0) -> float:
        """The weighted mean of a number over the processes, equal on all: for losses that decisions hang on."""
        if self.world == 1:
            return value
        pairs = [json.loads(part) for part in self.gather(json.dumps([value, weight]).encode(), "averaging a number")]
        total = sum(w for _, w in pairs)
        if not total > 0:
            raise DistributedError("a number cannot be averaged", why="no process had a sample",
                                   way_out="give a batch that is not empty")  # fmt: skip
        return sum(v * w for v, w in pairs if w) / total

    def check_equal(self, program: Program, after: str) -> None:
        """Raise DistributedError unless all processes hold the same graph, constants and reset values, bit for bit."""
        if self.world == 1:
            return
        mine = _digests(program)
        for rank, part in enumerate(self.gather(json.dumps(mine).encode(), f"comparing programs after {after}")):
            theirs = json.loads(part)
            wrong = [k for k in sorted(mine | theirs) if mine.get(k) != theirs.get(k)]
            if wrong:
                raise DistributedError(
                    f"processes {self.rank} and {rank} have different programs after {after}",
                    where=", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""),
                    why="the pass drew, averaged or decided something in one of them alone, or the machines compute "
                    "differently", way_out="run it in one process, on equal machines, and report the pass")  # fmt: skip

    def failed(self, doing: str, error: Exception) -> None:
        """Tell the others what ends this process, if it is in a group, for them to quote it."""
        store = _STORES.get("store")
        if self.world > 1 and store is not None and not isinstance(error, DistributedError):
            with contextlib.suppress(RuntimeError):  # the store may be what failed; the error is on its way already
                store.set(_FAILED, f"process {self.rank}: {doing}: {_first_line(error)}")

    @contextlib.contextmanager
    def _meeting(self, doing: str) -> Iterator[None]:
        """Join the group, and turn what torch.distributed raises into an error that says who failed and when."""
        _join(self)
        try:
            yield
        except RuntimeError as e:
            raise DistributedError(f"process {self.rank} of {self.world} lost the others while {doing}",
                                   why=_failure() or _first_line(e),
                                   way_out="mend what ended the one that failed; if one was only slow, raise "
                                   "VQC_DISTRIBUTED_TIMEOUT (seconds)") from e  # fmt: skip


def current() -> Shard:
    """This process's place by torchrun's environment (RANK, WORLD_SIZE), a world of one without it.

    Nothing is started before the first meeting. Raises DistributedError for an environment that makes no sense.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if None in given.values():
        return Shard()
    try:
        rank, world = (int(value or "") for value in given.values())
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise DistributedError("the environment names no process of a group", why=f"it holds {given}",
                               way_out="start it with torchrun, or unset both")  # fmt: skip
    return Shard(rank, world)


# ---- the group -----------------------------------------------------------------------------------------------------

_STORES: dict[str, dist.Store] = {}  # "store": the one this module made, for as long as its group stands


def backend() -> str:
    """Gloo for tensors in memory; NCCL beside it for those on GPUs, where every process here can have its own."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and dist.is_nccl_available() and torch.cuda.device_count() >= local:
        return "cpu:gloo,cuda:nccl"
    return "gloo"


def _join(shard: Shard) -> None:
    """Start the process group if nobody has; a group that stands already is used and left standing."""
    if dist.is_initialized():
        if (dist.get_rank(), dist.get_world_size()) != (shard.rank, shard.world):
            raise DistributedError(f"process {shard.rank} of {shard.world} is in another group",
                                   why=f"that one has it as {dist.get_rank()} of {dist.get_world_size()}",
                                   way_out="use vqc.distributed.current()")  # fmt: skip
        return
    if not dist.is_available():
        raise DistributedError("this PyTorch has no torch.distributed", way_out="run it in one process")
    try:
        timeout = timedelta(seconds=float(os.environ.get("VQC_DISTRIBUTED_TIMEOUT", TIMEOUT)))
        chosen = backend()
        if "nccl" in chosen:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        store, _, _ = next(dist.rendezvous("env://", shard.rank, shard.world, timeout=timeout))
        store.set_timeout(timeout)
        dist.init_process_group(chosen, store=dist.PrefixStore("vqc", store), rank=shard.rank, world_size=shard.world,
                                timeout=timeout)  # fmt: skip
    except (RuntimeError, ValueError) as e:
        at = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise DistributedError(f"process {shard.rank} of {shard.world} cannot find the others", where=at,
                               why=_first_line(e), way_out="start all of them with torchrun; across machines, with the "
                               "same --rdzv-endpoint, which every machine can reach") from e  # fmt: skip
    _STORES["store"] = store
    atexit.register(leave)


def leave() -> None:
    """End the group this module started, if there is one; called when the process ends."""
    if _STORES.pop("store", None) is not None and dist.is_initialized():
        dist.destroy_process_group()


def _failure() -> str:
    store = _STORES.get("store")
    with contextlib.suppress(RuntimeError):  # nobody to ask: what torch.distributed said has to do
        if store is not None and store.check([_FAILED]):
            return store.get(_FAILED).decode()
    return ""


def _first_line(e: BaseException) -> str:
    return str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__


def _digests(program: Program) -> dict[str, str]:
    """SHA-256 of the graph's text, of every constant and of every state's reset value."""
    found = {"the graph": hashlib.sha256(str(program).encode()).hexdigest()}
    tensors = {f"constant {name}": value for name, value in program.constants.items()}
    tensors |= {f"state {s.name}": s.reset for s in program.states}
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor):
            digest = hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            digest = hashlib.sha256(repr(value).encode())
        found[name] = digest.hexdigest()
    return found
