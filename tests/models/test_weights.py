"""Loading weights: good files, files of the wrong shape, and damaged ones; the real ones with the network mark."""

import json
import math
import struct

import numpy as np
import pytest
import torch

from vqc.errors import ArtifactError, InputError
from vqc.models import MODELS, RIFE, RVM, SRVGG, fetch, load_rife, load_rvm, load_srvgg
from vqc.models._rvm_weights import read_tfjs
from vqc.video import clip, read_clip

torch.set_num_threads(1)


# --- checkpoints made here ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rvm_state():
    torch.manual_seed(0)
    return RVM().state_dict()


def test_a_published_checkpoint_loads(rvm_state, tmp_path):
    path = tmp_path / "rvm_mobilenetv3.pth"
    torch.save(rvm_state, path)
    net = load_rvm(path)
    assert not net.training
    assert torch.equal(net.state_dict()["decoder.decode0.conv.3.weight"], rvm_state["decoder.decode0.conv.3.weight"])
    assert "refiner.box_filter.weight" not in load_rvm(path, refiner="fast_guided_filter").state_dict()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.pop("aspp.aspp1.0.weight"), "1 missing: aspp.aspp1.0.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (
            lambda s: s.update({"project_mat.conv.bias": torch.zeros(5)}),
            r"project_mat.conv.bias has shape \(5,\), not \(4,\)",
        ),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(rvm_state, tmp_path, change, told):
    state = dict(rvm_state)
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ArtifactError, match=told):
        load_rvm(tmp_path / "other.pth")


class Spy:
    def __reduce__(self):
        return (print, ("code of the file ran",))


