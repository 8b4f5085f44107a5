"""The student computes what the program does, and writes back what it has become."""

import pytest
import torch
from networks import clip, low_bits, recurrent

import vqc
from vqc.errors import PipelineError
from vqc.learning.execute import execute, whole
from vqc.learning.student import Student
from vqc.program import evaluate


def outputs(student, step, state):
    p = student.program
    found = execute(p, p.calls, whole(p, [step], state), set(p.result_nodes), student.overrides())
    return [found[n].detach() for n in p.result_nodes]


@pytest.fixture(params=["weight_bits=4", "weight_bits=3,granularity=channel", "weight_bits=4,activation_bits=4"])
def taught(request):
    twin = recurrent()
    program = low_bits(twin, [clip(4)], request.param)
    return program, twin, Student(program, twin)


def test_baking_what_was_not_changed_changes_nothing(taught):
    program, _, student = taught
    before = {k: v.clone() for k, v in program.constants.items() if isinstance(v, torch.Tensor)}
    text = str(program)
    student.bake()
    assert str(program) == text
    for k, v in before.items():
        torch.testing.assert_close(program.constants[k], v, rtol=1e-6, atol=1e-7)


def test_baked_programs_compute_what_the_student_did(taught):
    """Every kind of parameter moved: roundings, gains (one negative), biases, steps and zero points."""
    program, _, student = taught
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in student.layers.values():
            q = layer.quantizer
            q.learned = True
            q.v += torch.randn(q.v.shape, generator=g)
            q.gain *= 1 + 0.1 * torch.randn(q.gain.shape, generator=g)
            q.gain[0] *= -1
            layer.bias += 0.1 * torch.randn(layer.bias.shape, generator=g)
        for q in student.activations.values():
            if q.learns:
                q.log_scale += 0.1
                q.zero += 1.3
    step, state = clip(4)[2], [torch.rand(s.shape, generator=g) - 0.5 for s in program.states]
    want = outputs(student, step, state)
    student.bake()
    got = evaluate(program, [step], state)
    for a, b in zip(got, want, strict=True):
        # a float32 scale here, a double in the graph: a value between two steps may go to either
        assert float((a - b).abs().median()) <= 1e-5 * float(b.abs().max())
        assert float((a - b).square().mean()) <= 1e-3 * float(b.square().mean())
    assert all(bool((program.constants[layer.scale] > 0).all()) for layer in student.layers.values())
    lowered = vqc.apply(program, "lower-integer,exact-float,canonicalize")
    for a, b in zip(evaluate(lowered, [step], state), got, strict=True):
        assert float((a - b).square().mean()) <= 1e-3 * float(b.square().mean())


def test_a_picture_on_its_own_grid_keeps_its_bias_right():
    """Where the input's grid is shifted against the picture, the bias takes that off for the weight as it becomes."""
    from handmade import Hand, aten
    from networks import conv

    h = Hand()
    x = h.input("x", 1, 3, 16, 16)
    mean, std = h.const("mean", torch.tensor([0.4855, 0.456, 0.406]).view(1, 3, 1, 1)), h.const("std", 0.229)
    n = h(aten.div.Tensor, h(aten.sub.Tensor, x, mean), std)
    y = h(aten.relu, conv(h, "first", n, 4, 3, 1))
    twin = h.done(conv(h, "head", y, 1, 4, 1))
    twin.inputs = tuple(type(i)(i.name, i.shape, i.dtype, (0.0, 1.0), i.frames) for i in twin.inputs)
    program = low_bits(twin, [clip(4)], "weight_bits=4")
    student = Student(program, twin)
    layer = next(iter(student.layers.values()))
    assert layer.offset is not None and float(layer.offset.abs().max()) > 0
    with torch.no_grad():
        layer.quantizer.learned = True
        layer.quantizer.v.neg_()  # every rounding is the other one
    student.bake()
    picture = torch.full((1, 3, 16, 16), 77 / 255)
    real = evaluate(program.with_outputs([layer.node.args[1].name]), [picture])[-1]
    normal = evaluate(twin.with_outputs([n.name]), [picture])[-1]
    want = aten.conv2d(normal, real, twin.constants["first.b"])  # the new weight on the undisturbed picture
    got = evaluate(program.with_outputs([layer.node.name]), [picture])[-1]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_taught_is_said():
    twin = recurrent()
    with pytest.raises(PipelineError, match="no quantized layer"):
        Student(twin, twin)
    program = low_bits(twin, [clip(4)])
    other = recurrent()
    for n in list(other.graph.nodes):
        if n.op == "call_function":
            n.name = f"other_{n.name}"
    with pytest.raises(PipelineError, match="no float weight"):
        Student(program, other)
