"""Frames and crops by PySlowFast's formulas, against numbers taken from PySlowFast itself."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from revvideo.data import sampling
from revvideo.errors import InputError

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_data.json").read_text())


class PythonRandom:
    """Python's `random` seen as a `numpy.random.Generator`: PySlowFast drew the golden numbers from it."""

    def __init__(self, seed):
        self._random = random.Random(seed)

    def uniform(self, low, high):
        return self._random.uniform(low, high)

    def integers(self, low, high):
        return self._random.randint(low, high - 1)


@pytest.mark.parametrize("key", [key for key in GOLDEN["temporal"] if key.startswith("use_offset")])
def test_views_match_the_goldens(key):
    use_offset, num_views = "=True" in key, int(key.split("views=")[1])
    length = sampling.clip_length_frames(16, 4, 30, 30.0)
    assert len(GOLDEN["temporal"][key]) == num_views
    for view, golden in enumerate(GOLDEN["temporal"][key]):
        start = sampling.view_start(300, length, view, num_views, use_offset)
        assert start == pytest.approx(golden["start"])
        assert start + length - 1 == pytest.approx(golden["end"])
        assert sampling.frame_indices(start, length, 16, 300).tolist() == golden["frames_if_whole_video_decoded"]
        assert sampling.selected_frame_indices(start, length, 16, 300).tolist() == golden["frames_selective_pts"]


def test_a_short_video_repeats_its_last_frame():
    golden = GOLDEN["temporal"]["short_video_40_frames_T16_rate4"]
    length = sampling.clip_length_frames(16, 4, 30, 30.0)
    start = sampling.view_start(40, length, 0, 1)
    assert [start, start + length - 1] == golden["start_end"]
    assert sampling.frame_indices(start, length, 16, 40).tolist() == golden["frames"]
    assert sampling.selected_frame_indices(start, length, 16, 40).tolist() == golden["frames"]
    assert sampling.frame_indices(0.0, length, 16, 1).tolist() == [0] * 16


def test_the_time_span_does_not_depend_on_the_frame_rate():
    length = sampling.clip_length_frames(32, 3, 30, 25.0)
    starts = [sampling.view_start(250, length, view, 5) for view in range(5)]
    assert [[start, start + length - 1] for start in starts] == GOLDEN["temporal"]["fps25_T32_rate3_250_frames"]


def test_random_starts_match_the_goldens():
    generator = PythonRandom(0)
    starts = [sampling.random_start(300, 64.0, generator) for _ in range(5)]
    np.testing.assert_allclose(starts, [start for start, _ in GOLDEN["temporal"]["train_random_seed0_5draws"]])


def test_centre_start():
    assert sampling.centre_start(300, 64.0) == 118.0
    assert sampling.centre_start(40, 64.0) == 0.0


def test_views_that_reach_the_end():
    starts = [sampling.reaching_view_start(300, 64.0, view, 5) for view in range(5)]
    assert starts == [0.0, 59.0, 118.0, 177.0, 236.0]
    assert sampling.frame_indices(starts[-1], 64.0, 16, 300)[-1] == 299
    assert sampling.reaching_view_start(300, 64.0, 0, 1) == 118.0
    assert sampling.reaching_view_start(40, 64.0, 4, 5) == 0.0


def test_jittered_views_stay_in_their_parts():
    generator = np.random.default_rng(0)
    drawn = np.array(
        [[sampling.jittered_view_start(300, 64.0, view, 4, generator) for view in range(4)] for _ in range(200)]
    )
    low = 59.0 * np.arange(4)
    assert (drawn >= low).all()
    assert (drawn <= low + 59.0).all()
    assert (drawn.max(0) - drawn.min(0) > 50).all()
    assert sampling.jittered_view_start(40, 64.0, 3, 4, generator) == 0.0


def test_exact_indices_have_one_stride_and_end_at_the_last_frame():
    assert sampling.exact_indices(10.0, 5, 4, 300).tolist() == [10, 14, 18, 22, 26]
    assert sampling.exact_indices(9.4, 4, 2.5, 300).tolist() == [9, 12, 14, 17]
    assert sampling.exact_indices(0.5, 3, 2, 300).tolist() == [1, 3, 5]  # a half goes up, whatever its neighbour
    short = sampling.exact_indices(0.0, 5, 4, 10)
    assert short.tolist() == [0, 4, 8, 9, 9]
    assert short.dtype == np.int64


