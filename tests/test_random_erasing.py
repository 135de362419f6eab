"""Random erasing on normalised clips: PySlowFast's boxes and noise."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from revvideo.data import sampling
from revvideo.data.random_erasing import RandomErasing
from revvideo.errors import InputError

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_data.json").read_text())["random_erasing"]


class PythonRandom:
    """Python's `random`, which PySlowFast draws the box from, and the seed of its torch noise."""

    def __init__(self, seed, noise_seed):
        self._random, self._noise_seed = random.Random(seed), noise_seed
        self.random, self.uniform = self._random.random, self._random.uniform

    def integers(self, low, high):
        return self._noise_seed if high == 2**63 else self._random.randint(low, high - 1)


def erased(clips):
    """Whether each pixel of zeros was written to: bool (B, T, H, W)."""
    return (clips != 0).any(1)


def test_box_and_noise_match_the_golden():
    clips = torch.zeros(1, 3, 4, 32, 32)
    result = RandomErasing(1.0)(clips, PythonRandom(GOLDEN["py_seed"], GOLDEN["torch_seed"]))
    assert result is clips
    y0, y1, x0, x1 = GOLDEN["box_y0y1x0x1"]
    expected = torch.zeros(4, 32, 32, dtype=torch.bool)
    expected[:, y0:y1, x0:x1] = True
    assert torch.equal(erased(clips)[0], expected)
    assert clips.double().sum().item() == pytest.approx(GOLDEN["sum"], abs=1e-3)
    assert torch.equal(clips[0, :, 0], clips[0, :, 1]) == GOLDEN["same_noise_all_frames"]


def test_clips_are_a_function_of_the_generator_and_have_boxes_of_their_own():
    erase = RandomErasing(1.0)
    first, second, other = (
        erase(torch.zeros(4, 3, 2, 24, 40), sampling.erasing_generator(0, 0, step, 0)) for step in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    masks = erased(first)
    assert torch.equal(masks[:, 0], masks[:, 1])  # all frames of a clip alike
    assert len({tuple(mask.flatten().tolist()) for mask in masks[:, 0]}) == 4
    shares = erased(erase(torch.zeros(200, 1, 1, 40, 40), np.random.default_rng(0))).float().mean((1, 2, 3))
    assert 0.01 < shares.min() < 0.06
    assert 0.3 < shares.max() < 0.36


def test_probability():
    clips = RandomErasing(0.25)(torch.zeros(400, 1, 1, 16, 16), np.random.default_rng(0))
    assert 70 <= clips.flatten(1).any(1).sum() <= 130
    assert not RandomErasing(0.0)(torch.zeros(50, 1, 1, 16, 16), np.random.default_rng(0)).any()


def test_modes():
    ones = torch.ones(1, 3, 2, 32, 32)
    const = RandomErasing(1.0, "const")(ones.clone(), np.random.default_rng(0))
    box = const[0, 0, 0] == 0
    assert box.any()
    assert torch.equal(const == 0, box.expand_as(const))
    rand = RandomErasing(1.0, "rand")(ones.clone(), np.random.default_rng(0))
    assert torch.equal(rand[0, 0, 0] != 1, box)
    assert all(len(rand[0, c, t][box].unique()) == 1 for c in range(3) for t in range(2))
    assert len(rand[..., box].unique()) == 6  # a level for each channel and frame
    pixel = RandomErasing(1.0)(ones.clone(), np.random.default_rng(0))[..., box]
    assert len(pixel.unique()) == pixel.numel()
    bf16 = RandomErasing(1.0)(ones.bfloat16(), np.random.default_rng(0))
    assert bf16.dtype == torch.bfloat16


def test_frames_on_their_own_without_cube():
    masks = erased(RandomErasing(0.5, cube=False)(torch.zeros(2, 3, 20, 32, 32), np.random.default_rng(0)))
    frames = masks.flatten(0, 1)
    assert 10 <= frames.flatten(1).any(1).sum() <= 30
    assert len({tuple(frame.flatten().tolist()) for frame in frames}) > 10


def test_several_boxes_share_the_area():
    generator = np.random.default_rng(0)
    erase = RandomErasing(1.0, count=3)
    drawn = [erase.boxes(60, 60, generator) for _ in range(300)]
    assert {len(boxes) for boxes in drawn} == {1, 2, 3}
    for boxes in drawn:
        assert all(0 <= y0 < y1 <= 60 and 0 <= x0 < x1 <= 60 for y0, y1, x0, x1 in boxes)
        assert sum((y1 - y0) * (x1 - x0) for y0, y1, x0, x1 in boxes) / 3600 < 0.36


@pytest.mark.parametrize(
    ("options", "key"), [({"prob": 1.5}, "RE_PROB"), ({"mode": "noise"}, "RE_MODE"), ({"count": 0}, "RE_COUNT")]
)
def test_wrong_options_name_their_key(options, key):
    with pytest.raises(InputError, match=key):
        RandomErasing(**{"prob": 0.5, **options})
