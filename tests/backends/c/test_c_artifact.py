"""The generated artifact: text, determinism, clean compilation, weights check, re-entrancy, export and self-test."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from c_helpers import chain, check, compiled
from c_programs import qd, tiny, vops, wide
from expecttest import assert_expected_inline

import vqc.ops  # noqa: F401
from vqc.backends.c import CBackend
from vqc.backends.c.backend import generate_model
from vqc.backends.c.build import find_compiler, flags_for
from vqc.backends.c.emit import FAMILIES, c_name, kernel_files, kernel_sources, number
from vqc.backends.c.runtime import CModel, aligned
from vqc.backends.c.targets import COMMON, THREAD_POOL, WARNINGS
from vqc.errors import ArtifactError, TargetError


def test_text_of_a_small_model():
    sources = generate_model(tiny(), "native").sources
    step, body = sources["tiny_step.c"], sources["tiny.c"]
    tables = step[step.index("static const vqc_conv_params") : step.index("#define A(")]
    assert_expected_inline(
        tables,
        """\
static const vqc_conv_params p_conv2d_default = {.n = 1, .c = 1, .d = 1, .h = 2, .w = 3, .o = 1, .od = 1, .oh = 2,
    .ow = 3, .groups = 1, .kd = 1, .kh = 1, .kw = 1, .sd = 1, .sh = 1, .sw = 1, .dd = 1, .dh = 1, .dw = 1, .rows = 2,
    .scratch = 64};
static const vqc_pw_operand p_add_tensor_operands[] = {{.dtype = VQC_F32, .stride = {1}}, {.dtype = VQC_F32,
    .stride = {1}}, {.dtype = VQC_F32, .stride = {1}}};
static const vqc_pw_op p_add_tensor_ops[] = {{.code = VQC_PW_LOAD}, {.code = VQC_PW_MUL, .b = 255, .i = 0.25},
    {.code = VQC_PW_LOAD, .d = 1, .b = 1}, {.code = VQC_PW_ADD, .d = 1, .b = 1}, {.code = VQC_PW_STORE, .a = 1,
    .b = 2}};
static const vqc_pw_params p_add_tensor = {.dims = 1, .shape = {6}, .operands = p_add_tensor_operands, .inputs = 2,
    .outputs = 1, .ops = p_add_tensor_ops, .count = 5};
static const vqc_pw_operand p_relu_default_operands[] = {{.dtype = VQC_F32, .stride = {1}}, {.dtype = VQC_F32,
    .stride = {1}}};
static const vqc_pw_op p_relu_default_ops[] = {{.code = VQC_PW_LOAD}, {.code = VQC_PW_MAX, .b = 255},
    {.code = VQC_PW_STORE, .b = 1}};
static const vqc_pw_params p_relu_default = {.dims = 1, .shape = {6}, .operands = p_relu_default_operands,
    .inputs = 1, .outputs = 1, .ops = p_relu_default_ops, .count = 3};

""",
    )
    assert_expected_inline(
        step[step.index("#define A(") :],
        """\
#define A(offset) ((void *)(m->arena + (offset)))
#define W(offset) ((const void *)(m->weights + (offset)))
#define S(offset) ((const void *)(state + (offset)))
#define N(offset) ((void *)(next + (offset)))
#define I(index) (inputs[index])
#define O(index) (outputs[index])
#define MARK(call) do { if (m->mark != NULL) m->mark(m->mark_arg, call); } while (0)

void tiny_step(const vqc_model *m, const unsigned char *state, unsigned char *next,
    const void *const *inputs, void *const *outputs) {
    MARK(-1);
    /* conv2d_default: f32[1,1,2,3]  test.py: aten.conv2d.default */
    vqc_conv_f32(m, &p_conv2d_default, I(0), W(0), NULL, NULL, A(64), A(0));
    MARK(0);
    /* add_tensor: f32[1,1,2,3]  test.py: aten.add.Tensor */
    vqc_pointwise_f32(m, &p_add_tensor, (const void *const[]){A(64), S(0)}, (void *const[]){N(0)});
    MARK(1);
    /* relu_default: f32[1,1,2,3]  test.py: aten.relu.default */
    vqc_pointwise_f32(m, &p_relu_default, (const void *const[]){N(0)}, (void *const[]){O(0)});
    MARK(2);
}
""",
    )
    assert_expected_inline(
        body[body.index("typedef void step") : body.index("#define PROGRAM_ID")],
        """\
typedef void step(const vqc_model *m, const unsigned char *state, unsigned char *next,
    const void *const *inputs, void *const *outputs);
step tiny_step;

