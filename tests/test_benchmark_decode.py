"""`revvideo benchmark decode`: which frames are asked of whom, what the ratios mean, what is generated and printed."""

import argparse
import itertools
import json
import math
import shlex
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import pytest
import torch
from videos import decode_plainly, write_video

from revvideo.benchmark import decoders as decoders_module
from revvideo.benchmark.decode import (
    DecodeBenchmark,
    Group,
    Plan,
    compare_frames,
    geometric_mean,
    means_of,
    speed_up_of_prepared,
)
from revvideo.benchmark.decode_files import generated_groups, groups_to_prepare, prepared_groups, source_groups
from revvideo.benchmark.decode_table import format_decode_result
from revvideo.benchmark.decoders import DECODERS, OURS, Decoder, Job, Video, load_decoders
from revvideo.benchmark.generated_video import (
    TYPICAL_MBIT,
    Content,
    GeneratedVideo,
    encode_x264,
    generate_frames,
    write_videos,
)
from revvideo.benchmark.machine import describe_machine
from revvideo.cli import benchmark_decode
from revvideo.cli.main import main
from revvideo.errors import InputError

SMALL = Content(width=96, height=64, num_frames=40)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    """Two videos of 60 and 50 frames with B-frames and several key frames."""
    folder = tmp_path_factory.mktemp("videos")
    return [write_video(folder / f"v{n}.mp4", 60 - 10 * n, gop=12, b_frames=3, seed=n) for n in range(2)]


# Generated videos


