"""RandAugment: policy strings and drawing against PySlowFast, pixels against PIL."""

import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from revvideo.data import colour_operations, geometric_operations
from revvideo.data.rand_augment import OPERATIONS, Operation, RandAugment, argument_of, parse_policy
from revvideo.data.transforms import as_clip
from revvideo.errors import InputError

FOLDER = Path(__file__).parent / "data"
GOLDEN = json.loads((FOLDER / "golden_data.json").read_text())["randaugment"]
ARRAYS = np.load(FOLDER / "golden_data.npz")
FILL = (128, 10, 200)


@pytest.fixture(scope="module")
def frames():
    """uint8 (3, 60, 80, 3): a smooth picture with some noise, a noise picture and a flat one."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:60, 0:80]
    smooth = np.stack([110 + 80 * np.sin(x / 9 + c) * np.cos(y / (7 + c)) for c in range(3)], -1)
    frames = rng.integers(0, 256, (3, 60, 80, 3), dtype=np.uint8)
    frames[0] = smooth + rng.uniform(0, 20, smooth.shape)
    frames[2] = (90, 140, 30)
    return frames


# Policies


@pytest.mark.parametrize("text", [key for key in GOLDEN if key.startswith("rand")])
def test_policies_match_the_goldens(text):
    golden, policy = GOLDEN[text], parse_policy(text)
    assert (policy.num_layers, policy.magnitude, policy.magnitude_std, policy.prob) == tuple(
        golden[key] for key in ("num_layers", "magnitude", "magnitude_std", "prob")
    )
    assert [name.lower() for name in OPERATIONS] == [name.replace("_", "") for name in golden["ops"]]
    assert policy.increasing == any("increasing" in (name or "") for name in golden["level_fns"])


def test_further_keys_of_timm():
    policy = parse_policy("rand-m9-mmax8-p0.25-w0-mstd101")
    assert (policy.max_magnitude, policy.prob, policy.increasing) == (8, 0.25, False)
    assert sum(policy.weights) == pytest.approx(1)
    assert policy.weights[OPERATIONS.index("Invert")] == 0
    plans = [RandAugment(policy).draw(np.random.default_rng(seed)) for seed in range(300)]
    drawn = {operation.name for plan in plans for operation in plan}
    assert {"Invert", "Posterize"}.isdisjoint(drawn)
    assert {"Rotate", "ShearX"} < drawn
    degrees = [abs(o.argument) for plan in plans for o in plan if o.name == "Rotate"]
    assert min(degrees) < 3 < 20 < max(degrees) <= 24  # uniform in 0..9, clipped at 8: 24 degrees


@pytest.mark.parametrize(
    "text",
    ["", "augmix", "v0-m7", "rand-", "rand-m", "rand-m7.5", "rand-x3", "rand-m7-m8", "rand-n0", "rand-w1", "rand-p2"]
    + ["rand-mstd.", "rand-mmax11", "rand_m7", "rand-m-7", "rand m7"],
)
def test_malformed_policies_name_the_key(text):
    with pytest.raises(InputError, match=r"AUG\.AA_TYPE"):
        parse_policy(text)


def test_unknown_interpolation_names_the_key():
    with pytest.raises(InputError, match=r"AUG\.INTERPOLATION"):
        RandAugment(parse_policy("rand"), interpolation="lanczos")


# Drawing


class Positive:
    """A generator that never turns a sign."""

    def random(self):
        return 0.0


@pytest.mark.parametrize("key", GOLDEN["level_args_at_magnitude_7"])
def test_arguments_match_the_goldens(key):
    name = key.removesuffix("Increasing")
    argument = argument_of(name, 7, increasing=True, generator=Positive())
    assert ([] if argument is None else [pytest.approx(argument)]) == GOLDEN["level_args_at_magnitude_7"][key]


def test_arguments_of_the_plain_set():
    values = {name: argument_of(name, 5, increasing=False, generator=Positive()) for name in OPERATIONS}
    assert (values["Posterize"], values["Solarize"], values["SolarizeAdd"]) == (2, 128, 55)
    assert values["Color"] == values["Sharpness"] == pytest.approx(1.0)


class LegacyRandom:
    """The two generators that PySlowFast draws from, seen as one: numpy's for the operations, Python's for the rest."""

    def __init__(self, seed):
        self.choice = np.random.RandomState(seed).choice
        python = random.Random(seed)
        self.random, self.normal = python.random, python.gauss


def test_a_whole_clip_matches_the_golden():
    key = zlib.crc32(b"spatial")
    video = np.random.Generator(np.random.Philox(key=key)).integers(0, 256, (4, 96, 128, 3)).astype(np.uint8)
    augment = RandAugment(parse_policy("rand-m7-n4-mstd0.5-inc1"), interpolation="bicubic")
    plan = augment.draw(LegacyRandom(0))
    assert [operation.name for operation in plan] == ["AutoContrast", "Rotate"]
    clip = augment(as_clip(video), LegacyRandom(0))
    difference = clip[0].permute(1, 2, 0)[::4].int() - torch.from_numpy(ARRAYS["randaug_seed0_rows"]).int()
    assert difference.abs().max() <= 1
    assert difference.abs().float().mean() < 0.05


def test_draws_have_the_asked_probabilities_and_both_signs():
    augment = RandAugment(parse_policy("rand-m7-n4-mstd0.5-inc1"), interpolation="random")
    plans = [augment.draw(np.random.default_rng(seed)) for seed in range(1000)]
    operations = [operation for plan in plans for operation in plan]
    assert 1900 <= len(operations) <= 2100  # 4 x 0.5 for each clip
    assert {operation.name for operation in operations} == set(OPERATIONS)
    assert any(len({o.name for o in plan}) < len(plan) for plan in plans)  # with replacement
    degrees = np.array([o.argument for o in operations if o.name == "Rotate"])
    assert 0.3 < (degrees < 0).mean() < 0.7
    assert abs(degrees).mean() == pytest.approx(21, abs=1)
    assert np.abs(degrees).std() == pytest.approx(1.5, abs=0.5)
    assert {o.interpolation for o in operations if o.name == "Rotate"} == {"bilinear", "bicubic"}
    everything = RandAugment(parse_policy("rand-n5-p1.0"))
    assert len(everything.draw(np.random.default_rng(0))) == 5


def test_a_clip_is_a_function_of_its_generator_and_the_input_stays(frames):
    augment = RandAugment(parse_policy("rand-m9-n6-mstd0.5-inc1"), FILL, "bicubic")
    before, results = frames.copy(), []
    for seed in range(12):
        first, second = (augment(as_clip(frames), np.random.default_rng(seed)) for _ in range(2))
        assert torch.equal(first, second)
        assert first.shape == (3, 3, 60, 80)
        assert first.dtype == torch.uint8
        results.append(first)
    assert np.array_equal(frames, before)
    assert len({tuple(result.flatten()[::97].tolist()) for result in results}) > 8


def test_all_frames_get_the_same(frames):
    clip = as_clip(np.repeat(frames[:1], 4, axis=0))
    for name in OPERATIONS:
        argument = argument_of(name, 7, True, np.random.default_rng(3))
        result = RandAugment(parse_policy("rand")).apply(clip, [Operation(name, argument, "bilinear")])
        assert all(torch.equal(result[0], frame) for frame in result), name


def test_any_memory_layout_is_taken(frames):
    augment, plan = RandAugment(parse_policy("rand")), [Operation("Color", 1.6, "bilinear")]
    expected = augment.apply(as_clip(frames[:, 5:45, 3:70].copy()), plan)
    assert torch.equal(augment.apply(as_clip(frames)[:, :, 5:45, 3:70], plan), expected)
    assert torch.equal(augment.apply(as_clip(frames)[:, :, 5:45, 3:70].contiguous(), plan), expected)
    with pytest.raises(ValueError, match="uint8"):
        augment.apply(as_clip(frames).float(), plan)


def test_merged_tables_equal_one_operation_after_the_other(frames):
    augment, clip = RandAugment(parse_policy("rand")), as_clip(frames)
    plan = [
        Operation("Brightness", 1.4, "bilinear"),
        Operation("Solarize", 100, "bilinear"),
        Operation("Contrast", 0.6, "bilinear"),
        Operation("Posterize", 3, "bilinear"),
        Operation("SolarizeAdd", 40, "bilinear"),
        Operation("Equalize", None, "bilinear"),
        Operation("Invert", None, "bilinear"),
    ]
    one_by_one = clip
    for operation in plan:
        one_by_one = augment.apply(one_by_one, [operation])
    assert torch.equal(augment.apply(clip, plan), one_by_one)


# Pixels


def differences(result, frames, pil):
    expected = np.stack([np.asarray(pil(Image.fromarray(frame))) for frame in frames])
    return np.abs(result.astype(int) - expected)


def pil_solarize_add(image):
    return image.point([min(255, level + 77) if level < 128 else level for level in range(256)] * 3)


SIMPLE = {
    "AutoContrast": (None, ImageOps.autocontrast),
    "Equalize": (None, ImageOps.equalize),
    "Invert": (None, ImageOps.invert),
    "Posterize": (2, lambda image: ImageOps.posterize(image, 2)),
    "Solarize": (77, lambda image: ImageOps.solarize(image, 77)),
    "SolarizeAdd": (77, pil_solarize_add),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_level_operations_are_pils(frames, name):
    argument, pil = SIMPLE[name]
    result = RandAugment(parse_policy("rand")).apply(as_clip(frames), [Operation(name, argument, "bilinear")])
    # The stretch of AutoContrast is rounded to 1/256.
    assert differences(result.permute(0, 2, 3, 1).numpy(), frames, pil).max() <= (name == "AutoContrast")


@pytest.mark.parametrize("factor", [0.1, 0.37, 1.0, 1.63, 1.9])
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_enhancements_are_pils_within_one_level(frames, name, factor):
    result = RandAugment(parse_policy("rand")).apply(as_clip(frames), [Operation(name, factor, "bilinear")])
    enhance = getattr(ImageEnhance, name)
    assert differences(result.permute(0, 2, 3, 1).numpy(), frames, lambda i: enhance(i).enhance(factor)).max() <= 1


def test_posterize_to_nothing_and_everything():
    assert not colour_operations.posterize_table(0).any()
    assert np.array_equal(colour_operations.posterize_table(8), np.arange(256))


def test_pictures_too_small_for_a_kernel_stay_as_they_are(frames):
    assert np.array_equal(colour_operations.sharpness(frames[:, :2], 1.9), frames[:, :2])


def test_means_and_contrasts_of_tall_pictures():
    tall = np.full((1, 700, 4, 3), 255, np.uint8)  # column sums that need more than 16 bits
    tall[0, :10] = 0
    result = colour_operations.apply_tables(tall, colour_operations.contrast_tables(tall, 0.5))
    assert differences(result, tall, lambda image: ImageEnhance.Contrast(image).enhance(0.5)).max() == 0


def affine(matrix, interpolation):
    resample = Image.Resampling[interpolation.upper()]
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=FILL)


@pytest.mark.parametrize("interpolation", geometric_operations.INTERPOLATIONS)
@pytest.mark.parametrize("value", [0.0, 0.21, -0.3, 0.013])
def test_shears_are_pils(frames, value, interpolation):
    along_x = geometric_operations.shear_x(frames, value, FILL, interpolation)
    along_y = geometric_operations.shear_y(frames, value, FILL, interpolation)
    for result, matrix in ((along_x, (1, value, 0, 0, 1, 0)), (along_y, (1, 0, 0, value, 1, 0))):
        difference = differences(result, frames, affine(matrix, interpolation))
        assert difference.max() <= 1
        assert difference.mean() < 0.15


@pytest.mark.parametrize("interpolation", geometric_operations.INTERPOLATIONS)
@pytest.mark.parametrize("value", [0.0, 14.4, -27.7, 0.5, 59.5, -79.6, 300.0, -300.0])
def test_translations_are_pils(frames, value, interpolation):
    along_x = geometric_operations.translate_x(frames, value, FILL, interpolation)
    along_y = geometric_operations.translate_y(frames, value, FILL, interpolation)
    for result, matrix in ((along_x, (1, 0, value, 0, 1, 0)), (along_y, (1, 0, 0, 0, 1, value))):
        difference = differences(result, frames, affine(matrix, interpolation))
        assert difference.max() <= 1
        assert difference.mean() < 0.15


@pytest.mark.parametrize("interpolation", geometric_operations.INTERPOLATIONS)
@pytest.mark.parametrize("degrees", [0.0, 21.0, -29.3, 3.7])
def test_rotations_are_pils(frames, degrees, interpolation):
    result = geometric_operations.rotate(frames, degrees, FILL, interpolation)
    resample = Image.Resampling[interpolation.upper()]
    difference = differences(result, frames, lambda i: i.rotate(degrees, resample=resample, fillcolor=FILL))
    # A position on the border between two pixels may be rounded either way.
    assert difference.mean() < 0.15
    assert (difference > 1).mean() < 0.002


@pytest.mark.parametrize("interpolation", geometric_operations.INTERPOLATIONS)
def test_a_large_clip_is_rotated_in_parts(interpolation, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (5, 20, 30, 3), dtype=np.uint8)
    whole = geometric_operations.rotate(frames, 17.0, FILL, interpolation)
    for frames_at_once in (2, 0.5):
        monkeypatch.setattr(geometric_operations, "_GATHERED_VALUES", int(frames_at_once * frames[0].size))
        np.testing.assert_array_equal(geometric_operations.rotate(frames, 17.0, FILL, interpolation), whole)
