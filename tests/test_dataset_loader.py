"""Batches depend on seed, epoch and step alone; nothing is replaced silently; evaluation sees every video once."""

from itertools import chain, pairwise

import pytest
import torch
from videos import damage, frame_number, write_video

from revvideo.data import sampling
from revvideo.data.dataset import ClipSpec, EvalClips, TrainClips, needed_short_side
from revvideo.data.epoch_sampler import EpochSampler
from revvideo.data.loader import eval_loader, train_loader
from revvideo.data.manifest import Manifest
from revvideo.data.readers.index_cache import IndexCache
from revvideo.data.transforms import EvalTransform, TrainTransform, as_clip, resize_short_side
from revvideo.data.video_reader import open_video
from revvideo.errors import InputError

CLIP = ClipSpec(num_frames=4, sampling_rate=4)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Seven good videos and a broken one (number 3)."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_video(folder / f"{i}.mp4", 20 + 5 * i, gop=12, b_frames=2, seed=i) for i in range(7)]
    broken = folder / "broken.mp4"
    broken.write_bytes(bytes(500))
    paths.insert(3, str(broken))
    return Manifest(tuple(paths), tuple(range(10, 18)), "list")


def train_clips(manifest, seed=0, **options):
    transform = TrainTransform(32, relative_scales=(0.3, 1.0))
    return TrainClips(manifest, CLIP, transform, seed=seed, **options)


def digest(loader, epochs=2):
    batches = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        batches += [(b.video.clone(), b.label.tolist(), b.index.tolist(), b.bad) for b in loader]
    return batches


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert torch.equal(a[0], b[0])
        assert a[1:] == b[1:]


# Training


def test_items_are_functions_of_their_key(manifest):
    dataset = train_clips(manifest, num_clips_per_video=2)
    item = dataset[3, 5]
    assert item["video"].shape == (2, 4, 3, 32, 32)
    assert item["video"].dtype == torch.uint8
    assert item["video"].stride()[2] == 1  # channels innermost
    assert (item["label"], item["index"], item["bad"], item["damaged"]) == (15, 5, [], [])
    assert torch.equal(item["video"], dataset[3, 5]["video"])
    assert not torch.equal(item["video"][0], item["video"][1])
    assert not torch.equal(item["video"], dataset[4, 5]["video"])
    assert not torch.equal(item["video"], train_clips(manifest, seed=1, num_clips_per_video=2)[3, 5]["video"])
    one_clip = train_clips(manifest)[3, 5]["video"]
    assert torch.equal(one_clip[0], item["video"][0])  # a second clip does not change the first


def test_training_takes_another_video_and_says_so(manifest):
    dataset = train_clips(manifest)
    replaced = [dataset[epoch, 3] for epoch in range(6)]
    for item in replaced:
        assert [path for path, _ in item["bad"]] == [manifest.paths[3]]
        assert item["index"] != 3
        assert item["label"] == manifest.labels[item["index"]]
    assert len({item["index"] for item in replaced}) > 1
    assert dataset[0, 3]["index"] == replaced[0]["index"]


def test_a_list_without_any_readable_video_is_one_error(manifest):
    broken = Manifest(manifest.paths[3:4] * 4, (0,) * 4, "broken.csv")
    for num_workers in (0, 1):
        loader = train_loader(train_clips(broken), batch_size=2, seed=0, num_workers=num_workers)
        with pytest.raises(InputError, match=r"broken\.csv.*cannot be decoded.*broken\.mp4") as caught:
            list(loader)
        assert "Traceback" not in str(caught.value)


def test_damaged_videos_are_told(tmp_path):
    path = write_video(tmp_path / "damaged.mp4", 60, gop=60)
    damage(path, 0.5, 1.0)
    transform = TrainTransform(32, relative_scales=(0.3, 1.0))
    dataset = TrainClips(Manifest((path,), (0,), "list"), ClipSpec(16, 4), transform, seed=0)
    (batch,) = list(train_loader(dataset, batch_size=1, seed=0))
    assert batch.bad == []
    assert batch.damaged[0][0] == path


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_do_not_depend_on_the_number_of_workers(manifest, num_workers):
    def run(workers):
        return digest(train_loader(train_clips(manifest), batch_size=3, seed=0, num_workers=workers))

    state = torch.get_rng_state()
    assert_same(run(0), run(num_workers))
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_layout(manifest):
    loader = train_loader(train_clips(manifest, num_clips_per_video=2), batch_size=3, seed=0)
    assert len(loader) == 2
    batch = next(iter(loader))
    assert batch.video.shape == (6, 4, 3, 32, 32)
    assert batch.video.permute(0, 1, 3, 4, 2).is_contiguous()
    assert (batch.label.dtype, batch.index.dtype) == (torch.int64, torch.int64)
    assert batch.index[::2].tolist() == batch.index[1::2].tolist()  # the clips of a video are neighbours
    assert (batch.label == batch.index + 10).all()


