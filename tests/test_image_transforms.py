"""Transforms of pictures against torchvision's, which PySlowFast and timm use."""

import numpy as np
import pytest
import torch
from PIL import Image

from revvideo.data import sampling
from revvideo.data.colour_jitter import ColourJitter
from revvideo.data.image_transforms import ImageEvalTransform, ImageTrainTransform, mean_colour
from revvideo.data.rand_augment import RandAugment, parse_policy
from revvideo.errors import InputError


def picture(width=90, height=70, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("size", [(90, 70), (70, 101), (64, 64), (41, 300)])
def test_eval_transform_is_torchvisions(size):
    v1 = pytest.importorskip("torchvision.transforms")
    resize = v1.Resize(int(56 / 0.875), interpolation=v1.InterpolationMode.BICUBIC)
    expected = np.asarray(v1.CenterCrop(56)(resize(picture(*size))))
    result = ImageEvalTransform(56)(picture(*size))
    assert result.dtype == torch.uint8
    assert result.shape == (1, 3, 56, 56)
    assert np.array_equal(result[0].permute(1, 2, 0).numpy(), expected)


def test_train_crop_is_torchvisions_resized_crop():
    functional = pytest.importorskip("torchvision.transforms.functional")
    bicubic = functional.InterpolationMode.BICUBIC
    for key in range(5):
        result = ImageTrainTransform(48, flip=False)(picture(), sampling.keyed_generator(0, 0, key, 0))
        generator = sampling.keyed_generator(0, 0, key, 0)
        box = sampling.random_resized_crop_box(70, 90, (0.08, 1.0), (3 / 4, 4 / 3), generator)
        expected = functional.resized_crop(picture(), *box, (48, 48), bicubic)
        assert np.array_equal(result[0].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    "augment",
    [RandAugment(parse_policy("rand-m9-n6-mstd0.5-inc1"), (124, 116, 104), "bicubic"), ColourJitter(0.4, 0.4, 0.4)],
    ids=["rand_augment", "colour_jitter"],
)
def test_train_transform_is_a_function_of_its_generator(augment):
    transform = ImageTrainTransform(48, "random", augment=augment)
    first, second, other = (transform(picture(), sampling.keyed_generator(0, 0, key, 0)) for key in (1, 1, 2))
    assert first.shape == (1, 3, 48, 48)
    assert first.dtype == torch.uint8
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_any_mode_becomes_rgb(mode):
    assert ImageEvalTransform(32)(picture(mode=mode)).shape == (1, 3, 32, 32)
    generator = sampling.keyed_generator(0, 0, 0, 0)
    assert ImageTrainTransform(32)(picture(mode=mode), generator).shape == (1, 3, 32, 32)


def test_flip_half_of_the_time():
    transform = ImageTrainTransform(64, relative_scales=(1.0, 1.0), relative_aspects=(1.0, 1.0))
    square = picture(64, 64)
    upright = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
    results = [transform(square, sampling.keyed_generator(0, 0, key, 0)) for key in range(100)]
    flipped = [torch.equal(result, upright.flip(-1)) for result in results]
    assert all(mirrored or torch.equal(result, upright) for mirrored, result in zip(flipped, results))
    assert 30 <= sum(flipped) <= 70


def test_mean_colour_and_wrong_options():
    assert mean_colour((0.485, 0.456, 0.406)) == (124, 116, 104)
    with pytest.raises(InputError, match="IN_VAL_CROP_RATIO"):
        ImageEvalTransform(224, 0.0)
    with pytest.raises(InputError, match=r"AUG\.INTERPOLATION"):
        ImageTrainTransform(224, "lanczos")
    with pytest.raises(InputError, match="TRAIN_JITTER_SCALES_RELATIVE"):
        ImageTrainTransform(224, relative_scales=(1.0, 0.08))
    with pytest.raises(InputError, match="TRAIN_JITTER_ASPECT_RELATIVE"):
        ImageTrainTransform(224, relative_aspects=(0.0, 1.0))
