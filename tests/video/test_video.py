"""Reading, writing and drawing: clips made here, files that are no clips, and the real ones with the network mark."""

import builtins
import math

import numpy as np
import pytest
import skimage.io
import torch

from vqc.errors import VideoError
from vqc.models._assets import ASSETS
from vqc.video import (
    CLIPS,
    clip,
    composite,
    frame_rate,
    iter_frames,
    read_clip,
    resize,
    strip,
    write_png,
    write_video,
)


def moving_square(frames=6, height=48, width=64):
    """A soft bright square that moves four pixels a frame over a colour gradient; kind to a codec."""
    out = torch.zeros(frames, 3, height, width)
    out[:, 0] = torch.linspace(0.1, 0.6, width)
    out[:, 2] = torch.linspace(0.2, 0.5, height)[:, None]
    for t in range(frames):
        out[t, :, 12:28, 4 + 4 * t : 20 + 4 * t] = 0.9
    return out


@pytest.fixture
def movie(tmp_path):
    return write_video(tmp_path / "square.mp4", moving_square(), 25)


def test_what_is_written_is_read_again(movie):
    found, wanted = read_clip(movie), moving_square()
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    assert 0 <= found.min() <= found.max() <= 1
    assert -10 * math.log10((found - wanted).square().mean()) > 28
    assert frame_rate(movie) == 25
    assert [path.name for path in movie.parent.iterdir()] == ["square.mp4"]


def test_frames_start_and_size(movie):
    whole = read_clip(movie)
    assert torch.equal(read_clip(movie, 2, start=3), whole[3:5])
    assert torch.equal(torch.stack(list(iter_frames(movie, start=4))), whole[4:])
    small = read_clip(movie, size=(24, 40))
    wanted = torch.nn.functional.interpolate(whole, (24, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(small, wanted, rtol=0, atol=1e-6)


def test_iteration_is_lazy_and_may_stop_early(movie):
    frames = iter_frames(movie)
    assert next(frames).shape == (3, 48, 64)
    frames.close()


def test_writing_takes_generators_bytes_gray_and_odd_sides(tmp_path):
    gray = (torch.full((1, 33, 41), 200, dtype=torch.uint8) for _ in range(3))
    found = read_clip(write_video(tmp_path / "odd.mkv", gray, 29.97))
    assert found.shape == (3, 3, 34, 42)
    assert (found - 200 / 255).abs().max() < 0.02
    assert frame_rate(tmp_path / "odd.mkv") == pytest.approx(29.97, rel=1e-3)


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_files_that_are_no_clip(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError) as caught:
        read_clip(path)
    assert str(path) in str(caught.value)
    with pytest.raises(VideoError):
        frame_rate(path)


def test_missing_and_truncated_files(movie, tmp_path):
    with pytest.raises(VideoError, match="no such file"):
        read_clip(tmp_path / "absent.mp4")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(movie.read_bytes()[:500])
    with pytest.raises(VideoError):
        read_clip(cut)


def test_sound_alone_is_no_clip(tmp_path):
    import av

    with av.open(str(tmp_path / "tone.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="no video"):
        read_clip(tmp_path / "tone.wav")
    with pytest.raises(VideoError):
        frame_rate(tmp_path / "tone.wav")


def test_a_clip_that_is_too_short(movie):
    for arguments in ({"frames": 7}, {"start": 6}, {"frames": 3, "start": 4}):
        with pytest.raises(VideoError, match="too short"):
            read_clip(movie, **arguments)
    with pytest.raises(VideoError, match="0 frames"):
        read_clip(movie, 0)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VideoError, match="cannot be written"):
        write_video(tmp_path / "file" / "out.mp4", moving_square(), 25)
    with pytest.raises(VideoError, match="cannot be written"):
        write_png(tmp_path / "absent" / "out.png", torch.zeros(3, 4, 4))


def test_a_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path):
    def breaks_off():
        yield torch.zeros(3, 16, 16)
        raise RuntimeError("the source broke")

    path = tmp_path / "out.mp4"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError, match="broke"):
        write_video(path, breaks_off(), 25)
    for frames, told in (
        ([], "no frames"),
        ([torch.zeros(3, 16, 16), torch.zeros(3, 16, 32)], "change size"),
        ([torch.zeros(4, 16, 16)], "no picture"),
    ):
        with pytest.raises(VideoError, match=told):
            write_video(path, frames, 25)
    with pytest.raises(VideoError, match="cannot be written"):
        write_video(tmp_path / "out.nonsense", moving_square(), 25)
    for fps in (0, -1, math.inf, math.nan):
        with pytest.raises(VideoError, match="fps"):
            write_video(path, moving_square(), fps)
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]
    assert path.read_bytes() == b"before"


