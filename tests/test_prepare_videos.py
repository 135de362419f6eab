"""`revvideo prepare_videos`: what the results look like, runs that are killed, wrong words."""

import csv
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from serial_tasks import in_this_process, processes  # noqa: F401  (fixtures)
from tiny import command, write_list
from videos import damage, frame_number, numbered_frames, write_video

from revvideo.data import prepare
from revvideo.data.encode import EncodeSpec, OutputError, encode_video, target_size
from revvideo.data.manifest import read_manifest
from revvideo.data.prepare import Job, plan_jobs, prepare_videos
from revvideo.data.video_reader import VideoError, open_video
from revvideo.errors import InputError

SMALL = ("--short-side", 32, "--preset", "veryfast", "--num-workers", 1)


def rows_of(output: Path) -> dict[str, dict[str, str]]:
    """Output -> row of the manifest, the last one where there are several."""
    with (output / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return {row["output"]: row for row in csv.DictReader(file)}


def packets_of(path: Path) -> list[bool]:
    """Whether each packet is a key packet, in decoding order."""
    with av.open(str(path)) as container:
        return [packet.is_keyframe for packet in container.demux(video=0) if packet.size]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """The worst frame's, in dB."""
    errors = ((a.astype(np.float64) - b) ** 2).mean(axis=(1, 2, 3))
    return float(10 * np.log10(255**2 / errors.max()))


def frames_of(path: object, size: tuple[int, int] | None = None) -> np.ndarray:
    with open_video(str(path), strict=True) as video:
        return video.frames(range(video.num_frames), size)


def write_lossless(path: Path, frames: np.ndarray, codec: str = "ffv1", pixel_format: str = "yuv444p") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        for t, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# What one video becomes


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((256, 340), 256, (256, 340)),
        ((720, 1280), 256, (256, 456)),
        ((1280, 720), 320, (568, 320)),
        ((240, 320), 256, (240, 320)),
        ((129, 171), 256, (128, 170)),
        ((301, 301), 256, (256, 256)),
        ((257, 2001), 256, (256, 1994)),
        ((1, 3), 256, (2, 2)),
    ],
)
def test_the_size_keeps_the_aspect_is_even_and_never_larger(size, short_side, expected):
    assert target_size(*size, short_side) == expected


