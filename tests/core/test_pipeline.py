"""Pipelines: text that round-trips, errors that say what is wrong, and the checks around every pass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from handmade import Hand, aten
from hypothesis import given
from hypothesis import strategies as st

from vqc import pipeline
from vqc.errors import NumericsError, PipelineError, SpecError
from vqc.passes import Canonicalize, FoldBN
from vqc.pipeline import Close, Exact, Lossy, Numerics, Pass, PassContext, PassResult, Pipeline, make_pass, parse
from vqc.program import Program


@dataclass(frozen=True)
class Options(Pass):
    """A pass with an option of every kind."""

    flag: bool = False
    bits: int = 8
    rate: float = 0.5
    text: str = "mean"
    mode: Literal["fast", "slow"] = "fast"
    keep: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)
    limit: int | None = None
    bound: float | None = 1.0

    name: ClassVar[str] = "test-options"
    numerics: ClassVar[Numerics] = Exact()

    def apply(self, program: Program, context: PassContext) -> PassResult:
        return PassResult(program)


@dataclass(frozen=True)
class Damage(Pass):
    """A pass that does `what` and promises `numerics`."""

    what: str = "nothing"
    promise: str = "exact"

    name: ClassVar[str] = "test-damage"
    numerics: ClassVar[Numerics] = Exact()

    def apply(self, program: Program, context: PassContext) -> PassResult:
        result = PassResult(program)
        relu = program.node("relu")
        if self.what == "scale":
            with program.graph.inserting_after(relu):
                scaled = program.call(aten.mul.Tensor, (relu, 1.0 + 1e-6))
            relu.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
            result.count("scale")
        elif self.what == "lose a state":
            program.states = ()
        elif self.what == "break":
            program.constants.clear()
        elif self.what == "state":  # wrong only from the second step on
            add = program.node("add")
            add.replace_input_with(program.node("s"), program.node("mul"))
        result.decline(relu, "as a test")
        result.notes.append("a note")
        return result


@dataclass(frozen=True)
class CloseDamage(Damage):
    name: ClassVar[str] = "test-close-damage"
    numerics: ClassVar[Numerics] = Close(1e-5)


@dataclass(frozen=True)
class LossyDamage(Damage):
    name: ClassVar[str] = "test-lossy-damage"
    numerics: ClassVar[Numerics] = Lossy(60.0)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch):
    pipeline.passes()  # the built-in ones register first
    known = dict(pipeline.REGISTRY)
    known.update({c.name: c for c in (Options, Damage, CloseDamage, LossyDamage)})
    monkeypatch.setattr(pipeline, "REGISTRY", known)


def cell() -> Program:
    h = Hand("cell")
    x = h.input("x", 4)
    s = h.state("s", torch.zeros(4))
    m = h(aten.mul.Tensor, x, h.const("c", torch.full((4,), 0.0)))
    a = h(aten.add.Tensor, m, s)
    return h.done(h(aten.relu, h(aten.add.Tensor, a, x)), states=[h(aten.tanh, x)])


# ---- text ------------------------------------------------------------------------------------------------------------

WORDS = st.text("abcdefgh_.*0123456789", min_size=1, max_size=8).filter(lambda t: t != "none")
OPTIONS = st.builds(
    Options,
    flag=st.booleans(),
    bits=st.integers(-5, 40),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    text=WORDS,
    mode=st.sampled_from(["fast", "slow"]),
    keep=st.lists(WORDS, max_size=3).map(tuple),
    sizes=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    limit=st.none() | st.integers(0, 99),
    bound=st.none() | st.floats(0, 1),
)


@given(st.lists(OPTIONS | st.builds(FoldBN, st.booleans(), st.booleans()) | st.builds(Canonicalize), max_size=4))
def test_text_round_trips(passes: list[Pass]):
    whole = Pipeline(tuple(passes))
    assert parse(str(whole)) == whole


def test_text_shows_what_differs_from_the_default():
    assert str(Options()) == "test-options"
    assert str(Options(flag=True, keep=("a", "b"), bound=None)) == "test-options{flag=true,keep=[a,b],bound=none}"
    assert str(parse(" fold-bn { affine = true } , canonicalize ")) == "fold-bn{affine=true},canonicalize"
    assert parse("").passes == ()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("fold-batchnorm", "there is no pass called 'fold-batchnorm'"),
        ("fold-bn{fast=true}", "pass fold-bn has no option 'fast'"),
        ("fold-bn{affine}", "option 'affine' of pass fold-bn has no value"),
        ("fold-bn{affine=maybe}", "option fold-bn.affine cannot be 'maybe'"),
        ("test-options{bits=many}", "option test-options.bits cannot be 'many'"),
        ("test-options{sizes=[1,x]}", "option test-options.sizes cannot be 'x'"),
        ("test-options{keep=block1}", "option test-options.keep cannot be 'block1'"),
        ("test-options{mode=medium}", "option test-options.mode cannot be 'medium'"),
        ("fold-bn{affine=true", "leaves a brace open"),
        ("fold-bn}", "closes a brace it never opened"),
        ("Fold BN", "pipeline part 'Fold BN' is not understood"),
        ("fold-bn,,canonicalize", "pipeline part '' is not understood"),
    ],
)
def test_texts_that_are_not_understood(text: str, what: str):
    with pytest.raises(PipelineError) as e:
        parse(text)
    assert what in str(e.value)


def test_errors_name_the_way_out():
    with pytest.raises(PipelineError) as e:
        parse("fold")
    assert "fold-bn" in e.value.way_out
    with pytest.raises(PipelineError) as e:
        make_pass("fold-bn", {"x": 1})
    assert e.value.way_out == "its options are affine, scales"


def test_options_as_values():
    assert make_pass("test-options", {"bits": 4, "keep": ("a",)}) == Options(bits=4, keep=("a",))
    assert make_pass("test-options", {"limit": "7"}) == Options(limit=7)


def test_two_passes_of_one_name():
    @dataclass(frozen=True)
    class Other(Options):
        name: ClassVar[str] = "fold-bn"

    with pytest.raises(PipelineError, match="two passes are called fold-bn"):
        pipeline.register(Other)


@pytest.mark.parametrize("cls", pipeline.passes().values(), ids=pipeline.passes().keys())
def test_every_pass_is_a_frozen_dataclass_with_a_contract(cls: type[Pass]):
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert isinstance(cls.numerics, (Exact, Close, Lossy))
    assert cls.__doc__
    assert parse(str(cls())).passes == (cls(),)


# ---- the manager -----------------------------------------------------------------------------------------------------


def test_history_and_callback():
    seen: list[Any] = []

    def watch(p: Pass, before: Program, after: Program, seconds: float) -> None:
        seen.append((str(p), len(before.history), len(after.history), seconds >= 0))

    before = cell()
    after = Pipeline(parse("test-damage{what=scale},canonicalize").passes, watch).run(before)
    assert seen == [("test-damage{what=scale}", 0, 1, True), ("canonicalize", 1, 2, True)]
    assert str(after.history[0]) == "test-damage{what=scale}: scale x1\n    a note\n    left relu: as a test"
    assert before.history == ()


def test_the_program_given_never_changes():
    before = cell()
    text = str(before)
    Damage("scale")(before)
    assert str(before) == text


@pytest.mark.parametrize("steps", [1, 2])
def test_a_wrong_result_is_caught(steps: int):
    with pytest.raises(NumericsError, match="pass test-damage{what=scale} changed output 0 at step 0") as e:
        Damage("scale")(cell(), PassContext(debug=True))
    assert "it promises equal bits" in e.value.why
    Damage("scale")(cell())  # without debug nobody looks
    CloseDamage("scale")(cell(), PassContext(debug=True))
    LossyDamage("scale")(cell(), PassContext(debug=True))


def test_a_result_wrong_from_the_second_step_is_caught():
    """The probe carries the state: a recurrent connection that was cut shows at step 1."""
    for kind, promise in ((Damage, "equal bits"), (CloseDamage, "over the bound"), (LossyDamage, "SQNR")):
        with pytest.raises(NumericsError, match="changed output 0 at step 1") as e:
            kind("state")(cell(), PassContext(debug=True))
        assert promise in e.value.why


def test_the_user_s_own_probe():
    steps = [[torch.zeros(4)], [torch.zeros(4)]]
    Damage("state")(cell(), PassContext(debug=True, probe=steps))  # nothing to see on zeros


def test_a_lost_state_is_caught():
    with pytest.raises(NumericsError, match=r"lost a state") as e:
        Damage("lose a state")(cell())
    assert e.value.why == "['s'] became []"


def test_a_broken_program_is_caught():
    with pytest.raises(SpecError, match=r"program cell is not valid after test-damage\{what=break\}"):
        Damage("break")(cell())


def test_progress_is_reported():
    seen: list[Any] = []
    PassContext(progress=lambda *a: seen.append(a)).report("layer", 1, 3)
    PassContext().report("nobody listens", 0, 0)
    assert seen == [("layer", 1, 3)]