def test_an_epoch_can_be_entered_in_the_middle(manifest):
    loader = train_loader(train_clips(manifest), batch_size=2, seed=0)
    loader.set_epoch(1)
    whole = list(loader)
    loader.set_epoch(1, start_sample=4)
    assert len(loader) == 2
    rest = list(loader)
    assert [b.index.tolist() for b in rest] == [b.index.tolist() for b in whole[2:]]
    assert all(torch.equal(a.video, b.video) for a, b in zip(rest, whole[2:]))


def test_sampler_batches_are_the_same_for_any_number_of_processes():
    def global_batches(world_size, per_process, epoch):
        parts = []
        for rank in range(world_size):
            sampler = EpochSampler(53, batch_size=per_process, seed=3, rank=rank, world_size=world_size)
            sampler.set_epoch(epoch)
            keys = list(sampler)
            assert {key[0] for key in keys} == {epoch}
            assert len(keys) == len(sampler)
            parts.append(
                [[sample for _, sample in keys[i : i + per_process]] for i in range(0, len(keys), per_process)]
            )
        return [list(chain(*batch)) for batch in zip(*parts)]

    one = global_batches(1, 12, 0)
    assert one == global_batches(2, 6, 0) == global_batches(4, 3, 0)
    assert len(one) == 4
    assert len(set(chain(*one))) == 48
    assert one != global_batches(1, 12, 1)


def test_sampler_without_shuffle_and_with_too_few_samples():
    sampler = EpochSampler(7, batch_size=3, seed=0, shuffle=False)
    assert [sample for _, sample in sampler] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(InputError, match=r"2 training videos do not fill.*TRAIN\.BATCH_SIZE"):
        EpochSampler(2, batch_size=2, seed=0, world_size=2)


def calls(monkeypatch):
    """(what was opened, the sizes that were asked for) from now on."""
    from revvideo.data import dataset as module

    opened, sizes = [], []

    def opening(*args, **kwargs):
        video = open_video(*args, **kwargs)
        frames = video.frames
        video.frames = lambda indices, size=None: sizes.append(size) or frames(indices, size)
        opened.append(args[0])
        return video

    monkeypatch.setattr(module, "open_video", opening)
    return opened, sizes


def test_repeated_augmentation_opens_and_decodes_once(manifest, monkeypatch):
    opened, sizes = calls(monkeypatch)
    assert train_clips(manifest, num_clips_per_video=4)[0, 2]["video"].shape[0] == 4
    assert (opened, sizes) == ([manifest.paths[2]], [None])


def test_large_videos_are_scaled_while_decoding(manifest, tmp_path, monkeypatch):
    """64 x 96 sources, one of them on its side: scaled where the short side is 1.5 times what is needed, or more."""
    turned = write_video(tmp_path / "turned.mp4", 20, rotation=90)
    both = Manifest((manifest.paths[0], turned), (0, 1), "list")
    _, sizes = calls(monkeypatch)
    for short_side, expected in ((42, [(42, 63), (63, 42)]), (43, [None, None])):
        sizes.clear()
        jittered = TrainTransform(32, short_side_range=(32, short_side))
        dataset = TrainClips(both, CLIP, jittered, seed=0, scale_large=True)
        items = [dataset[0, sample] for sample in range(2)]
        assert sizes == expected
        evaluated = EvalClips(both, CLIP, EvalTransform(32, short_side), scale_large=True)
        views = [evaluated[sample] for sample in range(2)]
        assert sizes == expected * 2
        for item in (*items, *views):
            assert item["video"].shape == (1, 4, 3, 32, 32)
    # The scaled picture is that of the full size, but for the two ways to scale.
    scaled, native = (
        EvalClips(both, CLIP, EvalTransform(32, 32), scale_large=large)[1]["video"].float() for large in (True, False)
    )
    assert not torch.equal(scaled, native)
    assert (scaled - native).abs().mean() < 6