def test_a_result_is_close_to_its_source_and_made_for_seeking(tmp_path):
    source = write_video(tmp_path / "source.mp4", 100, size=(96, 128), gop=250, b_frames=2)
    encoded = encode_video(source, str(tmp_path / "out" / "result.mp4"), EncodeSpec(short_side=256))
    result = tmp_path / "out" / "result.mp4"
    assert (encoded.frames_in, encoded.frames_out) == (100, 100)
    assert (encoded.height, encoded.width, encoded.fps) == (96, 128, 30)
    assert encoded.bytes == result.stat().st_size
    assert encoded.sha256 == hashlib.sha256(result.read_bytes()).hexdigest()
    assert psnr(frames_of(source), frames_of(result)) > 30
    assert [number for number, is_key in enumerate(packets_of(result)) if is_key] == [0, 32, 64, 96]
    assert result.read_bytes().index(b"moov") < result.read_bytes().index(b"mdat")  # readable before it is complete
    with av.open(str(result)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        kinds = [PictureType(frame.pict_type).name for frame in container.decode(stream)]
        container.seek(0)
        stream.codec_context.skip_frame = "NONREF"
        assert sum(1 for _ in container.decode(stream)) == 100 - kinds.count("B")  # every B-frame can be skipped
    assert kinds[:9] == ["I", "B", "B", "B", "P", "B", "B", "B", "P"]


def test_large_videos_are_scaled_to_the_short_side(tmp_path):
    source = write_video(tmp_path / "source.mp4", 12, size=(256, 400))
    encoded = encode_video(source, str(tmp_path / "result.mp4"), EncodeSpec(short_side=128, gop=5))
    assert (encoded.height, encoded.width) == (128, 200)
    found = frames_of(tmp_path / "result.mp4")
    assert psnr(frames_of(source, (128, 200)), found) > 30
    assert [frame_number(frame) for frame in found] == list(range(12))
    assert [number for number, is_key in enumerate(packets_of(tmp_path / "result.mp4")) if is_key] == [0, 5, 10]


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_goes_into_the_pixels(tmp_path, rotation):
    source = write_video(tmp_path / "source.mp4", 10, size=(64, 112), rotation=rotation)
    encode_video(source, str(tmp_path / "result.mp4"), EncodeSpec())
    with av.open(str(tmp_path / "result.mp4")) as container:
        first = next(container.decode(video=0))
    assert first.rotation == 0
    assert (first.height, first.width) == ((64, 112) if rotation == 180 else (112, 64))
    assert psnr(frames_of(source), frames_of(tmp_path / "result.mp4")) > 30


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_time_stamps_of_a_variable_frame_rate_stay(tmp_path, suffix):
    times = np.cumsum([4, 1, 1, 2, 7, 1, 1, 1, 3, 20, 1, 1, 5, 1, 1, 1, 2, 1, 1, 9]).tolist()
    source = write_video(tmp_path / f"source{suffix}", 20, times=times, b_frames=2)
    encode_video(source, str(tmp_path / "result.mp4"), EncodeSpec())
    with open_video(source) as one, open_video(str(tmp_path / "result.mp4")) as other:
        assert one.pts[0] > 0.1
        np.testing.assert_allclose(other.pts, one.pts, rtol=0, atol=1e-9)
        assert other.fps == pytest.approx(one.fps, rel=0.05)
        assert [frame_number(frame) for frame in other.frames(range(20))] == list(range(20))


def test_sizes_ranges_and_pixel_formats_that_x264_does_not_take_as_they_are(tmp_path):
    frames = numbered_frames(8, 97, 131)
    formats = {"odd": ("ffv1", "yuv444p"), "jpeg": ("mjpeg", "yuvj420p"), "rgb": ("ffv1", "bgr0")}
    for name, (codec, pixel_format) in formats.items():
        source = write_lossless(tmp_path / f"{name}.mkv", frames, codec, pixel_format)
        encoded = encode_video(str(source), str(tmp_path / "result.mp4"), EncodeSpec(crf=12))
        assert (encoded.height, encoded.width) == (96, 130), name
        assert psnr(frames_of(source, (96, 130)), frames_of(tmp_path / "result.mp4")) > 30, name


def test_the_memory_for_a_long_video_is_that_for_a_short_one(tmp_path):
    code = (
        "import re, sys\nfrom revvideo.data.encode import EncodeSpec, encode_video\n"
        "encode_video(sys.argv[1], sys.argv[2], EncodeSpec(preset='ultrafast'))\n"
        # Not getrusage: its peak begins with that of the process that starts this one.
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)\n"
    )
    peaks = []
    for num_frames in (30, 240):
        still = np.zeros((1, 480, 640, 3), np.uint8)
        path = write_lossless(tmp_path / f"{num_frames}.mkv", np.repeat(still, num_frames, 0), "mpeg4", "yuv420p")
        words = [sys.executable, "-c", code, str(path), str(tmp_path / "result.mp4")]
        peaks.append(int(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 40, peaks  # MiB; the frames of the long one are 106 MiB


def test_a_damaged_source_leaves_nothing(tmp_path):
    bad = write_video(tmp_path / "bad.mp4", 60)
    damage(bad, 0.4, 0.6)
    (tmp_path / "text.mp4").write_text("no video\n" * 50, encoding="utf-8")
    for source in (bad, str(tmp_path / "text.mp4")):
        with pytest.raises(VideoError):
            encode_video(source, str(tmp_path / "out" / "result.mp4"), EncodeSpec())
    assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")


def test_an_output_that_cannot_be_written_is_not_blamed_on_the_source(tmp_path, processes):  # noqa: F811
    source = write_video(tmp_path / "source.mp4", 5)
    with pytest.raises(OutputError, match="cannot write"):
        encode_video(source, f"{source}/result.mp4", EncodeSpec())
    output = tmp_path / "out"
    assert list(prepare_videos([], str(output), EncodeSpec(), 1, timeout_seconds=60)) == []
    (output / "c").write_bytes(b"")
    with pytest.raises(InputError, match="run the same command again"):
        list(prepare_videos([Job(source, "c/d.mp4")], str(output), EncodeSpec(), 1, timeout_seconds=60))


# A tree of videos


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Three good videos and a damaged one in class folders, and lists of them."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("run", "jump"):
        (root / name).mkdir()
    write_video(root / "run" / "a.mp4", 20, size=(64, 96))
    write_video(root / "run" / "b.mkv", 25, size=(48, 48))
    write_video(root / "jump" / "a.avi", 15, size=(32, 64), codec="mpeg4")
    damage(write_video(root / "jump" / "bad.mp4", 60), 0.4, 0.6)
    write_list(root / "train.csv", [("run/a.mp4", 0), ("jump/bad.mp4", 1), ("jump/a.avi", 1)])
    return root


def test_the_output_mirrors_the_source_and_the_manifest_tells_of_each_video(tree, tmp_path, processes):  # noqa: F811
    output = tmp_path / "out"
    outcome = command("prepare_videos", tree, output, *SMALL, "--num-workers", 2)
    assert outcome.code == 0, outcome.err
    assert "3 videos encoded, 0 known from earlier runs, 1 failed" in outcome.out
    assert "1 of 4 videos failed" in outcome.err
    files = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    assert files == [".prepare_videos.lock", "jump/a.mp4", "manifest.csv", "run/a.mp4", "run/b.mp4"]
    rows = rows_of(output)
    assert len(rows) == 4
    for name, row in rows.items():
        if name == "jump/bad.mp4":
            assert (row["outcome"], row["sha256"]) == ("failed", "")
            assert "decod" in row["reason"]
            continue
        assert row["outcome"] == "done"
        assert row["sha256"] == hashlib.sha256((output / name).read_bytes()).hexdigest()
        assert row["frames_in"] == row["frames_out"] == str(len(packets_of(output / name)))
        assert row["source_bytes"] == str(Path(row["source"]).stat().st_size)
    assert (rows["run/a.mp4"]["height"], rows["run/a.mp4"]["width"]) == ("32", "48")
    assert (rows["run/b.mp4"]["height"], rows["run/b.mp4"]["width"]) == ("32", "32")


def test_strict_ends_with_3_when_a_source_failed(tree, tmp_path):
    assert command("prepare_videos", tree, tmp_path / "a", *SMALL, "--strict").code == 3
    assert command("prepare_videos", tree / "run", tmp_path / "b", *SMALL, "--strict").code == 0


def test_a_second_run_encodes_only_what_is_new_changed_lost_or_failed(tree, tmp_path):
    source, output = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tree, source)
    words = ("prepare_videos", source, output, *SMALL)
    assert "3 videos encoded" in command(*words).out
    times = {name: (output / name).stat().st_mtime_ns for name in ("run/a.mp4", "run/b.mp4", "jump/a.mp4")}
    (output / "run" / "b.mp4").unlink()
    write_video(source / "jump" / "a.avi", 18, size=(32, 64), codec="mpeg4")
    write_video(source / "run" / "new.mp4", 5)
    write_video(source / "jump" / "bad.mp4", 60)  # mended
    outcome = command(*words)
    assert "4 videos encoded, 1 known from earlier runs, 0 failed" in outcome.out, outcome.err
    assert (output / "run" / "a.mp4").stat().st_mtime_ns == times["run/a.mp4"]
    rows = rows_of(output)
    assert (rows["jump/a.mp4"]["frames_out"], rows["jump/bad.mp4"]["outcome"]) == ("18", "done")
    damage(str(source / "run" / "a.mp4"), 0.3, 0.9)
    os.utime(source / "run" / "a.mp4", (1, 1))
    assert "0 videos encoded, 4 known from earlier runs, 1 failed" in command(*words).out
    assert not (output / "run" / "a.mp4").exists()  # it was made of another video
    other = command(*words[:3], *SMALL, "--crf", 30)
    assert other.code == 2
    assert "other settings" in other.err
    assert "4 videos encoded, 0 known" in command(*words, "--crf", 30, "--restart").out


def test_a_run_that_is_killed_goes_on_and_leaves_no_half_file(tmp_path):
    source, output = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    first = write_video(source / "0.mp4", 90, size=(128, 192))
    for number in range(1, 8):
        shutil.copy(first, source / f"{number}.mp4")
    words = ["prepare_videos", str(source), str(output), "--preset", "slow"]
    start = [sys.executable, "-m", "revvideo.cli.main", *words, "--num-workers", "2"]
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not ((output / "manifest.csv").exists() and len(rows_of(output)) >= 2):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = len(rows_of(output))
    assert 2 <= before < 8
    (output / ".gone.mp4.tmp").write_bytes(b"half")  # of a source that is no more
    outcome = command(*words, "--num-workers", 2)
    assert outcome.code == 0, outcome.err
    assert f", {before} known from earlier runs, 0 failed" in outcome.out
    names = sorted(path.name for path in output.iterdir())
    assert names == sorted([".prepare_videos.lock", "manifest.csv", *(f"{number}.mp4" for number in range(8))])
    for name, row in rows_of(output).items():  # what was there before the kill and what came after it are complete
        assert row["sha256"] == hashlib.sha256((output / name).read_bytes()).hexdigest()
        assert row["frames_out"] == str(len(packets_of(output / name))) == "90"


def test_a_video_over_the_time_limit_fails_and_leaves_nothing(tmp_path, processes):  # noqa: F811
    write_video(tmp_path / "video.mp4", 20)
    outcome = command("prepare_videos", tmp_path / "video.mp4", tmp_path / "out", *SMALL, "--timeout", "1e-5")
    assert outcome.code == 0
    assert "gave no answer within 1e-05 s" in outcome.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.csv", ".prepare_videos.lock"}


def test_what_an_earlier_version_has_become_does_not_outlive_a_failure(tmp_path, monkeypatch):
    words = ("prepare_videos", write_video(tmp_path / "video.mp4", 5), tmp_path / "out", *SMALL)
    assert "1 videos encoded" in command(*words).out
    write_video(tmp_path / "video.mp4", 8)
    monkeypatch.setattr(prepare, "encode_video", lambda *_: 1 / 0)  # as a crash or the time limit: not as VideoError
    assert "1 failed" in command(*words).out
    assert not (tmp_path / "out" / "video.mp4").exists()


# Lists


def test_lists_get_the_new_paths_and_keep_their_labels(tree, tmp_path):
    output = tmp_path / "out"
    outcome = command("prepare_videos", tree, output, *SMALL, "--list", tree / "train.csv")
    assert outcome.code == 0, outcome.err
    assert f"{output}/train.csv: 2 videos with new paths, 1 with the old one, 0 left out" in outcome.out
    found = read_manifest(str(output / "train.csv"))
    assert found.labels == (0, 1, 1)
    assert [os.path.realpath(path) for path in found.paths] == [
        os.path.realpath(path) for path in (output / "run/a.mp4", tree / "jump/bad.mp4", output / "jump/a.mp4")
    ]
    dropped = command("prepare_videos", tree, output, *SMALL, "--drop-failed", "--list", tree / "train.csv")
    assert "2 videos with new paths, 0 with the old one, 1 left out" in dropped.out
    assert read_manifest(str(output / "train.csv")).labels == (0, 1)


def test_a_list_of_other_videos_is_refused_before_anything_is_encoded(tree, tmp_path):
    write_list(tmp_path / "other.csv", [("/nowhere/a.mp4", 0)])
    outcome = command("prepare_videos", tree, tmp_path / "out", *SMALL, "--list", tmp_path / "other.csv")
    assert outcome.code == 2
    assert "none of the 1 videos" in outcome.err
    assert not (tmp_path / "out").exists()
    (tmp_path / "again").mkdir()
    shutil.copy(tree / "train.csv", tmp_path / "again" / "train.csv")
    lists = ("--list", tree / "train.csv", tmp_path / "again" / "train.csv")
    assert "of the same name" in command("prepare_videos", tree, tmp_path / "out", *SMALL, *lists).err


# Wrong words


def test_folders_that_lie_in_each_other_are_refused(tree, tmp_path):
    (link := tmp_path / "link").symlink_to(tree)
    for source, output, message in (
        (tree, tree / "out", "lies inside"),
        (tree, link / "out", "lies inside"),
        (tree / "run", tree, "lies inside"),
        (tree, tree, "is the source"),
    ):
        outcome = command("prepare_videos", source, output, *SMALL)
        assert outcome.code == 2, (source, output)
        assert message in outcome.err
    assert not (tree / "out").exists()


def test_a_video_in_the_output_folder_is_no_source(tree, tmp_path):
    source, output = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tree / "run", source)
    assert command("prepare_videos", source, output, *SMALL).code == 0
    before = (output / "a.mp4").read_bytes()
    outcome = command("prepare_videos", output / "a.mp4", output, *SMALL)
    assert outcome.code == 2
    assert "in the output folder" in outcome.err
    (source / "back").symlink_to(output)
    assert "in the output folder" in command("prepare_videos", source, output, *SMALL).err
    (source / "back").unlink()
    (source / "below").mkdir()
    shutil.copy(source / "a.mp4", source / "below" / "c.mp4")
    (output / "below").symlink_to(source / "below")  # the result would be written over its source
    assert "in the output folder" in command("prepare_videos", source, output, *SMALL).err
    assert (output / "a.mp4").read_bytes() == before


