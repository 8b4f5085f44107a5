"""The wild networks in C, whole: nothing is left to PyTorch, and the numbers are PyTorch's."""

from __future__ import annotations

import pytest
from test_wild_capture import CASES, again, captured, clones, close, eager, make

import vqc
from vqc.backends.c.backend import unsupported
from vqc.program import op_text

WHOLE = (
    "denoise_in_two_steps", "simple_gates", "dynamic_filters", "window_restore", "propagation", "second_order",
    "attention_fusion", "temporal_shift", "recurrent_flow", "cached_warps", "intermediate_features", "feature_pyramids",
    "inter_frame_attention_cold", "inter_frame_attention_warm", "portrait_inference", "portrait_all_outputs",
    "recurrent_matting_first_frame", "recurrent_matting_clip", "background_matting", "odd_layers", "shifted_windows_3d",
    "pooled_attention", "diffusion_block", "two_pathways", "two_pathways_overwriting", "factorised_3d", "topk_memory",
    "object_manager", "prompted_tracker", "conv_lstm", "library_layers", "remembers", "odd_results", "mixed_indexing",
)  # fmt: skip


def test_every_network_is_on_the_list() -> None:
    """A new network that C cannot take whole belongs here with its reason; today there is none."""
    assert set(CASES) == set(WHOLE)
    assert len(WHOLE) == 34


@pytest.mark.parametrize("name", WHOLE)
def test_whole(name: str) -> None:
    model, example = make(name)
    second = again(example)
    want = eager(model, second)
    program = vqc.apply(captured(model, example), "float")
    assert [f"{op_text(program.node(d.node).target)}: {d.reason}" for d in unsupported(program, "native")] == []
    exe = vqc.compile(program, target="native", fallback="none")
    assert not exe.report.fallbacks
    close(vqc.Stream(exe)(*clones(second)), want, "C")
