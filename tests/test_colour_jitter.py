"""Colour jitter against PIL and torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from revvideo.data import colour_operations
from revvideo.data.colour_jitter import MAX_JITTER, ColourJitter
from revvideo.data.transforms import as_clip
from revvideo.errors import InputError

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
ENHANCE = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


@pytest.mark.parametrize("name", ENHANCE)
def test_one_change_is_pils_within_one_level(name):
    jitter = ColourJitter(**{name: 0.4})
    for seed in range(5):
        [(drawn, factor)] = jitter.draw(np.random.default_rng(seed))
        assert (drawn, 0.6 <= factor <= 1.4) == (name, True)
        result = jitter(as_clip(FRAMES), np.random.default_rng(seed)).permute(0, 2, 3, 1).numpy()
        expected = np.stack([np.asarray(ENHANCE[name](Image.fromarray(f)).enhance(factor)) for f in FRAMES])
        assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("turn", [0.1, -0.37, 0.5])
def test_hue_is_torchvisions(turn):
    functional = pytest.importorskip("torchvision.transforms.functional")
    expected = np.stack([np.asarray(functional.adjust_hue(Image.fromarray(frame), turn)) for frame in FRAMES])
    assert np.array_equal(colour_operations.shift_hue(FRAMES, turn), expected)


def test_order_and_factors_vary_and_depend_on_the_generator_alone():
    jitter = ColourJitter(0.4, 0.4, 0.4, 0.1)
    drawn = [jitter.draw(np.random.default_rng(seed)) for seed in range(200)]
    assert len({tuple(name for name, _ in changes) for changes in drawn}) == 24
    turns = [dict(changes)["hue"] for changes in drawn]
    assert -0.1 <= min(turns) < -0.05 < 0.05 < max(turns) <= 0.1
    before = FRAMES.copy()
    first, second, other = (jitter(as_clip(FRAMES), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert np.array_equal(FRAMES, before)


def test_strong_jitter_stays_in_range():
    assert min(v for s in range(50) for _, v in ColourJitter(2.0).draw(np.random.default_rng(s))) >= 0
    black = colour_operations.apply_tables(FRAMES, colour_operations.brightness_table(0.0))
    assert not black.any()
    grey = colour_operations.saturation(FRAMES, 0.0)
    assert np.abs(grey.astype(int) - grey[..., :1]).max() <= 1
    assert colour_operations.saturation(FRAMES, 3.0).max() == 255
    red = np.full((1, 3, 3, 3), (200, 100, 0), np.uint8)
    strongest = colour_operations.saturation(red, 1.0 + MAX_JITTER)
    assert (strongest == (255, 0, 0)).all()
    spot = np.zeros((1, 3, 3, 3), np.uint8)
    spot[0, 1, 1] = 255
    assert np.array_equal(colour_operations.sharpness(spot, 1.0 + MAX_JITTER), spot)


def test_nothing_to_do_gives_the_clip_back():
    clip = as_clip(FRAMES)
    assert ColourJitter()(clip, np.random.default_rng(0)) is clip


@pytest.mark.parametrize(
    "options", [{"brightness": -0.1}, {"hue": 0.6}, {"saturation": 200}, {"contrast": float("nan")}]
)
def test_wrong_options(options):
    with pytest.raises(InputError, match="colour jitter"):
        ColourJitter(**options)