def packets(path: Path) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def test_generated_pictures_depend_on_the_seed_alone(tmp_path):
    first, again, other = (np.stack(list(generate_frames(SMALL, seed))) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 10
    videos = write_videos(tmp_path, count=2, gops=[30], content=SMALL, seed=3)
    assert [video.path.name for video in videos] == ["generated_3_gop30.mp4", "generated_4_gop30.mp4"]
    for video, frames in zip(videos, (first, other)):
        with av.open(str(video.path)) as container:
            decoded = np.stack([frame.to_ndarray() for frame in container.decode(video=0)])  # yuv420p planes
        assert np.abs(decoded.astype(int) - frames).mean() < 5


def test_both_distances_of_key_frames_hold_the_same_pictures(tmp_path):
    long, short = write_videos(tmp_path, count=1, gops=[250, 10], content=SMALL)
    assert (long.gop, short.gop) == (250, 10)
    keys = [[i for i, packet in enumerate(packets(v.path)) if packet.is_keyframe] for v in (long, short)]
    assert keys[0] == [0]
    assert len(keys[1]) >= 4
    assert max(np.diff(keys[1])) <= 10
    assert len(packets(long.path)) == len(packets(short.path)) == SMALL.num_frames
    difference = np.abs(decode_plainly(str(long.path)).astype(int) - decode_plainly(str(short.path)))
    assert difference.mean() < 4
    assert long.mbit_per_s == pytest.approx(long.path.stat().st_size * 8e-6 * 30 / 40)


def test_content_of_the_default_size_has_the_bits_and_the_b_frames_of_kinetics(tmp_path):
    (video,) = write_videos(tmp_path, count=1, gops=[250], content=Content(num_frames=60))
    assert TYPICAL_MBIT[0] <= video.mbit_per_s <= TYPICAL_MBIT[1]
    with av.open(str(video.path)) as container:
        kinds = [frame.pict_type for frame in container.decode(video=0)]
    share = kinds.count(av.video.frame.PictureType.B) / len(kinds)
    assert 0.5 < share < 0.8  # the real clips of this kind: 0.53 to 0.72


def test_things_move_noise_is_new_in_each_frame_and_cuts_change_the_scene():
    still = list(generate_frames(Content(width=96, height=64, num_frames=2, noise=0.0), seed=0))
    noisy = list(generate_frames(Content(width=96, height=64, num_frames=2, noise=2.0), seed=0))
    assert still[0].shape == (96, 96)
    assert still[0].dtype == np.uint8
    assert np.abs(np.diff(np.stack(still).astype(int), axis=0)).mean() > 0
    noise = [a.astype(int)[:64] - b[:64] for a, b in zip(noisy, still)]
    assert 1.8 < noise[0].std() < 2.2
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1
    frames = np.stack(list(generate_frames(Content(width=96, height=64, num_frames=20, cuts=1), seed=0))).astype(int)
    steps = np.sort(np.abs(np.diff(frames, axis=0)).mean((1, 2)))
    assert steps[-1] > 2 * steps[-2]


@pytest.mark.parametrize("wrong", [{"width": 95}, {"height": 16}, {"cuts": 300}, {"cuts": -1}])
def test_impossible_content_is_refused(wrong):
    with pytest.raises(InputError, match="expected"):
        Content(**wrong)


def test_an_encoding_that_fails_leaves_no_file(tmp_path):
    frames = [np.zeros((96, 64), np.uint8), np.zeros((97, 64), np.uint8)]
    with pytest.raises(ValueError, match="shape"):
        encode_x264(tmp_path / "broken.mp4", frames, fps=30, gop=30)
    assert not list(tmp_path.iterdir())


# What is asked of the libraries


def test_a_job_names_each_frame_once_and_repeats_the_last_one(videos):
    video = Video.of(videos[0])
    assert (video.num_frames, video.fps, video.height, video.width) == (60, 30.0, 64, 96)
    assert video.seconds[0] == 0
    assert np.allclose(np.diff(video.seconds), 1 / 30)
    job = Job(video, [0, 4, 50], num_frames=4, stride=4)
    assert job.clips.tolist() == [[0, 4, 8, 12], [4, 8, 12, 16], [50, 54, 58, 59]]
    assert job.frames.tolist() == [0, 4, 8, 12, 16, 50, 54, 58, 59]
    assert job.size is None
    assert Job(video, [0], num_frames=4, stride=4, short_side=32).size == (32, 48)


@pytest.mark.parametrize("name", DECODERS)
def test_each_library_returns_the_frames_of_the_job(name, videos):
    found, missing = load_decoders([name])
    if name in missing:
        pytest.skip(f"{name} cannot run here: {missing[name]}")
    decoder = found[-1]
    assert decoder.name == name
    assert decoder.version[0].isdigit()
    truth = decode_plainly(videos[0])
    for starts in ([0], [43], [3, 10, 50]):
        job = Job(Video.of(videos[0]), starts, num_frames=4, stride=5)
        frames = decoder.frames(job, decoder.read(job))
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, truth[job.frames])
    # decord fails at widths that are no multiple of its row alignment.
    job = Job(Video.of(videos[0]), [3], num_frames=4, stride=5, short_side=128)
    assert decoder.frames(job, decoder.read(job)).shape == (4, 128, 192, 3)


def test_a_library_that_does_not_import_is_missing_with_its_reason(monkeypatch):
    def fail(name: str):
        raise RuntimeError("Could not load libtorchcodec\nmore lines")

    monkeypatch.setattr(decoders_module.importlib, "import_module", fail)
    found, missing = load_decoders(["all"])
    assert [decoder.name for decoder in found] == [OURS]
    assert set(missing) == set(DECODERS) - {OURS}
    assert missing["torchcodec"] == "RuntimeError: Could not load libtorchcodec"
    with pytest.raises(InputError, match="unknown backend 'torchcodek'; --backends takes all, pyav, torchcodec"):
        load_decoders(["torchcodek"])


# What is measured


class FakeDecoder(Decoder):
    """Takes as much of the fake time as its table says, and notes its jobs."""

    package, calls = "av", "nothing"
    clock = 0.0
    log: ClassVar[list[tuple[str, Job]]] = []

    def __init__(self, name: str, seconds, *, shift: int = 0, error: Exception | None = None):
        self.name, self.seconds, self.shift, self.error = name, seconds, shift, error

    def read(self, job: Job) -> np.ndarray:
        if self.error:
            raise self.error
        FakeDecoder.log.append((self.name, job))
        FakeDecoder.clock += self.seconds(job)
        return np.full((len(job.frames), 2, 2, 3), 100 + self.shift, np.uint8)