def test_the_short_side_that_random_resized_crops_need():
    assert needed_short_side(TrainTransform(224, (256, 320))) == 320
    assert needed_short_side(TrainTransform(224, (256, 320), relative_scales=(0.08, 1.0))) == 320
    assert needed_short_side(TrainTransform(224, (224, 224), relative_scales=(0.08, 1.0))) == 305  # 224 / sqrt(0.54)
    assert train_clips(Manifest(("a",), (0,), "list")).short_side == 0  # LOADER.DECODE_SIZE native


@pytest.mark.parametrize("cache", ["memory", "folder"])
def test_a_packet_index_cache_changes_no_batch(manifest, tmp_path, cache):
    index_cache = IndexCache(str(tmp_path) if cache == "folder" else None)
    cached = digest(train_loader(train_clips(manifest, index_cache=index_cache), batch_size=3, seed=0))
    assert index_cache.get(manifest.paths[0]) is not None
    assert_same(cached, digest(train_loader(train_clips(manifest), batch_size=3, seed=0)))
    views = [
        EvalClips(manifest, CLIP, EvalTransform(32, 40), num_views=2, index_cache=cache)[0]["video"]
        for cache in (index_cache, None)
    ]
    assert torch.equal(*views)


# Clips


def indices_of(spec, path, *, seed=0):
    with open_video(path) as video:
        return spec.random_indices(video, sampling.keyed_generator(seed, 0, 0, 0)).tolist()


def test_exact_clips_have_exact_strides(manifest):
    """Video 7 has 50 frames at 30 per second; PySlowFast's clip of 4 x 4 steps by 5, an exact one by 4."""
    for seed in range(20):
        exact = indices_of(ClipSpec(4, 4, exact=True), manifest.paths[7], seed=seed)
        assert [b - a for a, b in pairwise(exact)] == [4, 4, 4]
        theirs = indices_of(ClipSpec(4, 4), manifest.paths[7], seed=seed)
        assert [b - a for a, b in pairwise(theirs)] == [5, 5, 5]
    assert ClipSpec(4, 4, exact=True).length_frames(30.0) == 13.0
    assert ClipSpec(4, 4, exact=True).length_frames(15.0) == 7.0


def test_views_that_reach_the_end(manifest):
    """Video 7 has 50 frames; the last frame of the last view is the last one, whatever the span."""
    for exact in (False, True):
        spec = ClipSpec(4, 4, exact=exact)
        dataset = EvalClips(manifest, spec, EvalTransform(64, 64), num_views=3, to_end=True)
        with open_video(manifest.paths[7]) as video:
            views = [dataset.view_indices(video, view).tolist() for view in range(3)]
        assert views[0][0] == 0
        assert views[2][-1] == 49
    with pytest.raises(InputError, match=r"USE_OFFSET_SAMPLING.*EVAL\.VIEWS"):
        EvalClips(manifest, CLIP, EvalTransform(64, 64), to_end=True, use_offset_sampling=True)


def test_jittered_rates_shorten_the_clip(manifest):
    """A target rate above 30 makes the stride shorter, down to the half of it at 60."""
    jittered = [indices_of(ClipSpec(4, 8, jitter_fps=30.0), manifest.paths[7], seed=seed) for seed in range(30)]
    spans = {indices[-1] - indices[0] for indices in jittered}
    assert max(spans) <= 31
    assert min(spans) >= 15
    assert len(spans) > 5


def test_segments_take_a_frame_of_each_part_of_the_whole_video(manifest):
    spec = ClipSpec(4, 4, segments=True)
    drawn = [indices_of(spec, manifest.paths[7], seed=seed) for seed in range(20)]
    assert len({tuple(indices) for indices in drawn}) > 10
    for indices in drawn:
        for part, index in enumerate(indices):
            assert 49 * part / 4 - 1 <= index <= 49 * (part + 1) / 4 + 1
    dataset = EvalClips(manifest, spec, EvalTransform(64, 64), num_views=2)
    with open_video(manifest.paths[7]) as video:
        assert dataset.view_indices(video, 0).tolist() == dataset.view_indices(video, 1).tolist() == [6, 18, 30, 43]


# Evaluation


