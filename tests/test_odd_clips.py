"""Odd but sound videos: the default backend gives the frames that a plain full decode gives, and calls none damaged."""

import json
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from make_bad_clips import BAD, EXPECTATIONS
from make_clips import CLIPS, ODD, quadrant_means
from videos import frame_number

from revvideo.data.video_reader import VideoError, open_video

TRUTH = json.loads((CLIPS / "truth.json").read_text())
LUMA = np.array([0.299, 0.587, 0.114])
# Concatenated transport streams: the demuxer itself calls the packet at the seam corrupt.
CALLED_CORRUPT = {"res_change.ts"}


def test_the_script_and_the_folder_agree():
    assert {path.name for path in (CLIPS / "odd").iterdir()} == set(ODD) == set(TRUTH["odd"])
    assert {path.name for path in (CLIPS / "bad").iterdir()} == set(BAD) == set(TRUTH["bad"])
    assert all(TRUTH["bad"][name]["expect"] == bad.expect for name, bad in BAD.items())
    assert {bad.expect for bad in BAD.values()} == set(EXPECTATIONS)
    assert sum(path.stat().st_size for path in CLIPS.rglob("*")) < 1.5e6


@pytest.mark.parametrize("name", ODD)
def test_count_times_and_pictures(name):
    facts = TRUTH["odd"][name]
    for strict in (False, True):
        with open_video(str(CLIPS / "odd" / name), strict=strict) as video:
            assert (video.num_frames, video.height, video.width) == (
                facts["num_frames"],
                facts["height"],
                facts["width"],
            )
            if facts["seconds"] is not None:
                np.testing.assert_allclose(video.pts, facts["seconds"], atol=2e-6)
            frames = video.frames(range(video.num_frames))
            turns = getattr(ODD[name], "turns", 0)
            assert [frame_number(np.rot90(frame, -turns)) for frame in frames] == facts["numbers"]
            order = [int(index) for index in reversed(facts["mean_rgb_2x2"])]
            picked = video.frames(order)
            np.testing.assert_array_equal(picked, frames[order])  # by seeking, the same as one after the other
            for index, frame in zip(order, picked):
                expected = facts["mean_rgb_2x2"][str(index)]
                np.testing.assert_allclose(quadrant_means(frame), expected, atol=1.5, err_msg=str(index))
            assert (video.num_bad_frames, video.warnings) == (0, [])


@pytest.mark.parametrize("name", ["cfr30_b3_gop12.mp4", "rot90.mp4", "res_change.mkv", "h264.ts", "sar_16_9.mp4"])
def test_scaled_while_decoding(name):
    with open_video(str(CLIPS / "odd" / name)) as video:
        height, width = video.height, video.width
        whole = video.frames([0, 7, 39])
        small = video.frames([0, 7, 39], size=(height // 2, width // 2))
        assert small.shape == (3, height // 2, width // 2, 3)
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(whole).permute(0, 3, 1, 2).float(), small.shape[1:3], mode="bilinear", antialias=True
        )
        difference = small - expected.permute(0, 2, 3, 1).numpy()
        assert np.abs(difference @ LUMA).mean() < 1  # a shift by one pixel gives 2.6
        assert np.abs(difference).mean() < 5  # the colours come at half the resolution already
        np.testing.assert_array_equal(video.frames([7], size=(height, width)), whole[1:2])
        np.testing.assert_array_equal(video.clip(0, 2, 7, size=(30, 50)), video.frames([0, 7], size=(30, 50)))


@pytest.mark.parametrize("folder", ["odd", "real"])
def test_collected_clips_match_their_ground_truth(clips_folder, folder):
    truth = json.loads((clips_folder / folder / "ground_truth.json").read_text())["files"]
    assert len(truth) == {"odd": 49, "real": 8}[folder]
    for name, facts in truth.items():
        path = str(clips_folder / folder / name)
        with open_video(path) as video:
            assert video.num_frames == facts["n_frames"], name
            np.testing.assert_allclose(video.pts, np.array(facts["pts_90k"]) / 90000, atol=5e-5, err_msg=name)
            order = [int(index) for index in reversed(facts["frames"])]
            frames = video.frames(order)
            for index, frame in zip(order, frames):
                expected = facts["frames"][str(index)]
                if md5(frame.tobytes()).hexdigest() != expected["md5_rgb24"]:
                    means = quadrant_means(frame)
                    np.testing.assert_allclose(means, expected["mean_rgb_2x2"], atol=1.5, err_msg=f"{name} {index}")
            assert video.num_bad_frames == 0, name
        if name in CALLED_CORRUPT:
            with pytest.raises(VideoError, match="corrupt packets"):
                open_video(path, strict=True)
        else:
            with open_video(path, strict=True) as video:
                np.testing.assert_array_equal(video.frames(order), frames)


def test_md5_of_most_collected_clips(clips_folder):
    """Bit for bit what ffmpeg gives, where its ground truth says that this may be asked."""
    facts = json.loads((clips_folder / "odd" / "ground_truth.json").read_text())["files"]
    loose = ("10bit", "odd_dims", "interlaced", "mpeg4", "res_change")
    exact = [name for name in facts if not any(part in name for part in loose)]
    assert len(exact) == 40
    for name in exact:
        with open_video(str(Path(clips_folder) / "odd" / name)) as video:
            for index, frame in zip(facts[name]["frames"], video.frames([int(i) for i in facts[name]["frames"]])):
                expected = facts[name]["frames"][index]["md5_rgb24"]
                assert md5(frame.tobytes()).hexdigest() == expected, f"{name} {index}"
