"""Every backend fulfils the reader's contract; what one is known to misread is an expected failure with its reason."""

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from videos import damage, decode_plainly, frame_number, unreadable_files, write_video

import revvideo
from revvideo.data.readers.library_reader import resize_frames
from revvideo.data.video_reader import BACKENDS, VideoError, VideoReader, open_video
from revvideo.errors import InputError

NUM_FRAMES = 48
LIBRARIES = {
    "pyav": "av",
    "torchcodec": "torchcodec.decoders",
    "decord": "decord",
    "pytorchvideo": "pytorchvideo.data.encoded_video_pyav",
}
VFR_TIMES = np.cumsum([0, *([1, 1, 3, 1, 5, 2] * NUM_FRAMES)])[:NUM_FRAMES].tolist()

# kind -> how `write_video` makes it; "hidden" and "first" are for `make`.
KINDS = {
    "b_frames.mp4": dict(gop=12, b_frames=3),
    "one_key_frame.mp4": dict(gop=250, b_frames=3),
    "intra.mp4": dict(gop=1),
    "matroska.mkv": dict(gop=12, b_frames=2),
    "variable_rate.mp4": dict(gop=16, b_frames=2, times=VFR_TIMES),
    "rotated_90.mp4": dict(rotation=90),
    "rotated_180.mp4": dict(rotation=180),
    "rotated_270.mp4": dict(rotation=270),
    "edit_list.mp4": dict(gop=24, b_frames=3, hidden=10),
    "two_streams.mp4": dict(first=(32, 48)),
    "mpeg4_b.avi": dict(codec="mpeg4", gop=12, b_frames=2),
    "stream.ts": dict(gop=30, b_frames=2),
    "raw.h264": dict(gop=30, b_frames=2),
}
MISREAD = {
    ("torchcodec", "mpeg4_b.avi"): "frames are off by one or two",
    ("torchcodec", "stream.ts"): "MPEG-TS is refused",
    ("torchcodec", "raw.h264"): "raw H.264 is refused",
    ("decord", "edit_list.mp4"): "hidden frames are counted",
    ("decord", "mpeg4_b.avi"): "frames are off, times are garbage",
    ("decord", "stream.ts"): "MPEG-TS is refused",
    ("decord", "raw.h264"): "raw H.264 is refused",
    ("pytorchvideo", "two_streams.mp4"): "the first stream is taken, not the largest",
    ("pytorchvideo", "mpeg4_b.avi"): "a span does not come back complete",
    ("pytorchvideo", "stream.ts"): "no frame comes back",
    ("pytorchvideo", "raw.h264"): "no frame comes back",
}
EVERY_KIND = [
    pytest.param(
        backend,
        kind,
        marks=[pytest.mark.xfail(strict=True, raises=(AssertionError, VideoError), reason=MISREAD[backend, kind])]
        if (backend, kind) in MISREAD
        else [],
    )
    for backend in LIBRARIES
    for kind in KINDS
]


def need(backend: str) -> str:
    """The backend, or skip the test where its library does not load."""
    try:
        importlib.import_module(LIBRARIES[backend])
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"{backend} does not load here: {str(error).splitlines()[0]}")
    return backend


@pytest.fixture(params=LIBRARIES)
def backend(request):
    return need(request.param)


def remux(sources: list[str], target: Path, hidden: int = 0) -> str:
    """Packets of one or more files into one, a stream each; `hidden` frames get negative times, hence an edit list."""
    with av.open(str(target), "w", options={"avoid_negative_ts": "disabled"}) as out:
        inputs = [av.open(source) for source in sources]
        streams = [out.add_stream_from_template(source.streams.video[0]) for source in inputs]
        for source, stream in zip(inputs, streams):
            for packet in source.demux(video=0):
                if packet.size:
                    ticks = int(Fraction(hidden, 30) / packet.time_base)
                    packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, stream
                    out.mux(packet)
            source.close()
    return str(target)


