"""The searches for the largest batch that fits, on made-up memories."""

import pytest

from revvideo.benchmark.largest_batch import DoesNotFit, search_by_extrapolation, search_by_trial


@pytest.mark.parametrize(
    "total_bytes",
    [lambda b: 70 + 37 * b, lambda b: 300 + 11 * b + b * b // 40, lambda b: 700 - 100 * min(b, 3) + 37 * b],
    ids=["line", "bends up", "flat at first"],
)
@pytest.mark.parametrize("limit", [5000, 20_011])
def test_extrapolation_finds_the_largest_batch_by_few_measurements(total_bytes, limit):
    asked = []

    def measure(batch: int) -> int:
        fitting = [b for b in asked if total_bytes(b) <= limit]
        assert batch <= max(2, 4 * max(fitting, default=0))
        asked.append(batch)
        return total_bytes(batch)

    found = search_by_extrapolation(measure, limit)
    assert found.batch_size == max(b for b in range(1000) if total_bytes(b) <= limit)
    assert (found.too_large, found.total_bytes) == (found.batch_size + 1, total_bytes(found.batch_size))
    assert found.measured == {b: total_bytes(b) for b in asked}
    assert len(asked) == len(set(asked)) <= 10


def test_extrapolation_when_not_even_one_clip_fits_and_when_everything_does():
    assert search_by_extrapolation(lambda b: 100 * b, 99).batch_size == 0
    found = search_by_extrapolation(lambda b: b, 10**9, ceiling=64)
    assert (found.batch_size, found.too_large, found.reason) == (64, None, "the search ends at 64")


@pytest.mark.parametrize("largest", [0, 1, 2, 3, 77, 99])
def test_trial_is_exact_up_to_a_hundred_clips(largest):
    found = search_by_trial(lambda batch: fit_into(largest, batch))
    assert (found.batch_size, found.too_large, found.reason) == (largest, largest + 1, f"{largest} at most")
    assert found.total_bytes == 10 * largest


def test_trial_is_within_two_percent_beyond_and_ends_at_the_ceiling():
    found = search_by_trial(lambda batch: fit_into(5000, batch))
    assert found.batch_size <= 5000 < found.too_large
    assert found.too_large - found.batch_size <= 0.02 * found.batch_size
    found = search_by_trial(lambda batch: fit_into(5000, batch), ceiling=300)
    assert (found.batch_size, found.too_large) == (300, None)


def fit_into(largest: int, batch: int) -> int:
    if batch > largest:
        raise DoesNotFit(f"{largest} at most")
    return 10 * batch