static const struct {
    int cpu;
    step *run;
} variants[] = {{VQC_CPU_BUILT_FOR, tiny_step}};
#define VARIANTS 1

int tiny_variants(void) { return VARIANTS; }
const char *tiny_variant_name(int variant) {
    return variant < 0 || variant >= VARIANTS ? "unknown" : vqc_cpu_name(variants[variant].cpu);
}

""",
    )
    assert_expected_inline(
        body[body.index("int tiny_reset") :],
        """\
int tiny_reset(const tiny_model *m, void *state) {
    const int error = check(m, state);
    if (error != VQC_OK) return error;
    memset(state, 0, VQC_ALIGN);
    memcpy(state, &m->program, sizeof m->program);
    memset((unsigned char *)state + 64u, 0, 24u);
    return VQC_OK;
}

int tiny_run_to(const tiny_model *m, const void *state, void *next,
    const void *const *inputs, void *const *outputs) {
    int error = check(m, state);
    if (error == VQC_OK) error = check(m, next);
    if (error != VQC_OK) return error;
    if (memcmp(state, &m->program, sizeof m->program) != 0) return VQC_E_STATE;
    if (inputs == NULL) return VQC_E_NULL;
    if (outputs == NULL) return VQC_E_NULL;
    if (inputs[0] == NULL) return VQC_E_NULL;
    if ((uintptr_t)inputs[0] % 4 != 0) return VQC_E_ALIGN;
    if (outputs[0] == NULL) return VQC_E_NULL;
    if ((uintptr_t)outputs[0] % 4 != 0) return VQC_E_ALIGN;
    if (next != state) memcpy(next, state, 64u);
    variants[m->variant].run(m, (const unsigned char *)state + 64, (unsigned char *)next + 64, inputs, outputs);
    return VQC_OK;
}