def measure(groups: list[Group], decoders: list[FakeDecoder], **plan) -> dict:
    FakeDecoder.clock, FakeDecoder.log = 0.0, []
    plan = {"rounds": 3, "views": 2, "num_frames": 4, "stride": 2} | plan
    return DecodeBenchmark(
        Plan(groups, decoders, **plan), clock=lambda: (FakeDecoder.clock, 2 * FakeDecoder.clock)
    ).run()


def test_ratios_and_means_of_known_times(videos):
    groups = [
        Group("gop 250", "generated", [videos[0]]),
        Group("gop 30", "generated", [videos[1]]),
        Group("prepared gop 250", "prepared", [videos[1]], original="gop 250"),
    ]
    # The peer takes 2 times ours on the first file, 8 times on the second one.
    ours = FakeDecoder(OURS, lambda job: 0.040 if job.video.num_frames == 60 else 0.010)
    peer = FakeDecoder("peer", lambda job: 0.080)
    threads = torch.get_num_threads()
    result = measure(groups, [ours, peer])
    assert torch.get_num_threads() == threads
    assert [(row["case"], row["group"], row["backend"]) for row in result["rows"]] == list(
        itertools.product(("clip", "views"), [group.name for group in groups], (OURS, "peer"))
    )
    for row in result["rows"]:
        own = 0.080 if row["backend"] == "peer" else 0.040 if row["group"] == "gop 250" else 0.010
        assert row["cpu_seconds"] == pytest.approx([own] * 3)
        assert row["median_cpu_seconds"] == pytest.approx(own)
        assert row["median_wall_seconds"] == pytest.approx(2 * own)
        assert row["per_second"] == pytest.approx(1 / own)
        assert row["spread"] == pytest.approx(0)
    ratios = {(row["group"], row["case"]): row["ratio"] for row in result["rows"] if row["backend"] == "peer"}
    assert ratios["gop 250", "clip"] == pytest.approx(2)
    assert ratios["gop 30", "views"] == pytest.approx(8)
    means = {(mean["case"], mean["kind"]): mean for mean in result["means"]}
    assert means["clip", "generated"]["ratio"] == pytest.approx(4)  # the geometric mean of 2 and 8
    assert means["clip", "generated"]["groups"] == ["gop 250", "gop 30"]
    assert means["clip", "prepared"]["ratio"] == pytest.approx(8)
    speed_ups = {(row["case"], row["backend"]): row["ratio"] for row in result["prepared"]}
    assert speed_ups["clip", OURS] == pytest.approx(4)
    assert speed_ups["views", "peer"] == pytest.approx(1)


def test_the_times_of_a_group_are_those_of_a_file_of_it_on_average(videos):
    ours = FakeDecoder(OURS, lambda job: 0.040 if job.video.num_frames == 60 else 0.010)
    row = measure([Group("both", "generated", videos)], [ours], views=0)["rows"][0]
    assert row["median_cpu_seconds"] == pytest.approx(0.025)
    assert row["files"] == 2


def test_a_round_gives_all_backends_the_same_clip_in_another_order(videos):
    names = [OURS, "a", "b", "c"]
    groups = [Group("one", "generated", [videos[0]]), Group("again", "prepared", [videos[0]], original="one")]
    measure(groups, [FakeDecoder(name, lambda job: 1.0) for name in names], rounds=12, views=3)
    counted = FakeDecoder.log[2 * len(names) :]  # after the checks, one clip a file and backend
    orders, starts = set(), []
    for reads in zip(*[iter(counted)] * len(names)):
        assert sorted(name for name, _ in reads) == sorted(names)
        assert len({tuple(job.starts) for _, job in reads}) == 1
        orders.add(tuple(name for name, _ in reads))
        starts.append(tuple(reads[0][1].starts))
    assert len(orders) > 6
    clips, views = starts[:24], starts[24:]
    assert all(0 <= start <= 53 for (start,) in clips)
    assert len(set(clips)) > 6
    assert clips[::2] == clips[1::2]  # the same content in two encodings
    assert set(views) == {(0, 26, 53)}  # Python rounds 26.5 to the even 26


