"""The clips with ground truth: what each library is known to misread or to refuse, as the readers' docstrings say."""

import json
import os
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest

from revvideo.data.video_reader import VideoError, open_video
from revvideo.errors import InputError

MISREAD_CLIPS = {
    "torchcodec": {
        "odd/h264.ts": "refused",
        "odd/raw.h264": "refused",
        "odd/res_change.mkv": "refused",
        "odd/res_change.ts": "refused",
        "odd/intra_refresh_nokey.mp4": "told",
        "odd/mpeg4_b.avi": "told",
        "real/mmaction2_test.avi": "told",
    },
    "decord": {
        "odd/av1.mp4": "refused",
        "odd/av1.webm": "refused",
        "odd/h264.ts": "refused",
        "odd/raw.h264": "refused",
        "odd/editlist_cut.mp4": "told",
        "odd/editlist_cut_gop250.mp4": "told",  # the cut is at a key frame: the frames are right, the count is not
        "odd/mpeg4_b.avi": "told",
        "odd/res_change.ts": "told",
        "real/mmaction2_test.avi": "told",  # right frames, times without sense
        "odd/intra_refresh_nokey.mp4": "silent",
        "odd/opengop24_b3.mp4": "silent",
    },
    "pytorchvideo": {
        "odd/h264.ts": "refused",
        "odd/raw.h264": "refused",
        "odd/res_change.mkv": "refused",
        "odd/res_change.ts": "refused",
        "odd/two_streams.mp4": "refused",
        "odd/mpeg4_b.avi": "refused",
        "real/mmaction2_test.avi": "refused",
        "real/torchcodec_nasa_13013.mp4": "refused",
    },
}


def outcome(path: Path, truth: dict, backend: str) -> str:
    """ "right", "refused" (`VideoError`), "told" (a warning, perhaps wrong frames) or "silent" (wrong frames)."""
    indices = [int(index) for index in truth["frames"]]
    try:
        with open_video(path, backend) as video:
            frames, told = video.frames(indices), video.warnings
            right = video.num_frames == truth["n_frames"]
            right &= bool(np.allclose(video.pts, np.array(truth["pts_90k"]) / 90000, atol=1.1e-3))
    except VideoError:
        return "refused"
    if told:
        return "told"
    for frame, expected in zip(frames, truth["frames"].values()):
        same = md5(np.ascontiguousarray(frame).tobytes()).hexdigest() == expected["md5_rgb24"]
        means = frame.reshape(-1, 3).mean(0) - np.array(expected["mean_rgb"])
        right &= same or bool(np.abs(means).max() <= 1.5)
    return "right" if right else "silent"


@pytest.mark.slow
@pytest.mark.parametrize("backend", MISREAD_CLIPS)
def test_misread_clips_are_those_that_are_listed(backend):
    if not os.environ.get("REVVIDEO_CLIPS"):
        pytest.skip("REVVIDEO_CLIPS does not name the folder of the clips with ground truth")
    root = Path(os.environ["REVVIDEO_CLIPS"])
    try:
        open_video(root / "odd" / "cfr24.mp4", backend).close()
    except InputError as error:
        pytest.skip(str(error))
    outcomes = {}
    for folder in ("odd", "real"):
        for name, truth in json.loads((root / folder / "ground_truth.json").read_text())["files"].items():
            outcomes[f"{folder}/{name}"] = outcome(root / folder / name, truth, backend)
    assert len(outcomes) == 57
    assert {name: result for name, result in outcomes.items() if result != "right"} == MISREAD_CLIPS[backend]