@pytest.mark.parametrize("load", [load_rvm, load_rife])
def test_a_checkpoint_that_is_no_checkpoint(load, tmp_path, capsys):
    path = tmp_path / "bad.pth"
    torch.save([1, 2], path)
    with pytest.raises(ArtifactError, match="no state dict"):
        load(path)
    torch.save({"a": Spy()}, path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(path)
    assert "ran" not in capsys.readouterr().out
    torch.save(RIFE().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(tmp_path / "absent.pth")


def test_a_rife_checkpoint_loses_its_wrapper_and_its_teacher(tmp_path):
    torch.manual_seed(0)
    state = RIFE().state_dict()
    wrapped = {f"module.{key}": value for key, value in state.items()} | {"module.block_tea.x": torch.zeros(1)}
    torch.save(wrapped, tmp_path / "flownet.pkl")
    assert torch.equal(load_rife(tmp_path / "flownet.pkl").block2.conv1[0].weight, state["block2.conv1.0.weight"])


def ncnn_bytes(net):
    out = b""
    for layer in net.body:
        if isinstance(layer, torch.nn.Conv2d):
            out += struct.pack("<I", 0x01306B47) + layer.weight.detach().numpy().astype("<f2").tobytes()
            out += layer.bias.detach().numpy().astype("<f4").tobytes()
        else:
            out += layer.weight.detach().numpy().astype("<f4").tobytes()
    return out


def test_srvgg_reads_ncnn_and_refuses_what_is_not(tmp_path):
    torch.manual_seed(0)
    net = SRVGG()
    good = ncnn_bytes(net)
    path = tmp_path / "model.bin"
    path.write_bytes(good)
    loaded = load_srvgg(path)
    assert torch.equal(loaded.body[0].weight, net.body[0].weight.half().float())
    assert torch.equal(loaded.body[-1].bias, net.body[-1].bias)
    for bad, told in (
        (good[:-2], "truncated"),
        (good[: len(good) // 2], "truncated"),
        (b"", "no float16 weight tag"),
        (good + b"1234", "4 bytes are left over"),
        (b"\0\0\0\0" + good[4:], "no float16 weight tag"),
    ):
        path.write_bytes(bad)
        with pytest.raises(ArtifactError, match=told):
            load_srvgg(path)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_srvgg(tmp_path / "absent.bin")


def test_tfjs_reader_undoes_the_quantization(tmp_path):
    weights = [
        {"name": "q", "shape": [2, 2], "dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}},
        {"name": "f", "shape": [1], "dtype": "float32"},
        {"name": "i", "shape": [], "dtype": "int32"},
    ]
    manifest, data = tmp_path / "m.json", tmp_path / "m.bin"
    manifest.write_text(json.dumps({"weightsManifest": [{"weights": weights}]}))
    raw = bytes([0, 2, 4, 255]) + struct.pack("<fi", 1.5, 7)
    data.write_bytes(raw)
    found = read_tfjs(manifest, data)
    np.testing.assert_array_equal(found["q"], np.array([[-1, 0], [1, 126.5]], "f4"))
    assert found["f"].item() == 1.5
    assert found["i"].item() == 7
    for bad in (raw[:-1], raw + b"\0", b""):
        data.write_bytes(bad)
        with pytest.raises(ArtifactError):
            read_tfjs(manifest, data)
    manifest.write_text("{}")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_tfjs(manifest, data)


# --- the registry ------------------------------------------------------------------------------------------------


def test_step_inputs_of_the_three_kinds():
    frames = torch.rand(5, 3, 32, 32)
    assert {entry.kind for entry in MODELS.values()} == {"matting", "interpolation", "super-resolution"}
    for name in ("rvm", "srvgg"):
        (only,) = MODELS[name].step_inputs(frames, 4)
        assert torch.equal(only, frames[4:5])
        assert MODELS[name].steps(frames) == 5
        assert MODELS[name].target(frames, 0) is None
    rife = MODELS["rife"]
    first, second = rife.step_inputs(frames, 2)
    assert torch.equal(first, frames[2:3])
    assert torch.equal(second, frames[4:5])
    assert torch.equal(rife.target(frames, 2), frames[3:4])
    assert rife.steps(frames) == 3
    for bad in ((frames, 3), (frames, -1), (frames[0], 0)):
        with pytest.raises(InputError):
            rife.step_inputs(*bad)


@pytest.mark.network
@pytest.mark.parametrize("name", MODELS)
def test_registry_describes_what_the_network_gives(name):
    entry = MODELS[name]
    net = entry.load()
    example = entry.example(64, 96)
    with torch.no_grad():
        out = net(*example)
    out = out if isinstance(out, tuple) else (out,)
    assert not net.training
    assert len(out) == len(entry.outputs)
    for argument, leaf in entry.states.items():
        assert entry.outputs[leaf] == argument
        low, high = entry.state_range
        assert low < out[leaf].min() <= out[leaf].max() < high
    assert out[entry.picture].ndim == 4
    for again, before in zip(entry.example(64, 96), example, strict=True):
        assert torch.equal(again, before)


# --- real weights on real clips ----------------------------------------------------------------------------------


@pytest.mark.network
def test_rvm_on_a_real_face():
    net = load_rvm()
    frames = read_clip(clip("single_face"), 4, (144, 256))
    with torch.no_grad():
        whole = net(frames[None])
        states = [None] * 4
        for t in range(4):
            fgr, pha, *states = net(frames[t : t + 1], *states)
            torch.testing.assert_close(whole[0][:, t], fgr, rtol=0, atol=1e-5)
            torch.testing.assert_close(whole[1][:, t], pha, rtol=0, atol=1e-5)
        for found, wanted in zip(whole[2:], states, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        half = net(frames[None], downsample_ratio=0.5)
    alpha = whole[1][0, :, 0]
    # Head and shoulders, in the middle: about a quarter of the picture, and nearly all of it black or white.
    assert 0.22 < alpha.mean() < 0.29
    assert alpha[:, 70:80, 115:130].min() > 0.98
    assert alpha[:, :20, :60].max() < 0.02
    assert ((alpha > 0.02) & (alpha < 0.98)).float().mean() < 0.1
    assert (half[1][0, :, 0] - alpha).abs().mean() < 0.015  # the fast guided filter brings the same matte back


@pytest.mark.network
def test_rvm_registry_batch_norms_are_exactly_affine():
    net = load_rvm()
    scaled = 0
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            x = torch.randn(1, module.num_features, 3, 3, generator=torch.Generator().manual_seed(0))
            gain, offset = module.weight.view(1, -1, 1, 1), module.bias.view(1, -1, 1, 1)
            torch.testing.assert_close(module(x), x * gain + offset, rtol=1e-6, atol=1e-6)
            scaled += bool((module.weight != 1).any())
    assert scaled == 3  # the depthwise convolutions of the dilated stage, which the exporter left unfolded
    with pytest.raises(ArtifactError, match="deep_guided_filter"):
        load_rvm(refiner="deep_guided_filter")


@pytest.mark.network
def test_rife_is_better_than_the_mean_of_two_frames():
    entry = MODELS["rife"]
    frames = read_clip(clip("bikes"), 3, (160, 352), start=10)
    with torch.no_grad():
        middle = entry.load()(*entry.step_inputs(frames, 0))
    true = entry.target(frames, 0)

    def psnr(x):
        return -10 * math.log10((x - true).square().mean())

    assert psnr(middle) > psnr((frames[:1] + frames[2:]) / 2) + 3


@pytest.mark.network
def test_srvgg_enlarges_a_real_frame():
    frame = read_clip(clip("bigbuckbunny"), 1, (180, 320), start=40)
    small = torch.nn.functional.interpolate(frame, (44, 80), mode="bilinear", antialias=True)
    with torch.no_grad():
        large = load_srvgg()(small)
    wanted = torch.nn.functional.interpolate(frame, (176, 320), mode="bilinear", antialias=True)
    assert -10 * math.log10((large.clamp(0, 1) - wanted).square().mean()) > 24


@pytest.mark.network
def test_weights_are_where_they_are_said_to_be():
    assert fetch("rvm.bin").stat().st_size == 3_739_355