def test_two_runs_with_one_seed_read_the_same_clips(videos):
    def starts(seed: int) -> list[list[int]]:
        measure([Group("one", "generated", videos)], [FakeDecoder(OURS, lambda job: 1.0)], seed=seed)
        return [job.starts for _, job in FakeDecoder.log]

    assert starts(5) == starts(5) != starts(6)


def test_what_a_peer_gets_wrong_is_told_and_what_it_cannot_read_is_not_timed(videos):
    ours = FakeDecoder(OURS, lambda job: 1.0)
    shifted = FakeDecoder("shifted", lambda job: 3.0, shift=9)
    broken = FakeDecoder("broken", lambda job: 1.0, error=RuntimeError("no such stream\nat line 3"))
    result = measure([Group("one", "source", videos[:1])], [ours, shifted, broken], missing={"gone": "ImportError: x"})
    checks = {check["backend"]: check for check in result["files"][0]["checks"]}
    assert checks[OURS]["max_difference"] == 0
    assert checks["shifted"]["max_difference"] == 9
    assert checks["shifted"]["other_frames"] == 4
    assert checks["broken"]["error"] == "RuntimeError: no such stream"
    rows = {(row["case"], row["backend"]): row for row in result["rows"]}
    assert rows["clip", "broken"]["cpu_seconds"] == []
    assert rows["clip", "broken"]["files"] == 0
    assert rows["views", "shifted"]["ratio"] == pytest.approx(3)
    assert [mean["backend"] for mean in result["means"]] == ["shifted", "shifted"]
    result["header"] = {"command": "revvideo benchmark decode", "machine": describe_machine(torch.device("cpu"))}
    text = format_decode_result(result)
    for expected in (
        "shifted: 4 other frames; broken not measured (RuntimeError: no such stream)",
        "not measured: ImportError: x",
        "one 4x2 clip:",
        "2 views of 4x2 in one open:",
        "geometric means:",
    ):
        assert expected in text
    assert "re-encoded" not in text


def test_our_own_failure_is_not_hidden(videos):
    with pytest.raises(RuntimeError, match="ours"):
        measure([Group("one", "source", videos[:1])], [FakeDecoder(OURS, lambda job: 1.0, error=RuntimeError("ours"))])


def test_frames_of_another_shape_are_refused():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(2, 2, 4, 3\) instead of \(2, 4, 4, 3\)"):
        compare_frames(frames[:, :2], frames)
    changed = frames.copy()
    changed[1, 0, 0, 0] = 100  # one value of 48: another rounding, not another frame
    assert compare_frames(changed, frames) == {"max_difference": 100, "other_frames": 0}


def test_means_leave_out_what_was_not_measured():
    rows = [
        {"case": "clip", "kind": "source", "backend": "peer", "group": name, "cpu_seconds": [1.0] * measured}
        | {"ratio": ratio, "ratio_of_medians": ratio}
        for name, ratio, measured in (("a", 2.0, 1), ("b", 4.5, 1), ("c", 9.0, 0))
    ]
    (mean,) = means_of(rows)
    assert mean["ratio"] == pytest.approx(3.0)
    assert mean["groups"] == ["a", "b"]
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert speed_up_of_prepared([], [Group("a", "prepared", ["x"], original="b")]) == []


def test_groups_of_files(tmp_path, videos):
    made = [GeneratedVideo(tmp_path / f"{n}_{gop}.mp4", gop, 0.5) for n in range(2) for gop in (250, 30)]
    groups = generated_groups(made)
    assert [group.name for group in groups] == ["gop 250", "gop 30"]
    assert [[Path(path).name for path in group.paths] for group in groups] == [
        ["0_250.mp4", "1_250.mp4"],
        ["0_30.mp4", "1_30.mp4"],
    ]
    with pytest.raises(InputError, match="is not a file"):
        source_groups([tmp_path / "none.mp4"])
    broken = tmp_path / "a.mp4"
    broken.write_bytes(b"x")
    with pytest.raises(InputError, match=r"--source: cannot read the video .*a\.mp4"):
        source_groups([broken])
    with pytest.raises(InputError, match="twice"):
        source_groups([Path(videos[0]), Path(videos[0])])
    (group,) = source_groups([Path(videos[0])])
    assert (group.name, group.kind, group.paths) == ("v0.mp4", "source", [videos[0]])


