"""Bad input: every wrong call of a generated model gives its code and message; failing compilers keep the sources."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch
from c_exports import matting
from c_helpers import compiled
from c_programs import tiny

from vqc.backends.c.build import build_library, find_compiler
from vqc.backends.c.emit import KERNELS, generate
from vqc.backends.c.lower import lower
from vqc.backends.c.registry import why_not
from vqc.backends.c.runtime import CPU_ERROR, WEIGHT_ERRORS, ModelStruct, aligned
from vqc.errors import TargetError

CODES = re.findall(r"VQC_(?:OK|E_\w+)", re.search(r"enum vqc_error \{(.*?)\}", (KERNELS / "vqc_common.h").read_text(),
                                                   re.S)[1])  # fmt: skip
CODES = list(dict.fromkeys(CODES))


@pytest.fixture(scope="module")
def model():
    return compiled(matting()).model


class Raw:
    """The C functions with nothing between: every call gives the name of its code."""

    def __init__(self, model):
        self.model, self.struct = model, ModelStruct()
        self.weights, self.arena = model._weights, model._arena
        self.sizes = (len(model.model.weights), model.model.arena_size)
        self.state = aligned(model.model.state_size)
        self.inputs = [torch.rand(v.shape) for v in model.model.lowered.inputs]
        self.outputs = [torch.empty(v.shape, dtype=v.dtype) for v in model.model.lowered.outputs]

    def call(self, name, *arguments):
        f = getattr(self.model.library, f"{self.model.model.name}_{name}")
        f.restype = ctypes.c_int
        return CODES[f(*arguments)]

    def init(self, weights="given", arena="given", weights_size=None, arena_size=None, struct="given"):
        return self.call(
            "init", None if struct is None else ctypes.byref(self.struct),
            ctypes.c_void_p(self.weights.data_ptr() if weights == "given" else weights),
            ctypes.c_size_t(self.sizes[0] if weights_size is None else weights_size),
            ctypes.c_void_p(self.arena.data_ptr() if arena == "given" else arena),
            ctypes.c_size_t(self.sizes[1] if arena_size is None else arena_size))  # fmt: skip

    def reset(self, state="given"):
        where = self.state.data_ptr() if state == "given" else state
        return self.call("reset", ctypes.byref(self.struct), ctypes.c_void_p(where))

    def run(self, state="given", inputs="given", outputs="given"):
        def pointers(given, tensors):
            if given is None:
                return None
            values = [t.data_ptr() for t in tensors] if given == "given" else given
            return (ctypes.c_void_p * len(values))(*values)

        where = self.state.data_ptr() if state == "given" else state
        return self.call("run", ctypes.byref(self.struct), ctypes.c_void_p(where), pointers(inputs, self.inputs),
                         pointers(outputs, self.outputs))  # fmt: skip


def test_the_codes_of_the_runtime_are_those_of_the_header(model):
    assert [CODES[c] for c in WEIGHT_ERRORS] == [f"VQC_E_WEIGHTS_{w}" for w in
                                                 ("SIZE", "MAGIC", "ABI", "OTHER", "DAMAGED")]  # fmt: skip
    assert CODES[CPU_ERROR] == "VQC_E_CPU"
    texts = [model.strerror(c) for c in range(len(CODES))]
    assert len(set(texts)) == len(CODES) and "unknown error" not in texts
    assert model.strerror(len(CODES)) == model.strerror(-1) == "unknown error"


def test_init_refuses_what_is_wrong(model):
    raw = Raw(model)
    at = raw.weights.data_ptr(), raw.arena.data_ptr()
    assert raw.init() == "VQC_OK"
    assert raw.init(struct=None) == raw.init(weights=None) == raw.init(arena=None) == "VQC_E_NULL"
    assert raw.init(arena_size=raw.sizes[1] - 1) == raw.init(arena_size=0) == "VQC_E_ARENA"
    assert raw.init(arena=None, arena_size=0) == "VQC_E_ARENA"
    assert raw.init(weights=at[0] + 4) == raw.init(arena=at[1] + 32) == "VQC_E_ALIGN"
    for size in (0, 63, raw.sizes[0] - 1, raw.sizes[0] + 1):
        assert raw.init(weights_size=size) == "VQC_E_WEIGHTS_SIZE"
    assert raw.reset() == raw.run() == "VQC_E_MODEL"  # a model whose init failed does nothing


def test_weights_of_another_version_or_program_or_damaged_are_refused(model):
    raw = Raw(model)
    raw.weights = aligned(raw.sizes[0])
    for at, code in ((0, "MAGIC"), (8, "ABI"), (16, "SIZE"), (24, "OTHER"), (64, "DAMAGED"), (-1, "DAMAGED")):
        raw.weights.copy_(model._weights)
        raw.weights[at] ^= 1
        assert raw.init() == f"VQC_E_WEIGHTS_{code}", at


def test_a_step_refuses_what_is_wrong(model):
    raw = Raw(model)
    assert raw.init() == "VQC_OK"
    assert raw.run() == "VQC_E_STATE"  # never reset
    assert raw.reset(None) == raw.run(None) == "VQC_E_NULL"
    assert raw.reset(raw.state.data_ptr() + 16) == raw.run(raw.state.data_ptr() + 16) == "VQC_E_ALIGN"
    assert raw.reset() == raw.run() == "VQC_OK"
    assert raw.run(inputs=None) == raw.run(outputs=None) == "VQC_E_NULL"
    assert raw.run(inputs=[None]) == raw.run(outputs=[raw.outputs[0].data_ptr(), None, 64]) == "VQC_E_NULL"
    assert raw.run(inputs=[raw.inputs[0].data_ptr() + 1]) == "VQC_E_ALIGN"
    raw.state[:8] = 255  # another program's
    assert raw.run() == "VQC_E_STATE"
    raw.struct.variant = 1
    assert raw.reset() == "VQC_E_MODEL"
    raw.struct.variant = 0
    assert raw.call("select", ctypes.byref(raw.struct), 1) == "VQC_E_MODEL"
    assert raw.call("select", None, 0) == "VQC_E_NULL"
    raw.struct.program += 1
    assert raw.reset() == raw.run() == "VQC_E_MODEL"


def test_a_state_of_another_program_is_refused(model):
    raw, other = Raw(model), compiled(tiny()).model
    assert raw.init() == "VQC_OK"
    assert raw.run(state=other.new_state().data_ptr()) == "VQC_E_STATE"


def test_a_compiler_that_fails_is_quoted_and_the_sources_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("VQC_CACHE", str(tmp_path))
    compiler = find_compiler()
    with pytest.raises(TargetError, match="no_such_type") as e:
        build_library({"a.c": '#include "a.h"\n', "a.h": "no_such_type x;\n"}, "portable", compiler)
    kept = Path(re.search(r", in (\S+)", str(e.value))[1])
    assert kept.is_relative_to(tmp_path) and (kept / "a.h").read_text() == "no_such_type x;\n"
    assert (kept / "a.c").exists() and not list((tmp_path / "c").glob("build-*"))
    twice = {f"{f}.c": "int there(void);\nint there(void) { return 1; }\n" for f in "bc"}
    with pytest.raises(TargetError, match="(?s)the shared library failed.*there"):
        build_library(twice, "portable", compiler)


def test_an_arena_beyond_the_size_type_does_not_compile_there(tmp_path):
    """On a machine of 32 bits the header stops the compiler with a reason; on one of 64 bits all is well."""
    lowered = lower(tiny(), "portable")
    for b in {b for c in lowered.calls for b in (*c.reads, *c.writes)}:
        b.size = 2**33 if b.kind == "arena" else b.size  # only the plan looks at it
    model = generate(lowered, ["x"], ["y"])
    assert model.arena_size >= 2**33
    for file, text in model.sources.items():
        (tmp_path / file).write_text(text)
    for triple, works in (("x86-linux-musl", False), ("x86_64-linux-musl", True)):
        flags = ["-target", triple, "-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-c", "tiny.c"]
        done = subprocess.run([*find_compiler("zig").command, *flags], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode == 0) is works, done.stderr
        assert works or f"tiny needs {model.arena_size} bytes in one piece" in done.stderr


def test_a_tensor_of_too_many_elements_is_declined():
    program = tiny()
    node = program.calls[0]
    node.meta["val"] = torch.empty(2**16, 2**15, device="meta")
    assert why_not(program, node, "portable") == f"{node.name} has 2^31 elements or more"
