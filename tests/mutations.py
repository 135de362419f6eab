"""Sound videos broken at random, and what a reader makes of them: run as a process of its own, as it might crash.

    python tests/mutations.py FOLDER NUM_MUTANTS [SEED]

prints one line of json: how many mutants were refused, given back right, flagged, and given back as garbage unnoticed.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from revvideo.data.video_reader import VideoError, open_video

GARBAGE = 5.0  # mean absolute difference, in levels of 255, from the frame that should have come
NUM_SAMPLES = 8
KINDS = ("flip_1", "flip_5", "flip_50", "zero_512", "cut", "header_flip")


def mutate(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A copy of a file with flipped bits (anywhere, or in its first and last 2 kB), a zeroed range or no end."""
    broken = bytearray(content)
    if kind == "cut":
        return bytes(broken[: int(rng.integers(1, len(broken)))])
    if kind == "zero_512":
        at = int(rng.integers(len(broken)))
        broken[at : at + 512] = bytes(len(broken[at : at + 512]))
        return bytes(broken)
    for _ in range(int(kind.split("_")[1]) if kind.startswith("flip") else 5):
        at = int(rng.integers(len(broken)))
        if kind == "header_flip":
            at = at % 2048 if rng.integers(2) else -1 - at % 2048
            at = max(min(at, len(broken) - 1), -len(broken))
        broken[at] ^= 1 << int(rng.integers(8))
    return bytes(broken)


def peak_mib() -> float:
    """The largest resident size since `reset_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def outcome(path: str, truth: dict[int, np.ndarray], num_frames: int, strict: bool) -> str:
    """One of: refused, other_count (fewer or more frames are claimed), flagged, exact, slight, garbage."""
    try:
        with open_video(path, strict=strict) as video:
            if video.num_frames != num_frames:
                video.frames(range(min(video.num_frames, 8)))
                return "other_count_flagged" if video.warnings else "other_count"
            frames = video.frames(list(truth))
            if video.num_bad_frames or video.warnings:
                return "flagged"
    except VideoError:
        return "refused"
    if frames.shape[1:] != next(iter(truth.values())).shape:
        return "garbage"
    difference = max(float(np.abs(a.astype(np.int16) - b).mean()) for a, b in zip(frames, truth.values()))
    return "exact" if difference == 0 else "slight" if difference <= GARBAGE else "garbage"


def main(folder: str, num_mutants: int, seed: int = 0, modes: tuple[bool, ...] = (False, True)) -> dict:
    sources = sorted(path for path in Path(folder).iterdir() if path.suffix in (".mp4", ".webm", ".mkv", ".avi", ".ts"))
    truths = {}
    for source in sources:
        with open_video(str(source)) as video:
            indices = sorted(set(np.linspace(0, video.num_frames - 1, NUM_SAMPLES).astype(int).tolist()))
            truths[source] = (dict(zip(indices, video.frames(indices))), video.num_frames)
    counts = {mode: Counter() for mode in modes}
    slowest, most = 0.0, 0.0
    with tempfile.TemporaryDirectory() as work:
        for number in range(num_mutants):
            rng = np.random.default_rng([seed, number])
            source = sources[int(rng.integers(len(sources)))]
            path = Path(work) / source.name
            path.write_bytes(mutate(source.read_bytes(), KINDS[number % len(KINDS)], rng))
            for strict in modes:
                before, start = reset_peak(), time.process_time()
                counts[strict][outcome(str(path), *truths[source], strict)] += 1
                slowest = max(slowest, time.process_time() - start)
                most = max(most, peak_mib() - before)
    names = {False: "lenient", True: "strict"}
    return {
        "mutants": num_mutants,
        "slowest_cpu_seconds": round(slowest, 2),
        "most_mib": round(most, 1),
        **{names[mode]: dict(sorted(found.items())) for mode, found in counts.items()},
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), *(int(number) for number in sys.argv[3:4]))))
