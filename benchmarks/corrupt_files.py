"""Corrupted and hostile `.vqc` files by the thousand: each is refused with an ArtifactError, or is a valid program.

    python -m benchmarks.corrupt_files [--count 10000] [--seed 0] [--output FOLDER]

Two kinds. `damaged`: bytes changed as disks, transfers and editors do; the hash no longer fits, so every one has to be
refused. `forged`: content changed and the hash made right again, as an attacker would; such a file may be refused, or
load as a Program that keeps the rules of `vqc.spec`. Watched in all of them: that nothing but ArtifactError is raised,
how long one takes, and by Python's audit hooks that loading compiles, executes, imports, writes or starts nothing.

Writes benchmarks/results/<processor>/corrupt-files.json; `python -m benchmarks.tables` puts it into docs/files.md.
"""

from __future__ import annotations

import collections
import copy
import itertools
import json
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import vqc
from benchmarks.command import begin, command
from benchmarks.machine import Record, write
from vqc import spec
from vqc.files.container import PREAMBLE, canonical, pack, unpack
from vqc.files.read import program_of

Change = Callable[[bytes, random.Random], bytes]

# ---- damage: the hash does not know of it ----------------------------------------------------------------------------


def bit_flip(data: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << r.randrange(8)]) + data[at + 1 :]


def truncation(data: bytes, r: random.Random) -> bytes:
    return data[: r.choice([r.randrange(len(data)), r.randrange(200), len(data) - 1])]


def extension(data: bytes, r: random.Random) -> bytes:
    return data + r.randbytes(r.choice([1, 64, 4096]))


def swapped_blocks(data: bytes, r: random.Random) -> bytes:
    size = r.choice([1, 8, 64, 512])
    a, b = sorted(r.sample(range(len(data) - size), 2))
    b = max(b, a + size)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def zeroed_block(data: bytes, r: random.Random) -> bytes:
    at, size = r.randrange(len(data)), r.choice([16, 512, 4096])
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def repeated_block(data: bytes, r: random.Random) -> bytes:
    at, size = r.randrange(len(data)), r.choice([1, 64, 512])
    return data[: at + size] + data[at : at + size] + data[at + size :]


def declared_size(data: bytes, r: random.Random) -> bytes:
    """Another number in the preamble: a version, a length, huge or small."""
    at, form = r.choice([(8, "<I"), (12, "<I"), (16, "<Q"), (24, "<Q")])
    top = 2**32 - 1 if form == "<I" else 2**64 - 1
    value = r.choice([0, 1, 2, 255, len(data), 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1])
    return data[:at] + struct.pack(form, min(value, top)) + data[at + struct.calcsize(form) :]


def other_kind(data: bytes, r: random.Random) -> bytes:
    return r.choice(
        [b"", r.randbytes(300), b"PK\x03\x04" + data[4:], b"\x80\x04" + data[2:], data[:8] * 50, data[::-1]]
    )


DAMAGE: tuple[Change, ...] = (bit_flip, truncation, extension, swapped_blocks, zeroed_block, repeated_block,
                              declared_size, other_kind)  # fmt: skip

# ---- forgery: the hash is right --------------------------------------------------------------------------------------

HOSTILE = (
    None, True, 0, -1, 1, 3, 2**31, 2**40, 2**62, 2**63, -(2**63), 1.5, -0.0, 1e308, "", "x", "nan", "__class__",
    "a" * 5000,
    "__import__('os').system('true')", "x = 1\nimport os", "getitem", "aten::from_file", "aten::resize_", "aten::relu",
    "aten::conv2d", "aten::split.Tensor", "aten::unbind.int", "aten::repeat", "aten::cat", "aten::add.__class__",
    "os::system", "builtins::eval", "vqc::qconv2d", "vqc::bconv2d", "prim::Print", "torchvision::deform_conv2d",
    "inductor::foo", "c10d::send", "float32", "complex128", [], {}, [[]], [0] * 50, [2**62, 2**62], {"node": "nope"},
    {"node": "x"}, {"tensor": "nope"}, {"tuple": []}, {"tuple": [1, 2]}, {"dict": [["a", 1], ["a", 2]]},
    {"slice": [0, 1]},
    {"float": "inf"}, {"float": "nan"}, {"dtype": "float64"}, {"dtype": "object"}, {"device": "cuda:9"},
    {"device": "cpu; rm"}, {"complex": [1.0, 2.0]}, {"observed": {}}, {"memory_format": "torch.channels_last"},
    {"observed": {"policy": "tensor", "groups": {"0": {"low": [0.0], "high": [1.0], "sum_low": "1e999999999",
     "sum_high": "1", "power": [1], "frames": 1, "values": 1, "exponent": 5, "first": 0, "counts": [1]}}}},
    {"frames": {"kind": "axis", "axis": 99, "count": 1, "index": 0, "outer": 0, "slots": 0, "note": ""}},
)  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield from _places(inner, (*path, key))


