"""No file can hurt: one exception type, at once, in little memory, no descriptor lost; damage is told or refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_bad_clips import BAD
from make_clips import CLIPS
from videos import frame_number, write_video

from revvideo.data.readers import packet_index, pyav
from revvideo.data.video_reader import VideoError, open_video

# Of the processor: other processes may hold it up. What waits without working ends at the time limit of the process.
MOST_SECONDS, MOST_MIB = 1.0, 200.0

# Reads every clip named on the command line in one process; after each a good one, which shows that the process lives.
MEASURE = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import numpy as np
from mutations import peak_mib, reset_peak
from revvideo.data.video_reader import VideoError, open_video

def read_good():
    with open_video(sys.argv[2]) as video:
        assert video.clip(0, 16, 2).shape[0] == 16

read_good()
found = {}
for path in sys.argv[3:]:
    for strict in (False, True):
        before, start, facts = reset_peak(), time.process_time(), {}
        try:
            with open_video(path, strict=strict) as video:
                frames = video.frames(np.linspace(0, video.num_frames - 1, 16).astype(int))
                facts = {"num_frames": video.num_frames, "bad": video.num_bad_frames, "told": bool(video.warnings)}
        except VideoError as error:
            facts["error"] = str(error)
        facts["seconds"], facts["mib"] = time.process_time() - start, peak_mib() - before
        found[f"{path.rsplit('/', 1)[-1]} {'strict' if strict else 'lenient'}"] = facts
        read_good()
print(json.dumps(found))
"""


def in_another_process(*arguments: str) -> str:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def measure(good: Path, paths: list[Path]) -> dict[str, dict]:
    tests = str(Path(__file__).parent)
    found = json.loads(in_another_process("-c", MEASURE, tests, str(good), *map(str, paths)))
    for name, facts in found.items():
        assert facts["seconds"] < MOST_SECONDS, name
        assert facts["mib"] < MOST_MIB, name
        assert "\n" not in facts.get("error", ""), name
    return found


@pytest.mark.parametrize("name", BAD)
def test_each_fault_is_met_as_written(name):
    path, expect = str(CLIPS / "bad" / name), BAD[name].expect

    def read(strict):
        with open_video(path, strict=strict) as video:
            frames = video.frames(range(video.num_frames))
            return [frame_number(frame) for frame in frames], video.num_bad_frames, video.warnings

    if expect == "refused":
        for strict in (False, True):
            with pytest.raises(VideoError):
                read(strict)
        return
    numbers, num_bad, warnings = read(strict=False)
    wrong = sum(number != index for index, number in enumerate(numbers))
    if expect == "sound":
        assert (numbers, num_bad, warnings) == (list(range(40)), 0, [])
        assert read(strict=True) == (numbers, 0, [])
        return
    assert warnings
    assert (num_bad > 0) == (expect == "flagged")
    assert wrong <= num_bad + 2  # what is damaged just before the decoder notices
    with pytest.raises(VideoError):
        read(strict=True)


def test_damaged_groups_do_not_spoil_the_others():
    for name, damaged in (("first_key_garbage.mp4", range(12)), ("zeroed_middle.mp4", range(12, 36))):
        sound = [index for index in range(40) if index not in damaged]
        with (
            open_video(str(CLIPS / "bad" / name), strict=True) as video,
            open_video(str(CLIPS / "odd" / "cfr30_b3_gop12.mp4")) as good,
        ):
            np.testing.assert_array_equal(video.frames(sound), good.frames(sound), err_msg=name)
            with pytest.raises(VideoError):
                video.frames(damaged)


def test_time_and_memory():
    found = measure(CLIPS / "odd" / "cfr25.mp4", sorted((CLIPS / "bad").iterdir()))
    assert len(found) == 2 * len(BAD)


def test_collected_bad_clips(clips_folder):
    """The behaviour that the MANIFEST of the collected clips asks for."""
    paths = sorted(path for path in (clips_folder / "bad").iterdir() if path.suffix in (".mp4", ".mov"))
    assert len(paths) == 28
    found = measure(clips_folder / "odd" / "cfr30_b3_gop30.mp4", paths)
    sound = {"duration_lie": 90, "sample_entry_16384": 90, "decord_unordered": 4}
    told = {"stsz_size_2G": 40, "timescale_zero": 1, "stts_huge_delta": 1}
    damaged = {"first_key_garbage": 90, "bitflips_middle": 90, "zeroed_10k_middle": 90, "decord_corrupted": 50}
    damaged |= {"trunc_faststart_50": 44, "trunc_faststart_90": 80}
    for path in paths:
        lenient, strict = found[f"{path.name} lenient"], found[f"{path.name} strict"]
        if path.stem in sound:
            for facts in (lenient, strict):
                assert (facts["num_frames"], facts["bad"], facts["told"]) == (sound[path.stem], 0, False), path.name
        elif path.stem in told:
            assert (lenient["num_frames"], lenient["told"]) == (told[path.stem], True), path.name
            assert "error" in strict, path.name
        elif path.stem in damaged:
            assert lenient["num_frames"] == damaged[path.stem], path.name
            # Of a file that ends early the damaged frame need not be among the 16, but it is told.
            assert lenient["told"], path.name
            assert lenient["bad"] > 0 or path.stem.startswith("trunc"), path.name
            assert "error" in strict, path.name
        else:
            assert "error" in lenient, path.name
            assert "error" in strict, path.name