def test_without_pyav_the_extra_is_named(monkeypatch, movie):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(VideoError, match=r"pip install vqc\[video\]"):
        read_clip(movie)


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 4, 9)])
def test_png_as_another_reader_sees_it(tmp_path, shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    found = skimage.io.imread(write_png(tmp_path / "out.png", image))
    wanted = (image.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
    np.testing.assert_array_equal(found, wanted.numpy())
    with pytest.raises(VideoError, match="no picture"):
        write_png(tmp_path / "out.png", torch.zeros(2, 3, 4, 4))


def test_resize_keeps_leading_axes():
    x = torch.rand(2, 3, 1, 8, 8)
    assert resize(x, (4, 6)).shape == (2, 3, 1, 4, 6)
    assert resize(x, (8, 8)) is x
    assert torch.allclose(resize(x, (4, 4)).mean(), x.mean(), atol=0.02)


def test_composite():
    fgr, pha = torch.ones(2, 3, 2, 2), torch.tensor([0.0, 0.25]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    found = composite(fgr, pha, (0.0, 0.4, 1.0))
    assert found[0, :, 0, 0].tolist() == pytest.approx([0, 0.4, 1])
    assert found[1, :, 0, 0].tolist() == pytest.approx([0.25, 0.55, 1])
    assert torch.equal(composite(fgr, pha, torch.zeros(3, 2, 2)), fgr * pha)


def test_strip_puts_pictures_and_labels_where_they_belong():
    black, half = torch.zeros(3, 20, 30), torch.full((1, 10, 15), 0.5)
    plain = strip([[black, half], [half]])
    assert plain.shape == (3, 2 + 2 * 22, 2 + 2 * 32)
    assert plain[:, 2:22, 2:32].max() == 0
    assert plain[:, 2:22, 34:64].mean().item() == pytest.approx(128 / 255, abs=1e-4)  # brought to the first one's size
    assert plain[:, 24:44, 34:].min() == 1  # the short row ends in white
    labelled = strip([[half], [half]], ["alpha", "x é"])
    assert labelled.shape[1] == 2 + 2 * (12 + 12)
    assert labelled[:, 2:12, 2:].min() == 0  # something is written
    with pytest.raises(VideoError, match="1 labels"):
        strip([[half], [half]], ["one"])
    with pytest.raises(VideoError):
        strip([])


def test_known_clips_name_known_assets():
    assert {entry.asset for entry in CLIPS.values()} <= set(ASSETS)
    with pytest.raises(VideoError, match="bikes"):
        clip("holiday")


@pytest.mark.network
@pytest.mark.parametrize("name", CLIPS)
def test_real_clips_are_as_described(name):
    entry = CLIPS[name]
    path = clip(name)
    assert path == clip(entry.asset)
    assert read_clip(path, 1).shape == (1, 3, *entry.size)
    assert frame_rate(path) == pytest.approx(entry.fps, abs=1e-3)
    if entry.frames < 200:
        assert sum(1 for _ in iter_frames(path, size=(9, 16))) == entry.frames


def test_the_encoder_runs_in_one_thread(tmp_path):
    """x264 writes its options into the stream; by default it has as many threads, and slices, as there are CPUs."""
    path = write_video(tmp_path / "a.mp4", torch.rand(2, 3, 128, 96), 12)
    data = path.read_bytes()
    assert b" threads=1 " in data and b"sliced_threads=0" in data


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_the_same_frames_give_the_same_bytes(tmp_path, suffix):
    frames = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    made = {write_video(tmp_path / f"{i}{suffix}", frames, 25.0).read_bytes() for i in range(3)}
    assert len(made) == 1  # Matroska would hold a random number, all of them the time