def test_views_are_temporal_major_and_come_from_one_open(manifest, monkeypatch):
    opened = []
    from revvideo.data import dataset as module

    monkeypatch.setattr(module, "open_video", lambda *a, **k: opened.append(a) or open_video(*a, **k))
    transform = EvalTransform(crop_size=40, short_side=40)
    dataset = EvalClips(manifest, CLIP, transform, num_views=3, num_crops=3)
    item = dataset[6]
    assert len(opened) == 1
    assert item["video"].shape == (9, 4, 3, 40, 40)
    assert (item["label"], item["index"], item["error"]) == (16, 6, None)
    with open_video(manifest.paths[6]) as video:
        length = CLIP.length_frames(video.fps)
        for k in range(9):
            start = sampling.view_start(video.num_frames, length, k // 3, 3)
            frames = video.frames(sampling.frame_indices(start, length, 4, video.num_frames))
            expected = transform.crop(resize_short_side(as_clip(frames), 40), k % 3)
            assert torch.equal(item["video"][k], expected)


def test_the_centre_clip_is_deterministic_and_in_the_middle(manifest):
    dataset = EvalClips(manifest, CLIP, EvalTransform(64, 64), centre=True)
    item = dataset[7]  # 50 frames; a clip spans 16
    assert item["video"].shape == (1, 4, 3, 64, 64)
    with open_video(manifest.paths[7]) as video:
        expected = [frame_number(frame) for frame in video.frames([17, 22, 27, 32])]
    assert expected == [17, 22, 27, 32]
    frames = sampling.frame_indices(17.0, 16.0, 4, 50)
    assert frames.tolist() == expected
    with open_video(manifest.paths[7]) as video:
        direct = EvalTransform(64, 64)(as_clip(video.frames(frames)))
    assert torch.equal(item["video"][0], direct)


@pytest.mark.parametrize(("num_workers", "world_size"), [(0, 1), (1, 3)])
def test_evaluation_sees_every_video_once_and_replaces_none(manifest, num_workers, world_size):
    dataset = EvalClips(manifest, CLIP, EvalTransform(32, 40), num_views=2)
    items = []
    for rank in range(world_size):
        loader = eval_loader(dataset, range(rank, len(dataset), world_size), num_workers=num_workers)
        part = list(loader)
        assert len(part) == len(loader)
        items += part
    assert sorted(item["index"] for item in items) == list(range(8))
    assert [item["index"] for item in items if item["video"] is None] == [3]
    assert all((item["error"] is None) == (item["video"] is not None) for item in items)
    assert all(item["label"] == item["index"] + 10 for item in items)


def test_one_frame_videos_serve_training_and_evaluation(tmp_path):
    one = Manifest((write_video(tmp_path / "one.mp4", 1),), (0,), "list")
    assert train_clips(one)[0, 0]["video"].shape == (1, 4, 3, 32, 32)
    views = EvalClips(one, CLIP, EvalTransform(32, 40), num_views=5, num_crops=3)[0]["video"]
    assert views.shape == (15, 4, 3, 32, 32)
    assert (views[0] == views[3]).all()


def test_many_large_frames_are_read_in_parts(manifest, monkeypatch):
    """LOADER.DECODE_SIZE native: all views of a long UHD video at once would take gigabytes."""
    from revvideo.data import dataset as module

    dataset = EvalClips(manifest, CLIP, EvalTransform(32, 40), num_views=3, num_crops=3)
    whole = dataset[6]["video"]
    monkeypatch.setattr(module, "MAX_READ_BYTES", 5 * 3 * 64 * 96)
    _, sizes = calls(monkeypatch)
    assert torch.equal(dataset[6]["video"], whole)
    assert len(sizes) == 2  # 10 different frames, 5 at a time


def test_strips_are_unreadable(tmp_path):
    """Their short side would be scaled up to that of a video, and the long one with it."""
    strips = Manifest((write_video(tmp_path / "strip.mp4", 5, size=(16, 528)),), (0,), "list")
    assert "strip of 528x16" in EvalClips(strips, CLIP, EvalTransform(32, 40))[0]["error"]
    with pytest.raises(InputError, match="strip of 528x16"):
        train_clips(strips)[0, 0]


def test_wrong_view_settings(manifest):
    with pytest.raises(InputError, match="NUM_SPATIAL_CROPS"):
        EvalClips(manifest, CLIP, EvalTransform(32, 40), num_crops=2)
    with pytest.raises(InputError, match="NUM_ENSEMBLE_VIEWS"):
        EvalClips(manifest, CLIP, EvalTransform(32, 40), num_views=0)
