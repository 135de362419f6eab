"""The reader returns exactly the frames that are asked for, and nothing but `VideoError` for what it cannot read."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from videos import damage, decode_plainly, frame_number, unreadable_files, write_video

from revvideo.data.readers.pyav import PyAVReader, quarter_turns
from revvideo.data.video_reader import VideoError, open_video
from revvideo.errors import InputError

LAYOUTS = {
    "gop250_b3.mp4": dict(gop=250, b_frames=3),
    "gop12_b3.mp4": dict(gop=12, b_frames=3),
    "gop12.mkv": dict(gop=12),
    "intra.mp4": dict(gop=1),
    "mpeg4_b.avi": dict(codec="mpeg4", gop=12, b_frames=2),
    "gop30_b2.ts": dict(gop=30, b_frames=2),
    "raw.h264": dict(gop=30, b_frames=2),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, tmp_path_factory):
    path = write_video(tmp_path_factory.mktemp("layouts") / request.param, 60, **LAYOUTS[request.param])
    return path, decode_plainly(path)


def test_frames_equal_plain_decoding(layout):
    path, truth = layout
    with open_video(path, strict=True) as video:
        assert (video.num_frames, video.height, video.width) == (60, 64, 96)
        assert video.fps == 30.0
        assert video.duration_seconds == pytest.approx(2.0, abs=2e-3)
        np.testing.assert_allclose(np.diff(video.pts), 1 / 30, atol=1.1e-3)  # Matroska rounds to milliseconds
        for indices in ([0], [59], [31, 2, 59, 2, 30, 29], range(0, 60, 4), range(60), [58, 1]):
            np.testing.assert_array_equal(video.frames(indices), truth[list(indices)])
        assert (video.num_bad_frames, video.warnings) == (0, [])


def test_clip_repeats_the_last_frame(layout):
    path, truth = layout
    with open_video(path) as video:
        np.testing.assert_array_equal(video.clip(50, 4, 4), truth[[50, 54, 58, 59]])


def test_frames_carry_their_number(tmp_path):
    with open_video(write_video(tmp_path / "v.mp4", 60, gop=20, b_frames=3)) as video:
        assert [frame_number(frame) for frame in video.frames(range(60))] == list(range(60))


def test_variable_frame_rate(tmp_path):
    times = [0, 1, 2, 5, 6, 7, 20, 21, 23, 30]
    with open_video(write_video(tmp_path / "vfr.mp4", 10, times=times, b_frames=2)) as video:
        np.testing.assert_allclose(video.pts, np.array(times) / 30, atol=1e-6)
        assert [frame_number(frame) for frame in video.frames([9, 6, 0])] == [9, 6, 0]


def test_one_frame(tmp_path):
    with open_video(write_video(tmp_path / "one.mp4", 1), strict=True) as video:
        assert (video.num_frames, video.clip(0, 4, 4).shape) == (1, (4, 64, 96, 3))
        assert video.duration_seconds == pytest.approx(1 / video.fps)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path, degrees):
    path = write_video(tmp_path / "turned.mp4", 4, rotation=degrees)
    truth = np.rot90(decode_plainly(path), degrees // 90, axes=(1, 2))
    with open_video(path) as video:
        assert (video.height, video.width) == truth.shape[1:3]
        np.testing.assert_array_equal(video.frames(range(4)), truth)


def test_quarter_turns():
    assert [quarter_turns(degrees) for degrees in (0, 90, -90, 180, -180, 270, 89.6)] == [0, 1, 3, 2, 2, 3, 1]


def test_unknown_backend_names_the_known_ones(tmp_path):
    with pytest.raises(InputError, match="pyav"):
        open_video(str(tmp_path / "v.mp4"), backend="torchvision")


@pytest.mark.parametrize("indices", [[], [-1], [60]])
def test_indices_outside_the_video(tmp_path, indices):
    with open_video(write_video(tmp_path / "v.mp4", 60)) as video, pytest.raises(IndexError):
        video.frames(indices)


@pytest.mark.parametrize("indices", [[0.5], np.ones(60, bool), [2**70]])
def test_indices_that_are_no_whole_numbers(tmp_path, indices):
    with open_video(write_video(tmp_path / "v.mp4", 60)) as video, pytest.raises(TypeError, match="whole numbers"):
        video.frames(indices)


def test_unreadable_files_raise_video_error_only(tmp_path):
    for name in unreadable_files(tmp_path):
        with pytest.raises(VideoError) as caught:
            open_video(str(tmp_path / name))
        assert caught.value.path.endswith(name)
        assert "\n" not in str(caught.value)


def test_damage_is_flagged_or_refused(tmp_path):
    path = write_video(tmp_path / "damaged.mp4", 60, gop=30)
    truth = decode_plainly(path)
    damage(path, 0.25, 0.4)  # in the first of the two groups of frames
    with open_video(path) as video:
        frames = video.frames(range(60))
        assert video.num_bad_frames > 0
        assert video.warnings
        np.testing.assert_array_equal(frames[30:], truth[30:])
    with open_video(path, strict=True) as video:
        np.testing.assert_array_equal(video.frames(range(40, 60)), truth[40:])  # the sound part can be read
        with pytest.raises(VideoError):
            video.frames(range(60))


def test_a_matroska_file_that_ends_early_is_told_or_refused(tmp_path):
    path = write_video(tmp_path / "half.mkv", 60, gop=12)
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    with open_video(path) as video:
        assert 10 < video.num_frames < 50
        assert "ends early: it names 2 s" in video.warnings[0]
    with pytest.raises(VideoError, match="ends early"):
        open_video(path, strict=True)


def test_video_error_pickles():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4", "pyav", "the file is empty")))
    assert (error.path, error.backend, error.reason) == ("a.mp4", "pyav", "the file is empty")
    assert str(error) == "cannot read the video a.mp4 (pyav): the file is empty"


def test_no_descriptor_is_left_open(tmp_path):
    good = write_video(tmp_path / "good.mp4", 10)
    raw = write_video(tmp_path / "raw.h264", 10)  # read sequentially, through a second container
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(bytes(1000))
    before = len(os.listdir("/proc/self/fd"))
    for path in (good, raw) * 25:
        with open_video(path) as video:
            video.frames([3])
        with pytest.raises(VideoError):
            open_video(str(bad))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_reader_says_so(tmp_path):
    with open_video(write_video(tmp_path / "v.mp4", 5)) as video:
        pass
    with pytest.raises(ValueError, match="closed"):
        video.frames([0])


def test_size_and_rotation_are_known_without_a_second_opening(tmp_path, monkeypatch):
    path = write_video(tmp_path / "turned.mp4", 30, gop=10, b_frames=2, rotation=90)
    truth = np.rot90(decode_plainly(path), axes=(1, 2))
    opened = []
    real_open = PyAVReader._open
    monkeypatch.setattr(PyAVReader, "_open", lambda reader: opened.append(1) or real_open(reader))
    with open_video(path, strict=True) as video:
        assert (video.height, video.width) == (96, 64)
        np.testing.assert_array_equal(video.frames([12, 29, 0]), truth[[12, 29, 0]])
        assert (video.height, video.width) == (96, 64)
    assert len(opened) == 1


def test_frames_that_nobody_needs_are_not_decoded(tmp_path, monkeypatch):
    """One seek for each group of frames, none past the last wanted one, and leave to skip all that is not wanted."""
    path = write_video(tmp_path / "v.mp4", 60, gop=20, b_frames=3)
    fed, groups = [], []
    real_decode, real_group = PyAVReader._decode, PyAVReader._decode_group

    def decode(reader, packet, group, request):
        fed.append((packet.pts if packet else None, reader._stream.codec_context.skip_frame))
        real_decode(reader, packet, group, request)

    def decode_group(reader, group, request):
        groups.append(sorted(group.wanted.values()))
        real_group(reader, group, request)

    monkeypatch.setattr(PyAVReader, "_decode", decode)
    monkeypatch.setattr(PyAVReader, "_decode_group", decode_group)
    with open_video(path) as video:
        video.frames([45, 3, 41, 3])
        ticks = video._index.ticks.tolist()
    assert groups == [[3], [41, 45]]
    times = [ticks.index(tick) for tick, _ in fed if tick is not None]
    assert max(times) < 60 - 10
    assert not set(times) & set(range(20, 40))
    assert {ticks.index(tick) for tick, skip in fed if tick is not None and skip == "DEFAULT"} == {3, 41, 45}