def test_re_encoded_files_hold_the_same_video_and_stand_beside_their_originals(tmp_path, videos):
    originals = [Group("gop 250", "generated", videos), Group("gop 30", "generated", videos[:1])]
    (group,) = prepared_groups(groups_to_prepare(originals), tmp_path)  # of the first distance only
    assert (group.name, group.kind, group.original) == ("prepared", "prepared", "gop 250")
    assert [Video.of(path).num_frames for path in group.paths] == [60, 50]
    assert all(Path(path).is_relative_to(tmp_path) for path in group.paths)
    sources = prepared_groups(groups_to_prepare(source_groups([Path(path) for path in videos])), tmp_path)
    assert [group.original for group in sources] == ["v0.mp4", "v1.mp4"]


# The command


def test_the_command_measures_files_and_writes_all_figures(tmp_path, videos, capsys):
    path = tmp_path / "figures.json"
    words = ["benchmark", "decode", "--source", *videos, "--rounds", "1", "--views", "2", "--frames", "4"]
    assert main([*words, "--backends", "all", "--json", str(path)]) == 0
    result = json.loads(path.read_text("utf-8"))
    assert next(backend["name"] for backend in result["backends"] if not backend["missing"]) == OURS
    assert {backend["name"] for backend in result["backends"]} == set(DECODERS)
    running = [backend["name"] for backend in result["backends"] if not backend["missing"]]
    assert len(result["rows"]) == 2 * len(videos) * len(running)
    for row in result["rows"]:
        assert row["files"] == 1
        assert len(row["cpu_seconds"]) == 1
        assert row["ratio"] > 0
        assert math.isfinite(row["ratio"])
    assert all(check["max_difference"] == 0 for file in result["files"] for check in file["checks"])
    assert all(mean["kind"] == "source" for mean in result["means"])
    out = capsys.readouterr().out
    assert all(backend["name"] in out for backend in result["backends"])
    assert "one 4x4 clip:" in out
    assert "the same frames" in out
    assert result["header"]["command"] in out


def test_the_command_generates_what_it_reads_and_keeps_it_where_asked(tmp_path, capsys):
    folder = tmp_path / "kept"
    words = ["benchmark", "decode", "--backends", OURS, "--rounds", "1", "--views", "0", "--videos", "1"]
    assert main([*words, "--seconds", "1", "--frames", "4", "--gops", "250,10", "--keep", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["generated_0_gop10.mp4", "generated_0_gop250.mp4"]
    out = capsys.readouterr().out
    assert "gop 250" in out
    assert "gop 10" in out
    assert "views of" not in out


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    benchmark_decode.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--backends pyav,torchcodec --source a.mp4 b.mp4 --size 128 --seed 3",
        "--rounds 2 --views 0 --frames 8 --stride 2 --gops 60 --videos 2 --seconds 3 --cuts 0 --prepared",
    ],
)
def test_the_printed_command_says_the_same_again(words):
    args = parsed(*shlex.split(words))
    said = shlex.split(benchmark_decode.command_line(args))
    assert said[:3] == ["revvideo", "benchmark", "decode"]
    assert vars(parsed(*said[3:])) == vars(args)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--source /nowhere/a.mp4", "--source /nowhere/a.mp4 is not a file"),
        ("--backends decrod", "unknown backend 'decrod'"),
        ("--json /nowhere/x.json", "--json /nowhere/x.json cannot be written"),
        ("--keep /dev/null", "--keep /dev/null cannot be made a folder: File exists"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_measured(words, message, capsys, monkeypatch):
    monkeypatch.setattr(DecodeBenchmark, "run", lambda self: pytest.fail("measured"))
    assert main(["benchmark", "decode", *words.split()]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--rounds 0", "--views -1", "--size big", "--gops 250,,30", "--videos two"])
def test_wrong_numbers_are_told_in_a_line(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "decode", *words.split()])
    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err
