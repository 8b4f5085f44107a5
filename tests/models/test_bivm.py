"""BiVM and its kin: sizes of the papers' tables, one frame and clips, masks, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqc.errors import InputError
from vqc.models._ebb import BIMATTING_SHORTCUTS, EBBEncoder, map_channels
from vqc.models._shb import spread, uncertain
from vqc.models.binary import METHODS, Binarization, BinaryConv2d
from vqc.models.bivm import BiVM, bimatting, binary_rvm


def binary_layers(model: nn.Module) -> dict[str, BinaryConv2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, BinaryConv2d) and m.bits == 1}


def network(bits: int = 1, width: float = 0.5, **options) -> BiVM:
    """A small one whose norms have seen something, so that signs differ from place to place."""
    torch.manual_seed(0)
    model = BiVM(bits, width=width, **options)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0.0, 0.1)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return model.eval()


def test_the_sizes_of_the_tables():
    """BiVM's tables V and VI: binary weights of encoder and whole, and no more than 48 000 values besides."""
    model = BiVM()
    layers = binary_layers(model)
    assert sum(m.weight.numel() for m in layers.values()) == 4_217_584
    assert sum(m.weight.numel() for n, m in layers.items() if n.startswith("backbone.")) == 3_353_344
    assert sum(p.numel() for p in model.parameters()) - 4_217_584 < 48_000
    assert model.backbone.channels == (16, 32, 64, 1024)
    names = ["backbone.blocks.4.middle.conv3", "decoder.decode0.first.conv3", "aspp.branch"]
    assert [tuple(layers[n].weight.shape) for n in names] == [(256 // 2, 128, 3, 3), (16, 35, 3, 3), (128, 1024, 1, 1)]


def test_the_float_twin_has_the_same_build():
    one, twin = BiVM(width=0.5), BiVM(32, width=0.5)
    weights = {n: p.shape for n, p in one.named_parameters() if not n.endswith("tau")}
    assert weights == {n: p.shape for n, p in twin.named_parameters()}
    assert not binary_layers(twin)


@pytest.mark.parametrize("size", [(64, 96), (70, 98)])
def test_shapes_of_results_and_states(size):
    model = network()
    with torch.no_grad():
        fgr, pha, *states = model(torch.rand(1, 3, *size))
    assert fgr.shape == (1, 3, *size) and pha.shape == (1, 1, *size)
    sides = [(-(-size[0] // k), -(-size[1] // k)) for k in (2, 4, 8, 16)]
    assert [tuple(s.shape[2:]) for s in states] == sides
    assert all(float(s.abs().max()) <= 1 for s in states)


def test_a_clip_is_its_frames_with_the_state_carried():
    model = network()
    clip = torch.rand(1, 3, 3, 64, 96)
    with torch.no_grad():
        whole = model(clip)
        states: tuple[torch.Tensor | None, ...] = (None,) * 4
        for t in range(3):
            fgr, pha, *states = model(clip[:, t], *states)
            assert torch.equal(fgr, whole[0][:, t]) and torch.equal(pha, whole[1][:, t])
        assert all(torch.equal(a, b) for a, b in zip(states, whole[2:], strict=True))
        again = model(clip[:, 0])[1]
        alone = model(clip[:, :1])  # a clip of one frame
        assert torch.equal(alone[1][:, 0], again)
        assert not torch.equal(pha, model(clip[:, 2])[1])  # the state matters


def test_eval_and_training_compute_the_same_layer():
    """Scale and norm as one factor and one shift: the layer that was trained."""
    torch.manual_seed(1)
    layer = BinaryConv2d(6, 5, 3)
    assert layer.norm is not None and layer.tau is not None
    nn.init.normal_(layer.tau, 0.0, 0.3)
    nn.init.normal_(layer.norm.weight)
    x = torch.randn(4, 6, 9, 9)
    layer.norm.momentum = None  # the mean over batches: of the one it sees
    with torch.no_grad():
        layer.train()
        trained = layer(x)
        n = trained[:, 0].numel()
        layer.norm.running_var *= (n - 1) / n  # running statistics are unbiased, a batch's own are not
        torch.testing.assert_close(layer.eval()(x), trained, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter():
    model = network(width=0.5).train()
    d = model.details(torch.rand(1, 2, 3, 64, 96), ratio=1.0)
    assert d.matte is not None
    (d.pha.square().mean() + d.fgr.square().mean() + d.matte.square().mean() + sum(f.mean() for f in d.features)
     + model.backbone.regularizer()).backward()  # fmt: skip
    silent = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("refiner.")]
    assert not silent
    # one picture of one pixel passes the gate: its threshold may hear nothing
    dead = [n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.any())]
    assert not [n for n in dead if n.endswith("weight")]


def test_masks():
    """A matte of one value has no edge; a step has a band around it, and finer masks have fractions at its rim."""
    assert not uncertain(torch.zeros(1, 1, 6, 9)).any() and not uncertain(torch.ones(1, 1, 7, 5)).any()
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 0.7
    found = uncertain(step)
    assert found[0, 0].any(0).tolist() == [False, False, False, True, True, False, False, False]
    assert not uncertain(step, threshold=0.8).any()
    fine = spread(found, 4, torch.empty(1, 1, 31, 32))
    assert fine.shape == (1, 1, 31, 32) and float(fine.min()) == 0 and float(fine.max()) == 1
    assert bool(((fine > 0) & (fine < 1)).any())


@pytest.mark.parametrize("bias, share", [(-1e3, 0.0), (1e3, 0.0), (0.0, None)])
def test_empty_masks_leave_the_dense_branch(bias, share):
    """An auxiliary matte of one value everywhere masks nothing in: then 3x3 weights of the decoder do not matter."""
    model = network()
    model.project_mat.bias.data[3] += bias
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        d = model.details(x)
        assert d.mask is not None
        if share is not None:
            assert float(d.mask.mean()) == share
        before = model(x)[2]
        model.decoder.decode1.unit.conv3.weight.data.neg_()
        assert torch.equal(model(x)[2], before) == (share is not None)


def test_a_full_mask_and_another_threshold():
    model = network()
    x = torch.rand(1, 3, 64, 96)
    rows = (torch.arange(4.0).view(1, 1, 4, 1) % 2).expand(1, 1, 4, 6)
    assert uncertain(rows).all()  # every row differs from its neighbours
    with torch.no_grad():
        model.threshold.fill_(2.0)  # above every alpha: nothing is uncertain
        d = model.details(x)
        assert d.mask is not None and not d.mask.any() and torch.isfinite(d.pha).all()


def test_channel_map():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert map_channels(x, 6) is x
    assert map_channels(x, 12).flatten().tolist() == [*range(6), *range(6)]
    assert map_channels(x, 3).flatten().tolist() == [1.5, 2.5, 3.5]
    assert map_channels(x, 4).flatten().tolist() == [2, 3, 2, 3]


def test_weights_all_of_one_sign():
    layer = BinaryConv2d(4, 3, 3, how=METHODS["reactnet"]).eval()
    layer.weight.data.fill_(0.5)
    x = torch.ones(1, 4, 5, 5)
    with torch.no_grad():
        inside = layer(x)[0, :, 2, 2]
        torch.testing.assert_close(inside, torch.full((3,), 36 * 0.5 / (1 + 1e-5) ** 0.5))


@pytest.mark.parametrize("build", [lambda: bimatting(width=0.5), lambda: binary_rvm("dorefa"),
                                   lambda: BiVM(1, "ebb", "vanilla", width=0.5), lambda: BiVM(32, width=0.5)],
                         ids=["bimatting", "rvm", "dense decoder", "twin"])  # fmt: skip
def test_other_builds_run(build):
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        fgr, pha, *states = model(torch.rand(1, 3, 64, 96))
        model(torch.rand(1, 3, 64, 96), *states)
    assert torch.isfinite(pha).all() and pha.shape == (1, 1, 64, 96)


def test_shortcuts_of_the_ancestor():
    old, new = EBBEncoder(cuts=BIMATTING_SHORTCUTS, width=0.5), EBBEncoder(width=0.5)
    assert not [n for n, _ in old.named_parameters() if n.endswith(("alpha3", "alpha1", "beta", "gamma"))]
    assert len([n for n, _ in new.named_parameters() if n.endswith(("beta", "gamma"))]) == 10
    assert old.regularizer().item() == 0 and new.regularizer().item() > 0


def test_the_refiner_works_at_full_size():
    model = network()
    with torch.no_grad():
        fgr, pha, *states = model(torch.rand(1, 3, 128, 192), downsample_ratio=0.5)
    assert pha.shape == (1, 1, 128, 192) and states[0].shape[2:] == (32, 48)


def test_what_is_refused():
    model = network()
    x = torch.rand(1, 3, 64, 96)
    with pytest.raises(InputError, match=r"a state of BiVM is \[1, 8, 30, 48\]"):
        model(x, r1=torch.zeros(1, 8, 30, 48))
    with pytest.raises(InputError, match="start again without states"):
        model(torch.rand(1, 2, 3, 64, 96), r4=torch.zeros(2, 32, 4, 6))
    with pytest.raises(InputError, match="one frame"):
        model(torch.rand(3, 64, 96))
    with pytest.raises(InputError, match="unknown build"):
        BiVM(1, "resnet50")
    with pytest.raises(InputError, match="a layer of 2 bits"):
        BinaryConv2d(4, 4, 3, bits=2)
    with pytest.raises(InputError, match="unknown form of a binarization 'ternary'"):
        Binarization("ternary")
