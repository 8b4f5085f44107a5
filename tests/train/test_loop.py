"""The training loop: it learns, goes on after a kill with the same bits, carries the state, and says when it fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vqc.errors import TrainingError
from vqc.models.bivm import BiVM
from vqc.train.data import Material, Sample, Sampler
from vqc.train.evaluate import mattes, score
from vqc.train.loop import Schedule, Trainer
from vqc.train.stages import PRESETS, preset
from vqc.video.sheets import drawn_portrait

STAGE = Schedule("s", 6, batch=1, frames=4, window=2, size=(32, 48), backbone_rate=2e-3, decoder_rate=2e-3)


def net(bits: int = 1) -> BiVM:
    torch.manual_seed(0)
    return BiVM(bits, width=0.25)


def sampler(frames: int, size: tuple[int, int]) -> Sampler:
    return Sampler(Material([], [drawn_portrait((60, 64), 1)], []), frames, size, drawn=0.0)


def weights(of: BiVM) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in of.state_dict().items()}


def test_it_learns() -> None:
    """On one clip that is always the same, the loss falls to less than half."""
    fixed = sampler(4, (32, 48)).sample(0, 0)

    class Same(Sampler):
        def sample(self, seed: int, number: int) -> Sample:
            return fixed

    losses = []
    taught = net()
    Trainer(taught, lambda f, s: Same(sampler(f, s).material, f, s, 0.0),
            log=lambda step, steps, terms: losses.append(terms["total"])).run([replace(STAGE, steps=60)])  # fmt: skip
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])
    assert not taught.training


@pytest.mark.parametrize("amp", [False, True])
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, amp: bool) -> None:
    stages = [replace(STAGE, steps=6, amp=amp), replace(STAGE, name="t", steps=4, burn_in=2, amp=amp)]
    straight = net()
    Trainer(straight, sampler, folder=tmp_path / "a").run(stages)

    class Killed(Exception):
        pass

    def killer(at: int, stage: list[int]):  # type: ignore[no-untyped-def]
        def log(step: int, steps: int, terms: dict[str, float]) -> None:
            stage[0] += 1
            if stage[0] == at:
                raise Killed

        return log

    for at in (1, 3, 2, 5):  # also before any checkpoint, and in the second stage
        with pytest.raises(Killed):
            Trainer(net(), sampler, folder=tmp_path / "b", every=0.0, log=killer(at, [0])).run(stages)
    again = net()
    Trainer(again, sampler, folder=tmp_path / "b", every=0.0).run(stages)
    for key, value in weights(straight).items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_the_state_is_carried_between_windows_and_not_between_clips() -> None:
    seen = []

    class Watched(BiVM):
        def details(self, src, states=(None,) * 4, ratio=1.0):  # type: ignore[no-untyped-def]
            seen.append((states[0] is None, states[0] is not None and states[0].requires_grad))
            return super().details(src, states, ratio)

    torch.manual_seed(0)
    Trainer(Watched(width=0.25), sampler).run([STAGE])
    assert [empty for empty, _ in seen] == [True, False] * 3
    assert not any(grad for _, grad in seen)


def test_burn_in_fills_the_state_as_inference_would() -> None:
    """Frames before the first window are seen in eval mode without a gradient; how many changes from clip to clip."""
    seen: list[tuple[int, bool, bool, bool]] = []

    class Watched(BiVM):
        def details(self, src, states=(None,) * 4, ratio=1.0):  # type: ignore[no-untyped-def]
            seen.append((src.shape[1], self.training, torch.is_grad_enabled(), states[0] is None))
            return super().details(src, states, ratio)

    torch.manual_seed(0)
    clips = 8
    Trainer(Watched(width=0.25), sampler).run([replace(STAGE, steps=2 * clips, burn_in=3)])
    learned = [s for s in seen if s[1]]
    filled = [s for s in seen if not s[1]]
    assert [frames for frames, *_ in learned] == [2] * 2 * clips and all(grad for _, _, grad, _ in learned)
    assert all(not grad and empty for _, _, grad, empty in filled)
    lengths = {frames for frames, *_ in filled}
    assert lengths <= {1, 2, 3} and len(lengths) > 1
    assert sum(empty for *_, empty in learned) == clips - len(filled) < clips  # a clip whose number was 0 starts empty


def test_mimicking_and_the_refiner_are_trained_where_asked() -> None:
    twin = net(32).eval()
    logs: list[dict[str, float]] = []
    taught = net()
    before = weights(taught)
    stage = replace(STAGE, steps=2, size=(64, 96), refine=0.5, refiner_rate=1e-3, mimic=1e-2)
    Trainer(taught, sampler, twin=twin, log=lambda s, n, terms: logs.append(terms)).run([stage])
    assert logs[0]["mimic"] > 0
    after = taught.state_dict()
    changed = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}
    assert {"backbone", "aspp", "decoder", "project_mat", "refiner"} <= changed
    assert all(torch.equal(v, net(32).state_dict()[k]) for k, v in twin.state_dict().items())


def test_what_does_not_learn_stays_as_it_is() -> None:
    """Weights and the statistics of norms alike."""
    taught = net()
    before = weights(taught)
    stage = replace(STAGE, steps=2, size=(64, 96), burn_in=1, refine=0.5, backbone_rate=0.0, decoder_rate=0.0,
                    refiner_rate=1e-3)  # fmt: skip
    Trainer(taught, sampler).run([stage])
    changed = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, taught.state_dict()[k])}
    assert changed == {"refiner"}


def test_statistics_are_taken_once_and_stay() -> None:
    """They are the mean over the batches they were taken from, and no step changes them."""
    taught, other = net(), net()
    for m in (taught, other):  # nothing of this stage runs the refiner
        next(n for n in m.refiner.modules() if isinstance(n, torch.nn.BatchNorm2d)).running_mean.fill_(0.5)
    refined = {k: v for k, v in weights(taught).items() if k.startswith("refiner.")}
    stage = replace(STAGE, steps=4, statistics=3)
    seen: list[dict[str, Tensor]] = []
    Trainer(taught, sampler, log=lambda step, steps, terms: seen.append(weights(taught))).run([stage])
    trainer = Trainer(other, sampler)
    trainer._take_statistics(0, stage)
    norms = [k for k in seen[0] if k.endswith(("running_mean", "running_var"))]
    assert any(not torch.equal(seen[0][k], net().state_dict()[k]) for k in norms)
    for k in norms:
        assert torch.equal(seen[0][k], seen[-1][k]) and torch.equal(seen[0][k], other.state_dict()[k]), k
    assert all(torch.equal(seen[-1][k], v) for k, v in refined.items())
    assert all(m.momentum == 0.1 for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d))
    counts = {int(m.num_batches_tracked) for part in (other.backbone, other.decoder) for m in part.modules()
              if isinstance(m, torch.nn.BatchNorm2d)}  # fmt: skip
    assert counts == {2 * stage.statistics}  # two frames of each batch


def test_a_loss_that_is_not_finite_is_told() -> None:
    broken = net()
    with torch.no_grad():
        broken.project_mat.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite at step 0"):
        Trainer(broken, sampler).run([STAGE])


def test_schedules_that_cannot_be_run_are_refused() -> None:
    with pytest.raises(TrainingError, match="whole windows"):
        Schedule("x", 10, frames=5, window=2)
    with pytest.raises(TrainingError, match="unknown preset 'huge'"):
        preset("huge")


def test_presets_have_stages_of_different_names() -> None:
    """A checkpoint is found by its stage's name among others."""
    for p in PRESETS.values():
        names = [s.name for s in p.stages]
        assert len(set(names)) == len(names)


def test_scores_are_of_mattes_with_the_state_carried() -> None:
    taught = net().eval()
    clip = sampler(3, (32, 48)).sample(0, 0)
    alpha, density = mattes(taught, clip.frames)
    with torch.no_grad():
        want = taught(clip.frames[None])[1][0]
    assert torch.allclose(alpha, want, atol=1e-5) and 0 <= density <= 1
    assert score(taught, clip.frames, alpha).mad == 0
    dense = BiVM(32, decoder="vanilla", width=0.25).eval()
    assert mattes(dense, clip.frames)[1] != mattes(dense, clip.frames)[1]  # nan: there is no mask