int tiny_run(const tiny_model *m, void *state, const void *const *inputs, void *const *outputs) {
    return tiny_run_to(m, state, state, inputs, outputs);
}
""",
    )


def test_generation_is_deterministic():
    a, b = generate_model(wide(), "native"), generate_model(wide(), "native")
    assert a.sources == b.sources and a.weights == b.weights
    assert generate_model(wide(2.0), "native").weights != a.weights


def _compilers():
    found = [("zig", find_compiler("zig").command)] if find_compiler().version.startswith("zig") else []
    return found + [(c, (c,)) for c in ("gcc", "clang") if shutil.which(c)]


@pytest.mark.parametrize("target", ["native", "portable"])
@pytest.mark.parametrize(("name", "command"), _compilers(), ids=[n for n, _ in _compilers()])
def test_all_files_compile_without_a_warning(name, command, target, tmp_path):
    sources = kernel_sources(FAMILIES) | generate_model(wide(), target).sources | generate_model(tiny(), target).sources
    sources |= kernel_files([THREAD_POOL])
    for file, text in sources.items():
        (tmp_path / file).write_text(text)
    extra = ["-pedantic"] if target == "portable" else []
    for file in sources:
        if file.endswith(".c"):
            flags = [f if f != "-O3" else "-O1" for f in [*flags_for(file, target), *extra]]
            assert set(WARNINGS) <= set(flags) and "-std=c99" in flags and set(COMMON) - {"-O3"} <= set(flags)
            done = subprocess.run(
                [*command, *flags, "-c", file, "-o", "x.o"], cwd=tmp_path, capture_output=True, text=True
            )
            assert done.returncode == 0 and not done.stderr.strip(), f"{file}: {done.stderr}"


def test_many_families_give_the_reference_result():
    exe = check(wide(), rtol=1e-4, atol=1e-4)
    assert len({c.family for c in exe.model.model.lowered.calls}) >= 9
    check(wide(), rtol=1e-4, atol=1e-4, threads=3)
    check(wide(), rtol=1e-4, atol=1e-4, target="portable")


def _load(program):
    exe = compiled(program)
    return exe.model, bytearray(exe.model.model.weights)


def _try(model, raw, size=None):
    memory = aligned(len(raw))
    memory[: len(raw)].copy_(torch.frombuffer(raw, dtype=torch.uint8))
    model.init(memory, len(raw) if size is None else size, model._arena, model.model.arena_size)


def test_weights_are_checked():
    model, raw = _load(wide())
    _try(model, raw)
    cases = [(len(raw) - 64, "wrong size"), (40, "wrong size")]
    for size, text in cases:
        with pytest.raises(ArtifactError, match=text):
            _try(model, raw, size)
    for at, text in (
        (0, "not a weights file"),
        (8, "another version"),
        (30, "another program"),
        (len(raw) - 70, "damaged"),
    ):
        bad = bytearray(raw)
        bad[at] ^= 1
        with pytest.raises(ArtifactError, match=text):
            _try(model, bad)
    with pytest.raises(ArtifactError, match="another program"):
        _try(model, _load(wide(2.0))[1])
    with pytest.raises(TargetError, match="arena is too small"):
        model.init(model._weights, len(raw), model._arena, model.model.arena_size - 1)
    with pytest.raises(TargetError, match="aligned"):
        model.init(model._weights, len(raw), model._arena[4:], model.model.arena_size)


def test_a_model_of_another_program_is_refused():
    model, other = _load(tiny())[0], _load(wide())[0]
    state = model.new_state()
    model._struct = other._struct
    with pytest.raises(TargetError, match="not initialised by this program"):
        model.step(state, tiny().example)


def test_two_videos_and_two_models_do_not_disturb_each_other():
    exe = compiled(wide())
    first, loaded = exe.model, exe.model.library._name
    second = CModel(first.model, Path(loaded))
    frames = [torch.rand(1, 3, 10, 14) for _ in range(3)]

    def alone(order):
        state = first.new_state()
        return [first.step(state, [frames[i]]) for i in order]

    want = alone([0, 1, 2]), alone([2, 1, 0])
    a, b = first.new_state(), first.new_state()
    for t in range(3):
        got = first.step(a, [frames[t]]), (second if t % 2 else first).step(b, [frames[2 - t]])
        for g, w in zip(got, want, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(g, w[t], strict=True))


def test_step_leaves_the_given_state_alone_and_stream_resets():
    from vqc.executable import Stream

    exe = compiled(tiny())
    state = exe.program.initial_state()
    _, after = exe.step(exe.program.example, state)
    assert torch.equal(state[0], torch.zeros(1, 1, 2, 3)) and torch.equal(after[0], torch.full((1, 1, 2, 3), 0.125))
    stream = Stream(exe)
    one = stream.step(exe.program.example)[0]
    two = stream.step(exe.program.example)[0]
    stream.reset()
    assert not torch.equal(one, two) and torch.equal(stream.step(exe.program.example)[0], one)
    assert exe.report.state_bytes == 128 and exe.report.weight_bytes == 128 and exe.report.arena_bytes >= 64


def test_options_and_compilers_are_checked(monkeypatch, tmp_path):
    with pytest.raises(TargetError, match="no option 'speed'"):
        CBackend().compile(tiny(), "native", {"speed": 1})
    with pytest.raises(TargetError, match="fallback cannot be"):
        CBackend().compile(tiny(), "native", {"fallback": "maybe"})
    with pytest.raises(TargetError, match="threads cannot be"):
        CBackend().compile(tiny(), "native", {"threads": 0})
    with pytest.raises(TargetError, match="does not run"):
        CBackend().compile(tiny(), "native", {"cc": "no-such-compiler"})
    with pytest.raises(TargetError, match="no target 'native:elsewhere'"):
        CBackend().compile(tiny(), "native:elsewhere", {})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQC_CACHE", str(tmp_path / "file"))
    with pytest.raises(TargetError, match="cannot be written"):
        CBackend().compile(tiny(), "native", {})


def test_another_compiler_gives_the_same_bits():
    def build(b, x):
        y = b.call(
            vops.silu.default, b.call(vops.conv2d.default, x, torch.randn(5, 3, 3, 3), None, [1, 1], [1, 1], [1, 1], 1)
        )
        return y, b.call(qd.quantize_per_tensor.default, y, 0.01, 100, 0, 255, torch.uint8)

    p = chain(build, torch.randn(1, 3, 20, 70))
    exe = check(p, exact=True, cc="gcc")
    assert "gcc" in str(exe.report).lower()


def test_names_and_numbers():
    assert [c_name(n) for n in ("RVM", "my net-2", "3d", "for", "_x", "")] == [
        "rvm",
        "my_net_2",
        "m_3d",
        "m_for",
        "m__x",
        "model",
    ]
    values = [0.1, 1.0, -0.0, 1e30, 3.4028235e38, 1e-45, float("inf"), float("-inf")]
    assert [number(v) for v in values] == [
        "0.1f",
        "1.0f",
        "-0.0f",
        "1e+30f",
        "3.4028235e+38f",
        "1.4013e-45f",
        "INFINITY",
        "-INFINITY",
    ]


def test_steps_from_several_threads_take_turns():
    exe = compiled(wide())
    frames = [torch.rand(1, 3, 10, 14) for _ in range(4)]
    want = [exe.trace([f]) for f in frames]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda f: exe.trace([f]), frames * 8), want * 8, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
