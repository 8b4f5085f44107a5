"""Damaged and forged .vqc files are refused, or are valid programs; nothing else happens.

The changes are those of `benchmarks/corrupt_files.py`, which tries ten thousand of them.
"""

from __future__ import annotations

import json
import random
import re
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_bytes

from benchmarks import tables
from benchmarks.corrupt_files import DAMAGE, FORGERY, HOSTILE, original, outcome, rehashed, tried
from benchmarks.machine import machine, write
from vqc.errors import ArtifactError
from vqc.files.container import canonical, pack, unpack
from vqc.files.operators import find
from vqc.files.read import program_of

DATA = original()
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)


@given(change=st.sampled_from(DAMAGE), seed=st.integers(0, 2**32))
@settings(QUIET, max_examples=400)
def test_damage_is_always_found(change, seed):
    changed = change(DATA, random.Random(seed))
    assert changed == DATA or outcome(changed) == "refused"


@given(at=st.integers(0, len(DATA) - 1), value=st.integers(0, 255))
@settings(QUIET, max_examples=300)
def test_every_byte_counts(at, value):
    changed = DATA[:at] + bytes([value]) + DATA[at + 1 :]
    assert changed == DATA or outcome(changed) == "refused"


@given(change=st.sampled_from(FORGERY), seed=st.integers(0, 2**32))
@settings(QUIET, max_examples=80)
def test_forgery_is_refused_or_a_valid_program(change, seed):
    began = time.monotonic()
    assert outcome(change(DATA, random.Random(seed))) in ("refused", "loaded")
    assert time.monotonic() - began < 60


def test_the_record_counts_every_file(tmp_path):
    record = tried(12, 3)
    assert record["files"] == sum(record["found"].values()) == 12 and record["seed"] == 3
    assert record["found"]["damaged, refused"] > 2 and record["original_bytes"] == len(DATA)
    write("corrupt-files", [record], machine(), tmp_path / "here")
    assert "| files | seed | damaged, refused |" in tables.corrupt_files(tmp_path)
    assert f"| 12 | 3 | {record['found']['damaged, refused']} |" in tables.corrupt_files(tmp_path)


def forged(edit) -> bytes:
    header, payload = unpack(DATA, "original")
    edit(header)
    return pack(header, bytes(payload))


def call(header, starting):
    """The first call of an operator whose name starts so."""
    return next(n for n in header["program"]["nodes"] if n.get("target", "").startswith(starting))


def why(data: bytes) -> str:
    with pytest.raises(ArtifactError) as caught:
        program_of(data, "forged.vqc")
    return caught.value.why


@pytest.mark.parametrize("name", [
    "aten::from_file", "aten::resize_", "aten::relu_", "aten::bernoulli", "aten::add.__class__", "aten::add.out",
    "os::system", "builtins::eval", "prims::add", "c10d::send", "aten::__class__", "vqc::__init__",
    "aten::relu.relu.relu",
    "aten::quantized_gru.input", "inductor::_alloc_from_pool", "aten::item", "aten::_foreach_add.List", "",
])  # fmt: skip
def test_operators_that_no_file_may_name(name):
    assert find(name) is None
    assert "may name" in why(forged(lambda h: call(h, "aten::mul").update(target=name)))


@pytest.mark.parametrize(("edit", "reason"), [
    (lambda p: p["nodes"][0].update(name="x = 1; import os"), "no name of a node"),
    (lambda p: p["nodes"][0].update(name="lambda"), "no name of a node"),
    (lambda p: p["constants"][0].__setitem__(0, 'a"]; import os #'), "a constant"),
    (lambda p: p["inputs"][0].__setitem__(1, [2**39, 2**39]), "too large"),
    (lambda p: p["inputs"][0].__setitem__(1, [1, 3, 8, -12]), "no integer from 0"),
    (lambda p: p["inputs"][0].__setitem__(1, [1, 3, 6, 12]), "what it does not take|example|is f32|captured"),
    (lambda p: p["states"][0].__setitem__(2, 99), "no next value"),
    (lambda p: p["states"].clear(), "no input and no state"),
    (lambda p: p["results"].pop(), "no next value"),
    (lambda p: p["results"].reverse(), "its next value"),
    (lambda p: p["nodes"].reverse(), "before it is there"),
    (lambda p: p["nodes"].append(p["nodes"][-1]), "two nodes"),
    (lambda p: p["example"].append(p["example"][0]), "input tensors"),
    (lambda p: p["constants"].pop(), "no constant"),
    (lambda p: p["nodes"][0].update(meta={"val": 1}), "its own shape"),
    (lambda p: p.update(extra=1), "where"),
    (lambda p: p["signature"].update(in_leaves=[]), "other leaves"),
    (lambda p: p["history"][0].__setitem__(1, {"tuple": []}), "rewrites"),
])  # fmt: skip
def test_hostile_content_under_a_right_hash(edit, reason):

    found = why(forged(lambda h: edit(h["program"])))
    assert re.search(reason, found), found


def test_a_list_too_long_to_be_made_is_not_made():
    def edit(header):
        p = header["program"]
        p["inputs"][0][1] = [1, 1 << 30]
        p["nodes"] = [n for n in p["nodes"] if n["op"] == "placeholder"][:1]
        p["nodes"].append(
            {"name": "u", "op": "call_function", "target": "aten::unbind.int", "args": [{"node": "x"}, 1]}
        )

    began = time.monotonic()
    assert "are the most" in why(forged(edit))
    assert time.monotonic() - began < 5


def test_a_tensor_nobody_reads_is_refused():
    header, payload = unpack(DATA, "original")
    tensors = safetensors_load(bytes(payload)) | {"stowaway": torch.zeros(3)}
    assert "nothing reads the tensor ['stowaway']" in why(pack(header, safetensors_bytes(tensors)))


def test_exact_sums_cannot_stand_for_endless_digits():
    seen = next(v for v in HOSTILE if isinstance(v, dict) and "groups" in v.get("observed", {}))
    assert "fraction" in why(forged(lambda h: call(h, "aten::mul").update(meta={"observed": seen})))


def test_numbers_under_a_hash_are_not_checked_further():
    """What a file says is what it says: another weight is another program, not a damaged one."""

    def edit(header):
        header["program"]["notes"] = ["another note"]

    assert program_of(forged(edit), "x")[1].notes == ("another note",)


def test_one_form_of_a_header():
    header, _ = unpack(DATA, "original")
    assert json.loads(canonical(header)) == header
    assert canonical({"b": 1, "a": [1.0, -0.0]}) == b'{"a":[1.0,-0.0],"b":1}'
    with pytest.raises(ValueError):
        canonical(float("nan"))


@pytest.mark.parametrize("encoding", ["utf-32", "utf-16", "utf-8-sig"])
def test_a_header_in_another_encoding_is_refused_before_it_is_decoded(encoding):
    """Found by atheris: json guesses encodings of bytes, and then imports what decodes them."""
    header, payload = unpack(DATA, "original")
    with pytest.raises(ArtifactError, match="'ascii' codec"):
        program_of(rehashed(canonical(header).decode().encode(encoding), bytes(payload)), "x.vqc")
