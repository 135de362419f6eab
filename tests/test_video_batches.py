"""Which videos go through the model together follows from three numbers, and every video is in one share."""

import itertools

import pytest

from revvideo.engine.video_batches import VideoBatches


@pytest.mark.parametrize(
    ("num_videos", "num_views", "max_clips", "videos_per_batch", "clips_per_forward"),
    [
        (100, 5, 40, 8, 40),
        (100, 5, 44, 8, 40),
        (100, 30, 8, 1, 8),  # 30 clips in 4 passes, the last with 2 holes
        (100, 10, 8, 1, 5),  # in 2 equal passes
        (100, 1, 1, 1, 1),
        (9, 1, 8, 5, 5),  # evenly: 5 and 4 instead of 8 and 1
        (3, 2, 64, 3, 6),  # no more holes than needed
        (0, 2, 64, 1, 2),
    ],
)
def test_the_shape_of_a_forward_pass(num_videos, num_views, max_clips, videos_per_batch, clips_per_forward):
    batches = VideoBatches(num_videos, num_views, max_clips)
    assert (batches.videos_per_batch, batches.clips_per_forward) == (videos_per_batch, clips_per_forward)
    assert batches.clips_per_forward <= max(max_clips, num_views)


def test_shares_hold_every_video_once_in_whole_batches():
    for num_videos, num_views, max_clips, world_size in itertools.product((0, 1, 7, 16), (1, 3), (1, 4, 9), (1, 2, 3)):
        batches = VideoBatches(num_videos, num_views, max_clips)
        done = {video for batch in (0, 2) for video in batches.videos_in(batch)}
        for skipped in (set(), done):
            shares = [batches.share(rank, world_size, skipped) for rank in range(world_size)]
            videos = [video for share in shares for video in share]
            assert sorted(videos) == sorted(set(range(num_videos)) - skipped)
            for share in shares:
                groups = [list(group) for _, group in itertools.groupby(share, batches.batch_of)]
                assert groups == [list(batches.videos_in(batches.batch_of(group[0]))) for group in groups]
            sizes = [len({*map(batches.batch_of, share)}) for share in shares]
            assert max(sizes) - min(sizes) <= 1
