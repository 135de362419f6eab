"""`revvideo check_data`: the status of a video, the scan that nothing ends, and the command."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import parallel_tasks
import pytest
from serial_tasks import in_this_process, processes  # noqa: F401  (fixtures)
from tiny import NUM_CLASSES, command, overrides, write_list
from videos import damage, numbered_frames, write_video

from revvideo.data.check import COLUMNS, CheckSpec, VideoCheck, check_videos
from revvideo.data.parallel import run_tasks
from revvideo.data.row_file import RowFile
from revvideo.errors import InputError


def write_gray_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "gray"
        for t in range(20):
            frame = av.VideoFrame.from_ndarray(numbered_frames(20)[t, ..., 0].copy(), format="gray")
            container.mux(stream.encode(frame.reformat(format="gray")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One video of each status; their names begin with it."""
    root = tmp_path_factory.mktemp("videos")
    (root / "below").mkdir()
    write_video(root / "good.mp4", 70)
    write_video(root / "below" / "good2.mp4", 70, b_frames=2)
    write_video(root / "short.mp4", 20)
    write_video(root / "odd_rotated.mp4", 70, rotation=180)
    write_video(root / "odd_rate.mp4", 70, fps=25)
    write_video(root / "odd_vfr.mp4", 70, times=[t + t // 5 for t in range(70)])
    write_gray_video(root / "odd_gray.mkv")
    damage(write_video(root / "damaged.mp4", 70), 0.45, 0.55)
    (root / "unreadable_text.mp4").write_text("this is no video\n" * 100, encoding="utf-8")
    (root / "unreadable_empty.mp4").write_bytes(b"")
    os.mkfifo(root / "unreadable_fifo.mp4")
    (root / "missing_link.mp4").symlink_to(root / "nowhere.mp4")
    (root / ".hidden.mp4").write_bytes(b"")
    (root / "notes.txt").write_text("no video", encoding="utf-8")
    return root


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {Path(row["path"]).stem: row for row in csv.DictReader(file)}


# The status of a video


def test_every_video_gets_its_status_with_the_reason(folder, tmp_path, processes):  # noqa: F811
    table = tmp_path / "scan.csv"
    outcome = command("check_data", folder, "--decode", "all", "--csv", table, "--num-workers", 3)
    assert outcome.code == 0
    rows = rows_of(table)
    assert len(rows) == 12
    for name, row in rows.items():
        expected = name.split("_")[0].rstrip("2")
        assert row["status"] == ("good" if expected == "short" else expected), row  # no config: nothing is too short
    assert "180" in rows["odd_rotated"]["reason"]
    assert "25 frames per second" in rows["odd_rate"]["reason"]
    assert "variable frame rate" in rows["odd_vfr"]["reason"]
    assert "3 channels" in rows["odd_gray"]["reason"]
    assert rows["unreadable_empty"]["reason"] == "the file is empty"
    assert rows["unreadable_fifo"]["reason"] == "not a regular file"
    good = rows["good"]
    assert (good["frames"], good["fps"], good["height"], good["width"], good["codec"]) == (
        "70",
        "30",
        "64",
        "96",
        "h264",
    )
    assert float(good["seconds"]) == pytest.approx(70 / 30, abs=1e-4)
    assert int(good["bytes"]) == (folder / "good.mp4").stat().st_size
    counts = dict(line.split() for line in outcome.out.splitlines()[1:7])
    assert counts == {"good": "3", "odd": "4", "short": "0", "damaged": "1", "unreadable": "3", "missing": "1"}
    assert f"{folder}/unreadable_empty.mp4: the file is empty" in outcome.out


def test_decode_says_how_much_of_a_video_is_looked_at(tmp_path):
    path = damage(write_video(tmp_path / "late.mp4", 120, gop=10), 0.93, 0.98)
    assert path is None
    video = [(str(tmp_path / "late.mp4"), "video")]
    found = {
        mode: next(check_videos(video, CheckSpec(mode), 1, timeout_seconds=60))[0].status for mode in ("first", "all")
    }
    assert found == {"first": "good", "all": "damaged"}


def test_pictures_and_folders_of_pictures_are_checked_too(tmp_path):
    from PIL import Image

    frames = tmp_path / "frames"
    frames.mkdir()
    for t, frame in enumerate(numbered_frames(12)):
        Image.fromarray(frame).save(frames / f"img_{t:05d}.jpg")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "picture.png")
    (tmp_path / "broken.jpg").write_bytes((frames / "img_00000.jpg").read_bytes()[:300])
    videos = [(str(frames), "frames")] + [(str(tmp_path / name), "image") for name in ("picture.png", "broken.jpg")]
    checks = [check for check, _ in check_videos(videos, CheckSpec("all"), 1, timeout_seconds=60)]
    found = {Path(check.path).name: (check.status, check.frames, check.height, check.width) for check in checks}
    assert found["frames"] == ("good", 12, 64, 96)
    assert found["picture.png"] == ("good", 1, 20, 30)
    assert found["broken.jpg"][0] == "unreadable"


# A scan that goes on


def test_a_second_scan_looks_only_at_what_has_changed_or_could_not_be_read(folder, tmp_path):
    table = tmp_path / "scan.csv"
    moving = write_video(tmp_path / "moving.mp4", 20)
    words = ("check_data", folder, moving, "--csv", table, "--num-workers", 2)
    assert command(*words).code == 0
    first = rows_of(table)
    half = table.read_text(encoding="utf-8").rstrip("\n")
    table.write_text(half[: half.rindex("\n") + 9], encoding="utf-8")  # killed while the last row was written
    write_video(tmp_path / "moving.mp4", 25)
    (lost,) = set(first) - set(rows_of(table)) or {None}
    again = command(*words, "--resume")
    assert again.code == 0
    fresh = {"moving", lost} | {name for name in first if name.startswith(("unreadable", "missing"))}
    assert f"{len(first) - len(fresh - {None})} of {len(first)} videos are known" in again.err
    second = rows_of(table)
    assert second.pop("moving")["frames"] == "25"
    assert first.pop("moving")["frames"] == "20"
    assert second == first
    assert "videos are known" not in command(*words, "--decode", "first").err  # another question
    assert "videos are known" not in command(*words, "--restart").err
    assert rows_of(table).keys() == second.keys() | {"moving"}


def test_a_scan_that_is_killed_goes_on_and_leaves_no_process(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    copies_of_one_video(root, 40)
    table = tmp_path / "scan.csv"
    words = ("check_data", str(root), "--decode", "all", "--csv", str(table))
    start = [sys.executable, "-m", "revvideo.cli.main", *words, "--num-workers", "1"]
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: table.exists() and len(table.read_text(encoding="utf-8").splitlines()) > 3)
    process.kill()
    process.wait()
    wait_for(lambda: not group_is_alive(process.pid))
    before = len(rows_of(table))
    assert 3 <= before < 40
    again = command(*words, "--num-workers", 2)
    assert again.code == 0
    assert len(rows_of(table)) == 40
    assert " of 40 videos are known" in again.err


def copies_of_one_video(folder: Path, number: int) -> None:
    path = write_video(folder / "0.mp4", 100, gop=100)
    for copy in range(1, number):
        shutil.copy(path, folder / f"{copy}.mp4")


def wait_for(happened, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return any(  # what has ended but was not yet collected does not count
        f" {group} " in text.split(")")[-1] and text.split(")")[-1].split()[0] != "Z"
        for text in map(read_quietly, Path("/proc").glob("[0-9]*/stat"))
    )


def read_quietly(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ")"


def test_ctrl_c_ends_the_command_quietly_and_its_processes(tmp_path):
    copies_of_one_video(tmp_path, 30)
    table = tmp_path / "scan.csv"
    start = [
        sys.executable,
        "-m",
        "revvideo.cli.main",
        "check_data",
        str(tmp_path),
        "--decode",
        "all",
        "--csv",
        str(table),
    ]
    process = subprocess.Popen(
        [*start, "--num-workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: table.exists() and len(table.read_text(encoding="utf-8").splitlines()) > 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    wait_for(lambda: not group_is_alive(process.pid))  # Python's own resource tracker ends a moment after the command


# Processes that misbehave


@pytest.mark.parametrize("num_workers", [1, 2])
def test_tasks_run_once_each_in_any_number_of_processes(num_workers):
    results = list(run_tasks(parallel_tasks.double, range(50), num_workers, timeout_seconds=60))
    assert {result.number: result.value for result in results} == {number: 2 * number for number in range(50)}
    assert len(results) == 50
    assert list(run_tasks(parallel_tasks.double, [], num_workers, timeout_seconds=60)) == []


def test_a_task_that_raises_hangs_or_kills_its_process_costs_only_itself(tmp_path):
    notes = str(tmp_path / "notes")
    kinds = ["fine", "raise", "hang", "die", "exit", "die once", "fine"]
    results = run_tasks(parallel_tasks.misbehave, [(kind, notes) for kind in kinds], 2, timeout_seconds=3)
    found = {result.number: result for result in results}
    assert sorted(found) == list(range(len(kinds)))
    assert [bool(found[number].value) for number in range(len(kinds))] == [True, False, False, False, False, True, True]
    assert (found[1].error, found[1].error_type) == ("no good at all", "ValueError")
    assert (found[2].error, found[2].error_type) == ("gave no answer within 3 s", "TimeoutError")
    assert found[3].error == "its worker process died twice (killed, perhaps out of memory)"
    assert found[4].error == "its worker process died twice (exit code 7)"
    tried = Path(notes).read_text(encoding="utf-8").splitlines()
    assert {kind: tried.count(kind) for kind in set(kinds)} == {
        "fine": 2, "raise": 1, "hang": 1, "die": 2, "exit": 2, "die once": 2,
    }  # fmt: skip


def test_processes_that_cannot_start_end_the_run():
    with pytest.raises(RuntimeError, match="end while they start: exit code 3"):
        list(run_tasks(parallel_tasks.KillsItsReader(), range(5), 2, timeout_seconds=60))


def test_a_video_over_the_time_limit_is_unreadable_and_tried_again(tmp_path, processes):  # noqa: F811
    path, table = write_video(tmp_path / "video.mp4", 20), tmp_path / "scan.csv"
    words = ("check_data", path, "--csv", table, "--num-workers", 1)
    assert command(*words, "--timeout", "1e-5").code == 0
    row = rows_of(table)["video"]
    assert (row["status"], row["reason"]) == ("unreadable", "gave no answer within 1e-05 s")
    assert command(*words, "--timeout", 60).code == 0
    assert rows_of(table)["video"]["status"] == "good"


# The command


def test_the_lists_of_a_config_are_scanned_and_its_clips_decide_what_is_short(folder, tmp_path):
    videos = sorted(path for path in folder.rglob("*.m*") if path.name[0] != ".")
    write_list(tmp_path / "train.csv", [(str(path), number % NUM_CLASSES) for number, path in enumerate(videos)])
    write_list(tmp_path / "val.csv", [(str(folder / "short.mp4"), 5), (str(folder / "absent.mp4"), 1)])
    keys = overrides({"DATA.PATH_TO_DATA_DIR": tmp_path, "DATA.NUM_FRAMES": 8, "DATA.SAMPLING_RATE": 4})
    words = ("check_data", "--num-workers", 2, "--write-good", tmp_path / "good" / "{split}.csv")
    outcome = command(*words, "--csv", tmp_path / "scan.csv", "--cfg", "demo/REV_MVIT_DEMO", *keys)
    assert outcome.code == 0, outcome.err
    assert "split test is left out" in outcome.err
    assert outcome.out.splitlines()[0].split() == ["status", "train", "val", "all"]
    rows = rows_of(tmp_path / "scan.csv")
    assert rows["short"]["status"] == "short"
    assert rows["short"]["reason"] == "20 frames, a clip spans 32"
    assert rows["odd_gray"]["status"] == "short"  # what else is odd is among the reasons
    assert "3 channels" in rows["odd_gray"]["reason"]
    assert rows["absent"]["status"] == "missing"
    assert (tmp_path / "good" / "val.csv").read_text(encoding="utf-8") == f"{folder / 'short.mp4'} 5\n"
    kept = [line.split() for line in (tmp_path / "good" / "train.csv").read_text(encoding="utf-8").splitlines()]
    readable = [path for path in videos if path.name.startswith(("good", "odd", "short"))]
    assert kept == [[str(path), str(videos.index(path) % NUM_CLASSES)] for path in readable]
    only = command("check_data", "--num-workers", 1, "--strict", "--split", "val", "--cfg", "demo/REV_MVIT_DEMO", *keys)
    assert only.code == 3
    assert "1 of 2 videos are damaged, unreadable or missing" in only.err


def test_a_list_is_scanned_and_its_labels_are_kept(folder, tmp_path):
    lines = [f"{name}.mp4,{label}" for name, label in (("good", 3), ("damaged", 4), ("odd_vfr", 9), ("good", 3))]
    (tmp_path / "my.csv").write_text("\n".join(lines), encoding="utf-8")
    words = ("check_data", "--list", tmp_path / "my.csv", "--separator", ",", "--prefix", folder, "--num-workers", 1)
    outcome = command(*words, "--decode", "all", "--write-good", tmp_path / "good.csv")
    assert outcome.code == 0, outcome.err
    expected = [f"{folder}/good.mp4,3", f"{folder}/odd_vfr.mp4,9", f"{folder}/good.mp4,3"]
    assert (tmp_path / "good.csv").read_text(encoding="utf-8").splitlines() == expected
    assert "2 of 3 videos can be used" in outcome.out  # each video is looked at once


def test_strict_fails_only_when_something_is_bad(folder):
    good = [folder / "good.mp4", folder / "odd_vfr.mp4"]
    assert command("check_data", *good, "--strict", "--num-workers", 1).code == 0
    assert command("check_data", *good, folder / "nowhere.mp4", "--strict", "--num-workers", 1).code == 3
    assert command("check_data", *good, folder / "nowhere.mp4", "--num-workers", 1).code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to check"),
        (("--num-workers", 0, "x.mp4"), "--num-workers is 0"),
        (("--timeout", 0, "x.mp4"), "--timeout is 0"),
        (("--resume", "x.mp4"), "--csv"),
        (("--split", "val", "x.mp4"), "needs --cfg"),
        (("--list", "nowhere.csv"), "cannot read the list nowhere.csv"),
        (("--cfg", "demo/REV_MVIT_DEMO", "--list", "x.csv"), "both given"),
        (("--split", "holdout", "--cfg", "demo/REV_MVIT_DEMO"), "'holdout'"),
        (("--csv", "/dev/null", "x.mp4"), "no regular file"),
        (("--write-good", "/dev/null", "x.mp4"), "no regular file"),
        (("--write-good", "good.csv", "--separator", "::", "x.mp4"), "the separator is '::'"),
        (("--write-good", "good.csv", "two\nlines.mp4"), "cannot hold the name 'two\\nlines.mp4'"),
        (("--write-good", "good.csv", "latin\udce9.mp4"), "cannot hold the name 'latin\\udce9.mp4'"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused_with_what_was_expected(words, message):
    outcome = command("check_data", *words)
    assert outcome.code == 2
    assert message in outcome.err


def test_an_empty_folder_and_files_that_are_not_ours_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = command("check_data", tmp_path / "empty")
    assert outcome.code == 2
    assert "no video below" in outcome.err
    listing = tmp_path / "train.csv"
    for option in ((), ("--restart",)):
        listing.write_text("a.mp4 1\n", encoding="utf-8")
        outcome = command("check_data", folder / "good.mp4", "--csv", listing, *option)
        assert outcome.code == 2
        assert "not written by this command" in outcome.err
        assert listing.read_text(encoding="utf-8") == "a.mp4 1\n"
    write_list(tmp_path / "a.csv", [(str(folder / "good.mp4"), 1)])
    write_list(tmp_path / "b.csv", [(str(folder / "good.mp4"), 1)])
    outcome = command(
        "check_data", "--write-good", tmp_path / "g.csv", "--list", tmp_path / "a.csv", tmp_path / "b.csv"
    )
    assert outcome.code == 2
    assert "expected {split} in the name" in outcome.err


def test_a_row_file_takes_any_name_and_the_last_row_of_a_key_counts(tmp_path):
    names = ["a,b.mp4", 'quo"te.mp4', "two\nlines.mp4", "carriage\rreturn.mp4", os.fsdecode(b"latin\xe9.mp4")]
    with RowFile(tmp_path / "rows.csv", COLUMNS, "path") as rows:
        for status in ("good", "short"):
            for name in names:
                rows.append(VideoCheck(name, status, fps=29.97).row())
    with RowFile(tmp_path / "rows.csv", COLUMNS, "path") as rows:
        assert list(rows.rows) == names
        assert {VideoCheck.from_row(row).status for row in rows.rows.values()} == {"short"}
    with pytest.raises(InputError, match="first line"):
        RowFile(tmp_path / "rows.csv", ("path", "label"), "path")
    broken = ",".join(COLUMNS) + '\n"' + 200_000 * "x" + "\n"  # a quote that nothing ends
    (tmp_path / "rows.csv").write_text(broken, encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        RowFile(tmp_path / "rows.csv", COLUMNS, "path")


def test_a_row_file_behind_a_link_is_written_where_the_link_leads(tmp_path):
    (tmp_path / "real.csv").touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    with RowFile(tmp_path / "link.csv", ("path",), "path") as rows:
        rows.append({"path": "a.mp4"})
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text(encoding="utf-8") == "path\na.mp4\n"


def test_a_full_disk_ends_a_row_file_in_words(tmp_path):
    with RowFile(tmp_path / "rows.csv", ("path",), "path") as rows:
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, rows._file.fileno())
        os.close(full)
        with pytest.raises(InputError, match=r"cannot write .*rows.csv: No space left on device"):
            rows.append({"path": "a.mp4"})


def test_names_that_are_no_utf8_are_printed_everywhere(tmp_path):
    words = [sys.executable, "-m", "revvideo.cli.main", "check_data", os.fsdecode(bytes(tmp_path) + b"/caf\xe9.mp4")]
    result = subprocess.run(words, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, check=False)
    assert result.returncode == 0, result.stderr
    assert b"caf\\udce9.mp4: no such file" in result.stdout
