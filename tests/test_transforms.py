"""Crops, flips, the order of augmentation, normalisation, mixup and cutmix against PySlowFast's numbers."""

import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from revvideo.data import mixing, sampling
from revvideo.data.rand_augment import RandAugment, parse_policy
from revvideo.data.transforms import EvalTransform, TrainTransform, as_clip, horizontal_flip, normalise, resize
from revvideo.errors import InputError

FOLDER = Path(__file__).parent / "data"
MIXUP = json.loads((FOLDER / "golden_data.json").read_text())["mixup"]
ARRAYS = np.load(FOLDER / "golden_data.npz")


def golden_generator(key):
    return np.random.Generator(np.random.Philox(key=zlib.crc32(key.encode())))


def random_frames(num_frames=4, height=60, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


# Space


def test_as_clip_is_a_view():
    frames = random_frames()
    clip = as_clip(frames)
    assert clip.shape == (4, 3, 60, 80)
    assert clip.is_contiguous(memory_format=torch.channels_last)
    frames[0, 0, 0, 0] ^= 255
    assert clip[0, 0, 0, 0] == frames[0, 0, 0, 0]


@pytest.mark.parametrize("spatial_index", [0, 1, 2])
def test_uint8_crops_match_the_float_goldens_within_one_level(spatial_index):
    video = golden_generator("spatial").integers(0, 256, (4, 96, 128, 3)).astype(np.uint8)
    crop = EvalTransform(crop_size=64, short_side=64)(as_clip(video), spatial_index)  # (T, C, 64, 64)
    golden = torch.from_numpy(ARRAYS[f"spatial_crop64_idx{spatial_index}"])  # (C, 2, 64, 64), float path, rounded
    difference = crop[:2].int() - golden.permute(1, 0, 2, 3).int()
    assert difference.abs().max() <= 1


def test_resize_is_the_float_resize_within_one_level():
    clip = as_clip(random_frames(2, 50, 70))
    for size in ((30, 40), (64, 100)):
        exact = torch.nn.functional.interpolate(clip.float(), size, mode="bilinear", align_corners=False)
        assert (resize(clip, *size).float() - exact).abs().max() < 1.01
    assert resize(clip, 50, 70) is clip


@pytest.mark.parametrize("scales", [(), (0.08, 1.0)])
def test_train_transform_is_a_function_of_its_generator(scales):
    transform = TrainTransform(32, short_side_range=(36, 44), relative_scales=scales)
    clip = as_clip(random_frames())
    make = lambda key: transform(clip, sampling.keyed_generator(0, 0, key, 0))  # noqa: E731
    assert make(1).shape == (4, 3, 32, 32)
    assert make(1).dtype == torch.uint8
    assert torch.equal(make(1), make(1))
    assert not torch.equal(make(1), make(2))


class CropRandom:
    """What PySlowFast draws a crop (Python's generator) and a flip (numpy's) from, seen as one generator."""

    def __init__(self, seed):
        python = random.Random(seed)
        self.uniform, self.integers = python.uniform, lambda low, high: python.randint(low, high - 1)
        self.random = np.random.RandomState(seed).rand


def test_random_resized_crop_matches_the_golden_within_one_level():
    video = golden_generator("spatial").integers(0, 256, (4, 96, 128, 3)).astype(np.uint8)
    clip = TrainTransform(32, relative_scales=(0.08, 1.0))(as_clip(video), CropRandom(0))
    golden = torch.from_numpy(ARRAYS["rrc_flip_seed0_crop32"])  # (C, 32, 32), of the first frame
    assert (clip[0].int() - golden.int()).abs().max() <= 1


@pytest.mark.parametrize(("first", "size"), [(True, (60, 80)), (False, (32, 32))])
def test_augmentation_before_or_after_the_crop(first, size):
    seen = []

    def invert(clip, generator):
        seen.append((tuple(clip.shape[-2:]), generator.random()))
        return 255 - clip

    plain, augmented = (
        TrainTransform(32, relative_scales=(0.2, 0.5), augment=augment, augment_first=first)
        for augment in (None, invert)
    )
    clip = as_clip(random_frames())
    results = [augmented(clip, sampling.keyed_generator(0, 0, key, 0)) for key in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert [shape for shape, _ in seen] == [size] * 3
    assert seen[0] == seen[1] != seen[2]
    if not first:  # the crop is drawn before the augmentation, so it is the same without it
        assert torch.equal(255 - results[0], plain(clip, sampling.keyed_generator(0, 0, 1, 0)))


def test_train_transform_treats_all_frames_alike():
    frames = np.repeat(random_frames(1), 5, axis=0)
    augment = RandAugment(parse_policy("rand-m7-n4-mstd0.5-inc1"))
    for key in range(8):
        transform = TrainTransform(32, relative_scales=(0.08, 1.0), augment=augment)
        clip = transform(as_clip(frames), sampling.keyed_generator(0, 0, key, 0))
        assert all(torch.equal(clip[0], frame) for frame in clip)


def test_flip_half_of_the_time_and_never_when_switched_off():
    clip = as_clip(random_frames(1, 32, 32))

    def outcomes(flip):
        transform = TrainTransform(32, relative_scales=(1.0, 1.0), relative_aspects=(1.0, 1.0), flip=flip)
        return [transform(clip, sampling.keyed_generator(0, 0, key, 0)) for key in range(100)]

    assert all(torch.equal(result, clip) for result in outcomes(False))
    flipped = [torch.equal(result, horizontal_flip(clip)) for result in outcomes(True)]
    assert 30 <= sum(flipped) <= 70


def test_impossible_sizes_name_their_keys():
    with pytest.raises(InputError, match="TRAIN_JITTER_SCALES"):
        TrainTransform(224, short_side_range=(200, 320))
    with pytest.raises(InputError, match="TRAIN_JITTER_SCALES"):
        TrainTransform(224, short_side_range=(256,))
    with pytest.raises(InputError, match="TRAIN_JITTER_SCALES_RELATIVE"):
        TrainTransform(224, relative_scales=(1.0, 0.08))
    with pytest.raises(InputError, match="TRAIN_JITTER_ASPECT_RELATIVE"):
        TrainTransform(224, relative_scales=(0.08, 1.0), relative_aspects=())
    with pytest.raises(InputError, match="TEST_CROP_SIZE"):
        EvalTransform(crop_size=256, short_side=224)


# On the device


def test_normalise_matches_the_golden():
    frames = torch.from_numpy(ARRAYS["normalize_in"])  # (1, 4, 4, C)
    golden = torch.from_numpy(ARRAYS["normalize_out"])
    batch = frames.permute(0, 3, 1, 2)[None]  # (B, T, C, H, W)
    clips = normalise(batch, (0.45,) * 3, (0.225,) * 3)  # (B, C, T, H, W)
    assert torch.equal(clips[0].permute(1, 2, 3, 0), golden)
    mean, std = (0.1, 0.4, 0.8), (0.2, 0.3, 0.5)
    assert torch.equal(normalise(batch, mean, std, reverse_channels=True), normalise(batch, mean, std).flip(1))
    assert normalise(batch, mean, std, dtype=torch.bfloat16).dtype == torch.bfloat16


# Mixing


@pytest.fixture
def clips():
    return torch.from_numpy(golden_generator("mixup_input").standard_normal((4, 3, 2, 8, 8), dtype=np.float32))


LABELS = torch.tensor(MIXUP["labels"])


def test_mixup_matches_the_golden(clips):
    mixed = mixing.mixup(clips, MIXUP["mixup_lam"])
    targets = mixing.mixed_targets(LABELS, MIXUP["num_classes"], MIXUP["mixup_lam"], MIXUP["smoothing"])
    torch.testing.assert_close(mixed, torch.from_numpy(ARRAYS["mixup_lam0.3_x"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(targets, torch.from_numpy(ARRAYS["mixup_lam0.3_target"]), rtol=0, atol=1e-7)


def test_cutmix_matches_the_golden(clips):
    mixed, lam = mixing.cutmix(clips, tuple(MIXUP["cutmix_box_yl_yh_xl_xh"]))
    targets = mixing.mixed_targets(LABELS, MIXUP["num_classes"], lam, MIXUP["smoothing"])
    assert lam == MIXUP["cutmix_lam_corrected"]
    assert torch.equal(mixed, torch.from_numpy(ARRAYS["cutmix_lam0.3_x"]))
    torch.testing.assert_close(targets, torch.from_numpy(ARRAYS["cutmix_lam0.3_target"]), rtol=0, atol=1e-7)


class LegacyRandom:
    """`numpy.random.RandomState`, which PySlowFast draws from, seen as a Generator."""

    def __init__(self, seed):
        self._state = np.random.RandomState(seed)
        self.random, self.beta, self.integers = self._state.rand, self._state.beta, self._state.randint


def test_drawn_lambdas_match_the_goldens():
    settings = mixing.Mixing(5, mixup_alpha=0.8, cutmix_alpha=1.0)
    generator = LegacyRandom(0)
    draws = [settings.draw(generator) for _ in range(len(MIXUP["params_np_seed0_8draws"]))]
    assert [[pytest.approx(lam), cut] for lam, cut in draws] == MIXUP["params_np_seed0_8draws"]


def test_cutmix_box_matches_the_golden():
    box = mixing.cutmix_box(8, 8, MIXUP["cutmix_lam_drawn"], LegacyRandom(MIXUP["cutmix_np_seed"]))
    assert list(box) == MIXUP["cutmix_box_yl_yh_xl_xh"]


def test_mixing_keeps_the_targets_normalised_and_is_reproducible(clips):
    settings = mixing.Mixing(5)
    cuts = set()
    for step in range(20):
        first, second = (settings(clips.clone(), LABELS, sampling.mixing_generator(0, 0, step, 0)) for _ in range(2))
        assert torch.equal(first[0], second[0])
        torch.testing.assert_close(first[1].sum(1), torch.ones(4))
        cuts.add(settings.draw(sampling.mixing_generator(0, 0, step, 0))[1])
    assert cuts == {False, True}


def test_odd_batches_and_batches_of_one(clips):
    settings = mixing.Mixing(5)
    generator = sampling.mixing_generator(0, 0, 0, 0)
    mixed, targets = settings(clips[:3].clone(), LABELS[:3], generator)
    assert (mixed.shape[0], targets.shape) == (3, (3, 5))
    with pytest.raises(InputError, match=r"TRAIN\.BATCH_SIZE"):
        settings(clips[:1], LABELS[:1], generator)
    alone = mixing.Mixing(5, mixup_alpha=0.0, cutmix_alpha=0.0)
    same, targets = alone(clips[:1].clone(), LABELS[:1], generator)
    assert torch.equal(same, clips[:1])
    torch.testing.assert_close(targets, mixing.smooth_one_hot(LABELS[:1], 5, 0.1))