def test_two_videos_that_would_become_one_file_are_refused(tree, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tree / "run", source)
    shutil.copy(source / "b.mkv", source / "A.mkv")
    outcome = command("prepare_videos", source, tmp_path / "out", *SMALL)
    assert outcome.code == 2
    assert "would both become" in outcome.err
    several = plan_jobs([str(tree / "run"), str(tree / "jump")], str(tmp_path / "out"))
    assert [job.output for job in several] == ["run/a.mp4", "run/b.mp4", "jump/a.mp4", "jump/bad.mp4"]
    single = plan_jobs([str(tree / "run"), str(tree / "jump" / "bad.mp4")], str(tmp_path / "out"))
    assert [job.output for job in single] == ["a.mp4", "b.mp4", "bad.mp4"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "there is no file or folder nowhere"),
        (("--short-side", 255), "--short-side is 255"),
        (("--short-side", 8), "--short-side is 8"),
        (("--gop", 0), "--gop is 0"),
        (("--crf", 52), "--crf is 52"),
        (("--num-workers", 0), "--num-workers is 0"),
        (("--timeout", "nan"), "--timeout is nan"),
        (("--list", "nowhere.csv"), "cannot read the list nowhere.csv"),
    ],
)
def test_wrong_words_are_refused_with_what_was_expected(tree, tmp_path, words, message):
    sources = [] if words[0] == "nowhere" else [tree / "run"]
    first, rest = (words[:1], ()) if not sources else ((), words)
    outcome = command("prepare_videos", *first, *sources, tmp_path / "out", *rest)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "out").exists()


