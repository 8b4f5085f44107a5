"""The outer form of a `.vqc` file: a fixed preamble, a header of canonical JSON, a payload of safetensors.

    offset  bytes  what
    0       8      89 56 51 43 0D 0A 1A 0A   ("\\x89VQC\\r\\n\\x1a\\n": a transfer that mends line ends is noticed)
    8       4      format, little-endian as all numbers
    12      4      0
    16      8      length of the header, the spaces at its end included
    24      8      length of the payload
    32      16     the oldest release that reads this format, ASCII, filled up with zero bytes
    48      32     SHA-256 of all other bytes of the file
    80             header, then payload, which begins at a multiple of 64; nothing behind it

The preamble is the same in every format, so that any release can tell which one reads a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

from vqc.errors import ArtifactError

MAGIC = b"\x89VQC\r\n\x1a\n"
FORMAT = 1
READERS = {1: "0.1.0"}  # format -> the oldest release that reads it
PREAMBLE = struct.Struct("<8sIIQQ16s32s")
ALIGN = 64
HEADER_LIMIT = 32 << 20
SIZE_LIMIT = 16 << 30


def refuse(path: object, why: str, way_out: str = "write it again from the network") -> ArtifactError:
    """The error of a file that is not taken."""
    return ArtifactError("a .vqc file cannot be read", where=str(path), why=why, way_out=way_out)


def canonical(value: Any) -> bytes:
    """JSON in its one form here: sorted keys, no blanks, ASCII, no NaN. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def pack(header: Any, payload: bytes) -> bytes:
    """The bytes of a file. Raises ArtifactError when the header is larger than a reader takes."""
    text = canonical(header)
    text += b" " * (-(PREAMBLE.size + len(text)) % ALIGN)
    if len(text) > HEADER_LIMIT:
        raise ArtifactError("a program is too large for a .vqc file", why=f"its graph takes {len(text)} bytes as text",
                            way_out="capture fewer frames at once")  # fmt: skip
    body = text + payload
    preamble = _preamble(len(text), len(payload), bytes(32))
    return _preamble(len(text), len(payload), _digest(preamble, body)) + body


def _preamble(header: int, payload: int, digest: bytes) -> bytes:
    return PREAMBLE.pack(MAGIC, FORMAT, 0, header, payload, READERS[FORMAT].encode(), digest)


def _digest(preamble: bytes, body: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(preamble[: PREAMBLE.size - 32])
    digest.update(body)
    return digest.digest()


def unpack(data: bytes, path: object) -> tuple[Any, memoryview]:
    """(header, payload) of a whole file's bytes, every one of them covered by the hash. Raises ArtifactError."""
    if len(data) < PREAMBLE.size:
        raise refuse(path, f"it has {len(data)} bytes, fewer than the {PREAMBLE.size} every .vqc file begins with")
    magic, version, zero, header, payload, reader, digest = PREAMBLE.unpack_from(data)
    if magic != MAGIC:
        raise refuse(path, "it does not begin as a .vqc file does", "give a file that vqc.save or `vqc apply` wrote")
    if version not in READERS:
        release = reader.rstrip(b"\0").decode("ascii", "replace")
        known = " and ".join(map(str, READERS))
        raise refuse(path, f"it is of format {version}, this release reads format {known}",
                     f"read it with vqc {release!r} or later, or write it again")  # fmt: skip
    want = PREAMBLE.size + header + payload
    if want != len(data):
        short = "truncated" if len(data) < want else "followed by something else"
        raise refuse(path, f"it is {short}: {len(data)} bytes, where its preamble says {want}", "copy it again")
    if header > HEADER_LIMIT or zero:
        raise refuse(path, f"its preamble asks for a header of {header} bytes and reserved bits {zero}")
    body = memoryview(data)[PREAMBLE.size :]
    if _digest(data[: PREAMBLE.size], body) != digest:
        raise refuse(path, "its content does not have the hash it states: it was damaged or changed", "copy it again")
    return _header(bytes(body[:header]), path), body[header:]


def _header(text: bytes, path: object) -> Any:
    """The header parsed; only the one canonical form is taken, so that no two readers understand it differently."""
    try:
        parsed = json.loads(text.decode("ascii"))  # of bytes, json would guess an encoding and load what decodes it
        same = canonical(parsed) == text.rstrip(b" ")
    except (ValueError, RecursionError) as e:
        raise refuse(path, f"its header is not JSON of a reasonable depth: {e}") from e
    if not same:
        raise refuse(path, "its header is not written in the one form it has")
    return parsed


def read_bytes(path: str | Path, limit: int = SIZE_LIMIT) -> bytes:
    """The bytes of a regular file of at most `limit`. Raises ArtifactError."""
    try:
        with open(path, "rb") as f:
            about = os.fstat(f.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise refuse(path, "it is no regular file", "give a file")
            if about.st_size > limit:
                raise refuse(path, f"it has {about.st_size} bytes, the limit is {limit}", "raise max_bytes")
            return f.read(limit + 1)
    except OSError as e:
        raise refuse(path, e.strerror or str(e), "check the path") from e


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file beside its place and rename it: it is there whole or not at all. Raises ArtifactError."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with open(beside, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as e:
        raise ArtifactError(f"{path.name} cannot be written", where=str(path), why=e.strerror or str(e),
                            way_out="give a writable folder with room") from e  # fmt: skip
    return path