def make(folder: Path, kind: str) -> str:
    options = dict(KINDS[kind])
    hidden, first = options.pop("hidden", 0), options.pop("first", None)
    if not hidden and not first:
        return write_video(folder / kind, NUM_FRAMES, **options)
    sources = [write_video(folder / f"whole_{kind}", NUM_FRAMES + hidden, **options)]
    if first:
        sources.insert(0, write_video(folder / f"first_{kind}", NUM_FRAMES, size=first))
    return remux(sources, folder / kind, hidden)


@pytest.fixture(scope="module")
def video_of(tmp_path_factory):
    """kind -> path, made once."""
    folder, made = tmp_path_factory.mktemp("kinds"), {}

    def get(kind: str) -> str:
        if kind not in made:
            made[kind] = make(folder, kind)
        return made[kind]

    return get


def numbers(frames: np.ndarray, kind: str) -> list[int]:
    """The numbers written in frames, counted from the first one that is shown."""
    upright = np.rot90(frames, -KINDS[kind].get("rotation", 0) // 90, axes=(1, 2))
    return [frame_number(frame) - KINDS[kind].get("hidden", 0) for frame in upright]


@pytest.mark.parametrize(("backend", "kind"), EVERY_KIND)
def test_contract(backend, kind, video_of):
    path = video_of(kind)
    times = np.array(KINDS[kind].get("times", range(NUM_FRAMES))) / 30
    turned = KINDS[kind].get("rotation") in (90, 270)
    with open_video(path, need(backend), strict=kind != "stream.ts") as video:
        assert isinstance(video, VideoReader)
        assert (video.backend, video.num_frames) == (backend, NUM_FRAMES)
        assert (video.height, video.width) == ((96, 64) if turned else (64, 96))
        np.testing.assert_allclose(video.pts - video.pts[0], times, atol=1.1e-3)  # Matroska: milliseconds
        assert video.duration_seconds == pytest.approx(times[-1] + 1 / video.fps, abs=2e-3)
        for indices in ([0], [47], [31, 2, 47, 2, 30, 29, 2], range(3, 48, 4), [46, 1], range(48), [0]):
            frames = video.frames(indices)
            assert (frames.dtype, frames.shape) == (np.uint8, (len(indices), video.height, video.width, 3))
            assert numbers(frames, kind) == list(indices)
        assert numbers(video.clip(40, 4, 5), kind) == [40, 45, 47, 47]
        assert (video.num_bad_frames, video.warnings) == (0, [])


@pytest.mark.parametrize("kind", ["b_frames.mp4", "variable_rate.mp4", "rotated_90.mp4"])
def test_pixels_are_those_of_plain_decoding(backend, kind, video_of):
    truth = np.rot90(decode_plainly(video_of(kind)), KINDS[kind].get("rotation", 0) // 90, axes=(1, 2))
    with open_video(video_of(kind), backend) as video:
        difference = np.abs(video.frames(range(NUM_FRAMES)).astype(int) - truth)
    assert difference.mean() < 0.5  # other versions of FFmpeg may convert colours with other rounding


@pytest.mark.parametrize("kind", ["b_frames.mp4", "rotated_90.mp4"])
@pytest.mark.parametrize("size", [(32, 40), (100, 90)], ids=["smaller", "larger"])
def test_size_scales(backend, kind, size, video_of):
    with open_video(video_of(kind), backend) as video:
        native, scaled = video.frames([5, 20, 5]), video.frames([5, 20, 5], size=size)
        assert scaled.shape == (3, *size, 3)
        assert scaled.dtype == np.uint8
        difference = scaled.astype(float) - resize_frames(native, size)
        assert np.abs(difference @ [0.299, 0.587, 0.114]).mean() < 2  # brightness: a wrong picture is off by 40
        assert np.abs(difference).mean() < 6  # colour is stored at half size, and may be scaled from there
        np.testing.assert_array_equal(scaled[0], scaled[2])
        np.testing.assert_array_equal(video.clip(5, 2, 15, size=size), scaled[:2])
        np.testing.assert_array_equal(video.frames([5, 20, 5]), native)  # the size holds for one call only
        np.testing.assert_array_equal(video.frames([5], size=(video.height, video.width)), native[:1])


@pytest.mark.parametrize("size", [(0, 64), (64, -1), (2**20, 2**20)])
def test_sizes_out_of_range(backend, size, video_of):
    with open_video(video_of("intra.mp4"), backend) as video, pytest.raises(ValueError, match="asked of"):
        video.frames([0], size=size)


@pytest.mark.parametrize("indices", [[], [-1], [NUM_FRAMES], [0, NUM_FRAMES + 7]])
def test_indices_outside_the_video(backend, indices, video_of):
    with open_video(video_of("intra.mp4"), backend) as video, pytest.raises(IndexError):
        video.frames(indices)


def test_closed_reader(backend, video_of):
    with open_video(video_of("intra.mp4"), backend) as video:
        video.frames([1])
    video.close()
    with pytest.raises(ValueError, match="closed"):
        video.frames([1])


def test_pictures_of_a_reader_outlive_it(backend, video_of):
    with open_video(video_of("b_frames.mp4"), backend) as video:
        frames = video.frames([7])
        video.frames([8])
    assert numbers(frames, "b_frames.mp4") == [7]


def test_unreadable_files(backend, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for name in unreadable_files(tmp_path):
        with pytest.raises(VideoError) as caught:
            open_video(str(tmp_path / name), backend)
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.path, error.backend) == (str(tmp_path / name), backend)
        assert error.reason
        assert "\n" not in str(error)
        assert len(str(error)) < 600
    del caught
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_permission_denied(backend):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o755)
        path = write_video(Path(folder) / "secret.mp4", 4)
        os.chmod(path, 0)
        user = os.geteuid()
        try:
            if user == 0:  # root may read everything
                os.seteuid(65534)
            with pytest.raises(VideoError, match="Permission denied"):
                open_video(path, backend)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("strict", [False, True])
def test_damage_is_refused_or_told(backend, strict, tmp_path):
    path = write_video(tmp_path / "damaged.mp4", 60, gop=30)
    truth = decode_plainly(path)
    damage(path, 0.25, 0.4)
    if strict or backend != "pyav":  # the libraries give up at the first error
        with open_video(path, backend, strict) as video, pytest.raises(VideoError):
            video.frames(range(60))
        return
    with open_video(path, backend) as video:
        frames = video.frames(range(60))
        assert video.num_bad_frames > 0
        assert video.warnings
        np.testing.assert_array_equal(frames[30:], truth[30:])


def test_readers_leave_no_descriptor_open(backend, video_of):
    def read():
        with open_video(video_of("b_frames.mp4"), backend) as video:
            video.frames([3, 30])

    read()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        read()
    assert len(os.listdir("/proc/self/fd")) == before


def test_strict_refuses_a_count_that_the_packets_refute(video_of):
    need("decord")
    with pytest.raises(VideoError, match=r"decord counts 58 frames, the packets are 48"):
        open_video(video_of("edit_list.mp4"), "decord", strict=True)
    with open_video(video_of("edit_list.mp4"), "decord") as video:
        assert video.num_frames == 48
        assert len(video.warnings) == 1


def test_frames_behind_the_end_of_a_library(video_of, monkeypatch):
    from revvideo.data.readers.torchcodec_reader import TorchcodecReader

    need("torchcodec")
    full = TorchcodecReader._open
    monkeypatch.setattr(TorchcodecReader, "_open", lambda reader: full(reader) - 3)
    with open_video(video_of("b_frames.mp4"), "torchcodec") as video:
        assert numbers(video.frames([47, 10, 45, 44]), "b_frames.mp4") == [44, 10, 44, 44]
        assert video.num_bad_frames == 2
        assert any("2 wanted frames lie behind the last one" in line for line in video.warnings)


def test_frames_of_other_times_are_seen(video_of, monkeypatch):
    from revvideo.data.readers.torchcodec_reader import TorchcodecReader

    need("torchcodec")
    right = TorchcodecReader._decode
    monkeypatch.setattr(TorchcodecReader, "_decode", lambda reader, indices: right(reader, np.maximum(indices - 1, 0)))
    with open_video(video_of("b_frames.mp4"), "torchcodec") as video:
        video.frames([0, 5, 9])
        assert video.num_bad_frames == 2
    strict = open_video(video_of("b_frames.mp4"), "torchcodec", strict=True)
    with strict, pytest.raises(VideoError, match="1 wanted frames have other times"):
        strict.frames([5])


@pytest.mark.parametrize(
    ("backend", "error", "words"),
    [
        ("torchcodec", RuntimeError("Could not load libtorchcodec.\n  libavutil.so.59: no such file"), "libavutil.so"),
        ("torchcodec", ModuleNotFoundError("No module named 'torchcodec'"), "No module named"),
        ("decord", OSError("libdecord.so: cannot open shared object file"), "libdecord.so"),
        ("pytorchvideo", ModuleNotFoundError("No module named 'pytorchvideo'"), "No module named"),
    ],
)
def test_a_library_that_does_not_import_is_an_input_error(backend, error, words, video_of, monkeypatch):
    path, right = video_of("intra.mp4"), importlib.import_module
    reader = right(BACKENDS[backend][0])

    def broken(name, *rest):
        if name == LIBRARIES[backend]:
            raise error
        return right(name, *rest)

    monkeypatch.setattr(reader.importlib, "import_module", broken)
    with pytest.raises(InputError) as caught:
        open_video(path, backend)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "DATA.DECODING_BACKEND" in str(caught.value)
    if backend == "torchcodec":
        assert "revvideo[torchcodec]" in str(caught.value)
        assert "FFmpeg's shared libraries" in str(caught.value)


DECORD_PROGRAM = """
import hashlib, sys
import decord
from revvideo import open_video

def kind():
    return type(decord.VideoReader(sys.argv[1]).get_batch([0])).__module__.split(".")[0]

for _ in range(2):
    before = kind()
    with open_video(sys.argv[1], "decord", strict=True) as video:
        frames = video.frames([9, 3, 3, 40])
    print(before, kind(), type(frames).__module__, hashlib.md5(frames.tobytes()).hexdigest())
    import pytorchvideo.data.encoded_video_decord
"""


@pytest.mark.slow
def test_decord_gives_the_same_arrays_with_pytorchvideo_imported(video_of):
    need("decord")
    need("pytorchvideo")
    command = [sys.executable, "-c", DECORD_PROGRAM, video_of("b_frames.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    alone, imported = (line.split() for line in done.stdout.splitlines())
    assert alone[:2] == ["decord", "decord"]  # what others get from decord: the bridge stays as it was
    assert imported[:2] == ["torch", "torch"]
    assert alone[2:] == imported[2:]
    assert alone[2] == "numpy"


def test_decord_gives_the_same_arrays_whatever_its_bridge(video_of):
    """`import pytorchvideo` sets the bridge to torch; the test above does that."""
    decord = importlib.import_module(need("decord"))
    path = video_of("b_frames.mp4")
    results = []
    try:
        for bridge, kind in (("native", "decord"), ("torch", "torch")):
            decord.bridge.set_bridge(bridge)
            with open_video(path, "decord", strict=True) as video:
                results.append(video.frames([9, 3, 3, 40]))
            assert type(decord.VideoReader(path).get_batch([0])).__module__.split(".")[0] == kind  # left as it was
    finally:
        decord.bridge.reset_bridge()
    assert [type(frames) for frames in results] == [np.ndarray] * 2
    np.testing.assert_array_equal(*results)


def test_public_names():
    assert revvideo.open_video is open_video
    assert revvideo.VideoError is VideoError