def test_an_output_folder_with_something_else_or_in_use_is_refused(tree, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.mp4").write_bytes(b"precious")
    outcome = command("prepare_videos", tree / "run", tmp_path / "mine", *SMALL)
    assert outcome.code == 2
    assert "is not empty" in outcome.err
    assert (tmp_path / "mine" / "a.mp4").read_bytes() == b"precious"
    (tmp_path / "file").write_bytes(b"precious")
    assert command("prepare_videos", tree / "run", tmp_path / "file", *SMALL).code == 2
    (tmp_path / "none").mkdir()
    assert "no video below" in command("prepare_videos", tmp_path / "none", tmp_path / "out", *SMALL).err
    (tmp_path / "busy").mkdir()
    with open(tmp_path / "busy" / ".prepare_videos.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = command("prepare_videos", tree / "run", tmp_path / "busy", *SMALL)
    assert outcome.code == 2
    assert "another run is writing" in outcome.err


# The clips of ../shared/clips


CLIPS = os.environ.get("REVVIDEO_CLIPS", "")
REFUSED = {"res_change.ts"}  # a corrupt packet, which strict reading does not let pass


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS, reason="REVVIDEO_CLIPS names no folder with the clips odd/ and real/")
def test_every_odd_and_real_clip_is_encoded_with_its_frames_and_times(tmp_path):
    sources = [path for name in ("odd", "real") for path in sorted(Path(CLIPS, name).iterdir()) if is_clip(path)]
    jobs = [Job(str(path), f"{path.parent.name}/{path.name}.mp4") for path in sources]
    results = list(
        prepare_videos(jobs, str(tmp_path / "out"), EncodeSpec(crf=16, preset="veryfast"), 2, timeout_seconds=120)
    )
    assert {Path(result.source).name for result in results if result.outcome != "done"} == REFUSED
    for result in results:
        if result.outcome == "done":
            with open_video(result.source) as one, open_video(str(tmp_path / "out" / result.output)) as other:
                assert one.num_frames == other.num_frames
                assert np.abs(one.pts - other.pts).max() < 0.0005
                some = np.linspace(0, one.num_frames - 1, 6).round().astype(int)
                size = (other.height, other.width)
                assert psnr(one.frames(some, size), other.frames(some)) > 25, result.source


def is_clip(path: Path) -> bool:
    return path.suffix not in (".json", ".md", ".txt") and path.is_file()