def test_segments_cover_the_video():
    assert sampling.segment_indices(4, 41).tolist() == [5, 15, 25, 35]
    assert sampling.segment_indices(8, 5).tolist() == [0, 0, 1, 2, 2, 2, 3, 4]
    generator = np.random.default_rng(0)
    drawn = np.stack([sampling.segment_indices(4, 41, generator) for _ in range(400)])
    assert drawn.dtype == np.int64
    assert drawn.min(0).tolist() == [0, 10, 20, 30]  # both ends of a segment
    assert drawn.max(0).tolist() == [10, 20, 30, 40]
    assert sampling.segment_indices(3, 1, generator).tolist() == [0, 0, 0]


def test_jittered_frame_rate():
    generator = np.random.default_rng(0)
    rates = [sampling.jittered_fps(30, 5.0, generator) for _ in range(200)]
    assert 30 <= min(rates) < 31 < 34 < max(rates) <= 35
    state = generator.bit_generator.state
    assert sampling.jittered_fps(30, 0.0, generator) == 30
    assert str(generator.bit_generator.state) == str(state)  # nothing is drawn where there is nothing to decide


def test_random_resized_crop_matches_the_goldens():
    generator = PythonRandom(0)
    boxes = [sampling.random_resized_crop_box(256, 340, (0.08, 1.0), (0.75, 1.3333), generator) for _ in range(8)]
    assert [list(box) for box in boxes] == [
        [y, x, h, w] for y, x, h, w in GOLDEN["spatial"]["random_resized_crop_boxes_ijhw_256x340_seed0"]
    ]


def test_random_resized_crop_lies_in_the_picture_or_falls_back_to_the_centre():
    generator = np.random.default_rng(0)
    for _ in range(200):
        y, x, h, w = sampling.random_resized_crop_box(90, 160, (0.08, 1.0), (3 / 4, 4 / 3), generator)
        assert 0 <= y <= y + h <= 90
        assert 0 <= x <= x + w <= 160
    assert sampling.random_resized_crop_box(10, 100, (1.0, 1.0), (1.0, 1.0), generator) == (0, 45, 10, 10)
    assert sampling.random_resized_crop_box(100, 10, (1.0, 1.0), (1.0, 1.0), generator) == (45, 0, 10, 10)
    # Aspects that the picture is too small for: a pixel is left.
    assert sampling.random_resized_crop_box(2, 60, (2.0, 2.0), (0.1, 0.2), generator) == (0, 29, 2, 1)
    assert sampling.random_resized_crop_box(60, 2, (2.0, 2.0), (5.0, 10.0), generator) == (29, 0, 1, 2)


@pytest.mark.parametrize("key", [key for key in GOLDEN["spatial"] if key.startswith("H")])
def test_crops_match_the_goldens(key):
    picture, crops, index = key.split("|")
    height, width = (int(part[1:]) for part in picture.split("x"))
    crops, index = int(crops.split("=")[1]), int(index.split("=")[1])
    size = sampling.short_side_size(height, width, 256 if crops == 1 else 224)
    assert list(size) == GOLDEN["spatial"][key]["resized_hw"]
    y, x = sampling.uniform_crop_offsets(*size, 224, index)
    assert [y, x, y + 224, x + 224] == GOLDEN["spatial"][key]["box_y0x0y1x1"]


def test_short_side_jitter_and_random_crop():
    generator = np.random.default_rng(0)
    sizes = [sampling.random_short_side(256, 320, generator) for _ in range(500)]
    assert (min(sizes), max(sizes)) == (256, 320)
    inverse = [sampling.random_short_side(256, 320, generator, inverse=True) for _ in range(500)]
    assert 256 <= min(inverse) < max(inverse) <= 320
    assert np.mean(inverse) < np.mean(sizes)
    offsets = {sampling.random_crop_offsets(12, 10, 10, generator) for _ in range(50)}
    assert offsets == {(0, 0), (1, 0)}  # the last offset is never drawn


def test_a_crop_that_does_not_fit_names_the_keys():
    with pytest.raises(InputError, match="TEST_CROP_SIZE"):
        sampling.uniform_crop_offsets(100, 200, 112, 1)


def test_keyed_generators_are_reproducible_and_distinct():
    draws = {
        (name, key): tuple(make(*key).random(3))
        for name, make, keys in (
            ("clip", sampling.keyed_generator, [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]),
            ("mixing", sampling.mixing_generator, [(0, 0, 0, 0), (0, 0, 0, 1)]),
            ("erasing", sampling.erasing_generator, [(0, 0, 0, 0), (0, 0, 1, 0)]),
            ("replacement", sampling.replacement_generator, [(0, 0, 0), (0, 0, 1)]),
            ("order", sampling.order_generator, [(0, 0), (0, 1)]),
        )
        for key in keys
    }
    assert len(set(draws.values())) == len(draws)
    assert tuple(sampling.keyed_generator(0, 1, 0, 0).random(3)) == draws["clip", (0, 1, 0, 0)]