def _change(header: Any, r: random.Random) -> Any:
    """One place in the header made into something else."""
    header = copy.deepcopy(header)
    path = r.choice([p for p in _places(header) if p])
    holder = header
    for key in path[:-1]:
        holder = holder[key]
    key, how = path[-1], r.randrange(7)
    if how <= 2:
        holder[key] = copy.deepcopy(r.choice(HOSTILE))
    elif how == 3:
        del holder[key]
    elif how == 4 and isinstance(holder, list):
        holder.insert(r.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif how == 5 and isinstance(holder, list):
        other = r.randrange(len(holder))
        holder[key], holder[other] = holder[other], holder[key]
    elif type(holder[key]) is int:
        holder[key] = r.choice([holder[key] + 1, -holder[key], holder[key] * 2**20, 2**62])
    elif type(holder[key]) is str:
        holder[key] = r.choice([holder[key] + "'", holder[key][::-1], holder[key] + "\0", holder[key].upper()])
    else:
        holder[key] = [holder[key]]
    return header


def forged_header(data: bytes, r: random.Random) -> bytes:
    """One to three places of the graph or the interface changed."""
    header, payload = unpack(data, "original")
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        header = _change(header, r)
    return pack(header, bytes(payload))


def nested(data: bytes, r: random.Random) -> bytes:
    """Lists in lists, thousands deep, where a value belongs."""
    header, payload = unpack(data, "original")
    depth = r.choice([50, 900, 5000, 200_000])
    where, node = r.choice(["args", "meta", "in_spec"]), r.choice(header["program"]["nodes"])
    if where == "in_spec":
        header["program"]["signature"]["in_spec"] = "MARK"
    else:
        node[where] = ["MARK"] if where == "args" else {"deep": "MARK"}
    text = canonical(header).replace(b'"MARK"', b"[" * depth + b"]" * depth)
    return rehashed(text, bytes(payload))


def forged_tensors(data: bytes, r: random.Random) -> bytes:
    """Bytes of the payload changed, its own header among them."""
    header, payload = unpack(data, "original")
    changed = bytearray(payload)
    inner = struct.unpack("<Q", changed[:8])[0]
    how = r.randrange(5)
    if how == 0:
        changed[:8] = struct.pack("<Q", r.choice([0, 1, inner + 1, 2**31, 2**40, 2**63, 2**64 - 1]))
    elif how == 1:
        at = r.randrange(8, 8 + inner)
        changed[at] = r.choice(b'0123456789{}[]":,FIU \x00\xff')
    elif how == 2:
        del changed[r.randrange(8, len(changed)) :]
    elif how == 3:
        changed += r.randbytes(r.choice([1, 100]))
    else:
        text = json.loads(changed[8 : 8 + inner])
        name = r.choice([k for k in text if k != "__metadata__"])
        text[name] = r.choice([
            text[name] | {"shape": r.choice([[2**40], [2**62, 4], [], [-1], [0]])},
            text[name] | {"dtype": r.choice(["F64", "BOOL", "F8_E4M3", "U16", "OBJECT", "C64"])},
            text[name] | {"data_offsets": r.choice([[0, 2**62], [8, 0], [0, 0], [-4, 4]])},
        ])  # fmt: skip
        inside = json.dumps(text).encode()
        changed = bytearray(struct.pack("<Q", len(inside)) + inside + bytes(changed[8 + inner :]))
    return pack(header, bytes(changed))


def other_text(data: bytes, r: random.Random) -> bytes:
    """A header that is no canonical JSON, under a right hash."""
    header, payload = unpack(data, "original")
    text = canonical(header)
    text = r.choice([
        text.replace(b":", b": ", 1), text[:-1], b"[]", b"null", b"{}", b"NaN", b"\xff" * 64, b"",
        text.replace(b'"name":', b'"name":"twice","name":', 1), text.replace(b"1", b"1" * 6000, 1),
        text.replace(b"1", b"Infinity", 1), text.replace(b"1", b"01", 1), text + b"{}", b"__import__('os')",
    ])  # fmt: skip
    return rehashed(text, bytes(payload))


def rehashed(text: bytes, payload: bytes) -> bytes:
    """A file of this header as it stands, with a right hash (`pack` would bring it into its one form)."""
    from vqc.files import container

    text += b" " * (-(PREAMBLE.size + len(text)) % container.ALIGN)
    bare = container._preamble(len(text), len(payload), bytes(32))
    return container._preamble(len(text), len(payload), container._digest(bare, text + payload)) + text + payload


FORGERY: tuple[Change, ...] = (forged_header, forged_header, forged_header, forged_header, nested, forged_tensors,
                               other_text)  # fmt: skip

# ---- the watch -------------------------------------------------------------------------------------------------------

WATCHED = ("exec", "compile", "import", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect",
           "pickle.find_class", "marshal.loads", "ctypes.dlopen", "os.remove", "os.rename")  # fmt: skip
_seen: list[str] = []
_watching = False


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and (event in WATCHED or (event == "open" and "w" in str(arguments[1]))):
        _seen.append(f"{event} {arguments!r:.100}")


def outcome(data: bytes) -> str:
    """ "refused" or "loaded"; any error but ArtifactError, any watched event and a broken Program are raised."""
    global _watching
    _seen.clear()
    _watching = True
    try:
        _, program = program_of(data, "forged.vqc")
        result = "loaded"
    except vqc.errors.ArtifactError as e:
        if not (e.where and e.why and e.way_out):
            raise AssertionError(f"the error does not say where, why and what to do: {e}") from e
        return "refused"
    finally:
        _watching = False
        if _seen:
            raise AssertionError(f"loading did this: {_seen[:3]}")
    if spec.violations(program):
        raise AssertionError(f"a broken program was loaded: {spec.violations(program)[:1]}")
    return result


def original() -> bytes:
    """A small quantized recurrent network as a file: states, integers, a history, observations, a channel split."""
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.gates = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.up, self.out = nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.Conv2d(8, 1, 1)

        def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
            y = torch.relu(self.inp(x))
            h = torch.zeros_like(y) if h is None else h
            z, n = torch.sigmoid(self.gates(torch.cat([y, h], 1))).chunk(2, 1)
            h = (1 - z) * h + z * torch.tanh(n)
            return self.out(self.up(h))[..., ::2, ::2], h

    torch.manual_seed(0)
    frames = torch.rand(3, 3, 8, 12)
    program = vqc.capture(Net().eval(), frames[:1], states={"h": 1}, known_ranges={"x": (0, 1)})
    program = vqc.apply(program, "int8", calibration=frames)
    with tempfile.TemporaryDirectory() as folder:
        path = vqc.save(program, Path(folder) / "net.vqc", recipe="int8", calibration=frames, licence="none")
        return path.read_bytes()


def tried(count: int, seed: int) -> Record:
    """Make `count` files out of one and load each: how many of which kind were refused or loaded, the slowest in ms.

    Raises AssertionError, or whatever loading raised, at the first file that does what none may do.
    """
    data, found = original(), collections.Counter[str]()
    for _ in range(2):  # what PyTorch imports on first use
        program_of(data, "original.vqc")
    slowest = 0.0
    for i in itertools.count():
        if found.total() == count:
            break
        r = random.Random(f"{seed} {i}")
        change = r.choice(DAMAGE if i % 2 else FORGERY)
        changed = change(data, r)
        if changed == data:
            continue
        began = time.perf_counter()
        try:
            result = outcome(changed)
        except BaseException:
            print(f"file {i} of seed {seed}, {change.__name__}", file=sys.stderr)
            raise
        slowest = max(slowest, time.perf_counter() - began)
        if i % 2 and result == "loaded":
            raise AssertionError(f"damaged file {i} ({change.__name__}) was loaded")
        found[f"{'damaged' if i % 2 else 'forged'}, {result}"] += 1
    return {"seed": seed, "files": found.total(), "found": dict(sorted(found.items())),
            "slowest_ms": round(slowest * 1e3, 1), "original_bytes": len(data)}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Try them and write what was found."""
    parser = command(__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given, began = begin(parser, argv)
    sys.addaudithook(hook)
    record = tried(given.count, given.seed)
    for kind, number in record["found"].items():
        print(f"{kind}: {number}")
    print(f"the slowest took {record['slowest_ms']:.0f} ms; the original has {record['original_bytes']} bytes")
    print("wrote", write("corrupt-files", [record], began, given.output))


if __name__ == "__main__":
    main()