def test_a_list_of_other_files_is_not_followed(tmp_path):
    for name in ("playlist_concat.mp4", "playlist_hls.mp4"):
        inner = write_video(tmp_path / "inner.mp4", 5)
        text = (CLIPS / "bad" / name).read_text().replace("../odd/cfr25.mp4", inner).replace("../odd/h264.ts", inner)
        (tmp_path / name).write_text(text)
        assert inner in text
        with pytest.raises(VideoError):
            open_video(str(tmp_path / name))


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    names = ["fifo.mp4", "folder.mp4", "loop.mp4", "missing.mp4", "missing/inner.mp4", "http://localhost/v.mp4"]
    for name in names:
        with pytest.raises(VideoError):
            open_video(str(tmp_path / name) if "://" not in name else f"concat:{name}")
    with pytest.raises(VideoError):
        open_video("/dev/zero")
    with pytest.raises(VideoError):
        open_video("a\0b.mp4")


def test_a_file_without_read_permission(tmp_path):
    """Root reads everything, so that another user has to try."""
    write_video(tmp_path / "open.mp4", 3)
    os.chmod(write_video(tmp_path / "closed.mp4", 3), 0)
    tmp_path.chmod(0o755)
    attempt = (
        "import os, sys\n"
        "from revvideo.data.video_reader import VideoError, open_video\n"
        "from revvideo.data.readers import pyav\n"  # while the modules can still be read
        "os.chdir(sys.argv[1])\n"  # the folders above need not be open to that user
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "print(open_video('open.mp4').num_frames)\n"
        "try: open_video('closed.mp4')\n"
        "except VideoError as error: print(error.reason)\n"
    )
    assert in_another_process("-c", attempt, str(tmp_path)).splitlines() == ["3", "Permission denied"]


def test_a_colon_in_the_name_is_no_protocol(tmp_path):
    with open_video(write_video(tmp_path / "concat:v.mp4", 3)) as video:
        assert video.num_frames == 3


def test_limits_before_decoding(tmp_path, monkeypatch):
    path = write_video(tmp_path / "v.mp4", 20)
    monkeypatch.setattr(pyav, "MAX_PIXELS", 64 * 96 - 1)
    with pytest.raises(VideoError, match="pixels"):
        open_video(path)
    monkeypatch.setattr(pyav, "MAX_PIXELS", 64 * 96)
    monkeypatch.setattr(packet_index, "MAX_PACKETS", 19)
    with pytest.raises(VideoError, match="more than 19 packets"):
        open_video(path)
    monkeypatch.setattr(packet_index, "MAX_PACKETS", 20)
    monkeypatch.setattr(pyav, "CODECS", pyav.CODECS - {"h264"})
    with pytest.raises(VideoError, match="codec h264"):
        open_video(path)


def test_formats_protocols_threads_and_timeouts(tmp_path, monkeypatch):
    opened = []
    real_open = pyav.av.open

    def spy(*arguments, **options):
        opened.append((arguments, options))
        return real_open(*arguments, **options)

    monkeypatch.setattr(pyav.av, "open", spy)
    path = write_video(tmp_path / "v.mp4", 3)
    opened.clear()
    for strict in (False, True):
        with open_video(path, strict=strict) as video:
            context = video._stream.codec_context
            assert context.thread_count == 1
            assert context.options.get("err_detect") == ("explode" if strict else None)
            video.frames([1])
    for arguments, options in opened:
        assert arguments == (f"file:{path}",)
        assert options["options"]["protocol_whitelist"] == "file"
        assert "hls" not in options["options"]["format_whitelist"]
        assert options["timeout"] == (pyav.OPEN_SECONDS, pyav.READ_SECONDS) == (30.0, 30.0)
    assert len(opened) == 2  # one container each: nothing is opened again to learn the size
    monkeypatch.setattr(pyav, "FORMATS", "matroska")
    with pytest.raises(VideoError):
        open_video(path)


def test_descriptors_are_constant_over_500_openings():
    paths = [*sorted((CLIPS / "odd").iterdir()), *sorted((CLIPS / "bad").iterdir())]
    before = len(os.listdir("/proc/self/fd"))
    for number in range(500):
        strict = number // len(paths) % 2 == 1
        try:
            with open_video(str(paths[number % len(paths)]), strict=strict) as video:
                if number % 3 == 0:
                    video.frames([video.num_frames // 2])
                elif number % 3 == 1:
                    assert video.height > 0
        except VideoError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def check_mutants(folder: Path, num_mutants: int, most_unnoticed: float) -> None:
    script = str(Path(__file__).with_name("mutations.py"))
    found = json.loads(in_another_process(script, str(folder), str(num_mutants)))
    assert found["slowest_cpu_seconds"] < MOST_SECONDS
    assert found["most_mib"] < MOST_MIB
    assert sum(found["strict"].values()) == sum(found["lenient"].values()) == num_mutants
    assert found["strict"].get("garbage", 0) < most_unnoticed * num_mutants
    assert found["strict"].get("flagged", 0) == 0  # with `strict` what is flagged is refused


def test_mutants_do_no_harm():
    check_mutants(CLIPS / "odd", 300, most_unnoticed=0.12)


@pytest.mark.slow
def test_many_mutants_of_collected_clips_do_no_harm(clips_folder):
    check_mutants(clips_folder / "odd", 600, most_unnoticed=0.12)
