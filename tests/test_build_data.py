"""Keys of DATA, AUG, LOADER and EVAL reach the data sets, the loaders and the input of the model."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from videos import numbered_frames

from revvideo.build import build_eval_input, build_test_loader, build_train_input, build_train_loader, build_val_loader
from revvideo.config import config_notes, load_config
from revvideo.config.batch import batch_plan
from revvideo.errors import InputError
from revvideo.jobs import check_test

CPU = torch.device("cpu")
AUGMENTED = {"AUG.ENABLE": True, "AUG.AA_TYPE": "rand-m7-n4-mstd0.5-inc1", "AUG.RE_PROB": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data"))


def config(data: Path, *layers: dict):
    return load_config("demo/REV_MVIT_DEMO", tiny.overrides({"DATA.PATH_TO_DATA_DIR": data}, *layers))


def train_loader_of(data: Path, *layers: dict):
    cfg = config(data, *layers)
    return build_train_loader(cfg, batch_plan(cfg))


def test_without_augmentation_nothing_of_aug_acts(data):
    off = AUGMENTED | {"AUG.ENABLE": False, "AUG.NUM_SAMPLE": 2}
    plain, switched_off = train_loader_of(data), train_loader_of(data, off)
    assert switched_off.dataset.transform.augment is None
    for one, other in zip(plain, switched_off, strict=True):
        assert torch.equal(one.video, other.video)
        ((clips, labels),) = build_train_input(config(data, off), CPU)(one, 0, 0)
        assert torch.equal(clips, build_eval_input(config(data), CPU)(one.video))
        assert torch.equal(labels, one.label)


def test_rand_augment_and_repeats(data):
    plain = next(iter(train_loader_of(data)))
    augmented = next(iter(train_loader_of(data, AUGMENTED, {"AUG.NUM_SAMPLE": 2, "TRAIN.BATCH_SIZE": 4})))
    assert augmented.video.shape == (8, *plain.video.shape[1:])
    changed = (augmented.video[::2] != plain.video).flatten(1).any(1)  # of the same crops: each clip has its generator
    assert changed.sum() >= 3
    order = train_loader_of(data, AUGMENTED, {"LOADER.AUGMENT_ORDER": "pyslowfast"}).dataset.transform
    assert order.augment_first
    assert order.augment.fill == (128, 128, 128)


def test_random_erasing_depends_on_the_step_alone(data):
    keys = AUGMENTED | {"AUG.AA_TYPE": "", "AUG.RE_MODE": "const"}
    batch = next(iter(train_loader_of(data, keys)))
    prepare = build_train_input(config(data, keys), CPU)

    def prepared(step: int) -> torch.Tensor:
        ((clips, _),) = prepare(batch, 1, step)
        return clips

    clips = prepared(3)
    erased = clips == 0
    untouched = build_eval_input(config(data), CPU)(batch.video)
    assert (erased.flatten(1).float().mean(1) > 0.01).all()
    assert torch.equal(clips[~erased], untouched[~erased])
    assert torch.equal(clips, prepared(3))
    assert not torch.equal(clips, prepared(4))
    ((without, _),) = build_train_input(config(data, keys, {"AUG.RE_PROB": 0.0}), CPU)(batch, 1, 3)
    assert torch.equal(without, untouched)


def test_reading_keys(data, tmp_path):
    keys = {
        "LOADER.CLIP_SPAN": "exact",
        "LOADER.DECODE_SIZE": "native",
        "LOADER.INDEX_CACHE": tmp_path / "cache",
        "DATA.TRAIN_JITTER_FPS": 5.0,
        "EVAL.VIEWS": "to_end",
    }
    train = train_loader_of(data, keys).dataset
    assert (train.clip.exact, train.clip.jitter_fps, train.short_side) == (True, 5.0, 0)
    validation = build_val_loader(config(data, keys)).dataset
    assert (validation.clip.exact, validation.clip.jitter_fps, validation.centre) == (True, 0.0, True)
    assert build_test_loader(config(data, keys), 2).dataset.to_end
    assert list(train_loader_of(data, keys))
    assert list((tmp_path / "cache").rglob("*.*")), "the packet indices are on disk"
    default = train_loader_of(data).dataset
    assert (default.clip.exact, default.short_side, default.index_cache is None) == (False, 40, False)
    assert train_loader_of(data, {"LOADER.INDEX_CACHE": ""}).dataset.index_cache is None


def test_worker_keys(data):
    keys = {"DATA_LOADER.NUM_WORKERS": 1, "LOADER.PREFETCH": 3, "LOADER.START_METHOD": "spawn"}
    loader = train_loader_of(data, keys, {"LOADER.TIMEOUT_SECONDS": 7})
    assert loader.timeout_seconds == 7
    assert loader._loader.prefetch_factor == 3
    assert loader._loader.multiprocessing_context.get_start_method() == "spawn"
    assert loader._loader.persistent_workers


def test_folders_of_pictures_are_read_as_segments_of_videos(tmp_path):
    """Something-Something's way on a tree of frame folders, one of which is missing a class in val/."""
    for split, count in (("train", 4), ("val", 2)):
        for number in range(count):
            folder = tmp_path / split / f"class{number % 2}" / f"video{number}"
            folder.mkdir(parents=True)
            for t, frame in enumerate(numbered_frames(9 + number, tiny.HEIGHT, tiny.WIDTH, seed=number)):
                Image.fromarray(frame).save(folder / f"{t + 1:05d}.jpg")
    keys = {"TRAIN.DATASET": "SSv2", "TEST.DATASET": "ssv2", "MODEL.NUM_CLASSES": 2}
    loader = train_loader_of(tmp_path, keys)
    assert (loader.dataset.backend, loader.dataset.clip.segments) == ("frames", True)
    (batch,) = list(loader)
    assert batch.video.shape == (4, 4, 3, 32, 32)
    assert sorted(batch.label.tolist()) == [0, 0, 1, 1]
    items = list(build_test_loader(config(tmp_path, keys), 2))
    assert [item["label"] for item in items] == [0, 1]
    for item in items:
        assert torch.equal(*item["video"])  # all views are the same segments


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"RNG_SEED": 2**32}, r"RNG_SEED is 4294967296; expected a number 0 to 4294967295"),
        ({"LOADER.INDEX_CACHE": "Memory"}, r"INDEX_CACHE is 'Memory'; expected memory, an empty string.*\./Memory"),
        ({"LOADER.INDEX_CACHE": "/dev/null/cache"}, r"INDEX_CACHE is '/dev/null/cache'; expected a folder.*Not a dir"),
        (
            {"DATA.INPUT_CHANNEL_NUM": [1], "DATA.MEAN": [0.5], "DATA.STD": [0.5]},
            r"INPUT_CHANNEL_NUM is \[1\]; expected \[3\]",
        ),
    ],
)
def test_what_the_data_cannot_be_is_refused(data, keys, message):
    with pytest.raises(InputError, match=message):
        train_loader_of(data, keys)


def test_missing_test_videos_are_told_once_for_all_numbers_of_views(data, tmp_path, caplog):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    (root / "test0.mp4").unlink()
    cfg = config(root, {"TEST.NUM_TEMPORAL_CLIPS": [1, 2, 3], "OUTPUT_DIR": tmp_path})
    check_test(cfg)
    assert sum("are missing, the first is" in record.message for record in caplog.records) == 1


def test_keys_that_do_nothing_are_named(data):
    def without_effect(*layers):
        notes = config_notes(config(data, *layers))
        return [note for note in notes if note.startswith("without effect")]

    assert without_effect() == []
    keys = {
        "LOADER.PREFETCH": 3,
        "LOADER.START_METHOD": "spawn",
        "LOADER.AUGMENT_ORDER": "pyslowfast",
        "LOADER.CLIP_SPAN": "exact",
    }
    workers, order = without_effect(keys)
    assert workers.startswith("without effect: LOADER.PREFETCH, LOADER.START_METHOD (DATA_LOADER.NUM_WORKERS is 0")
    assert order == "without effect: LOADER.AUGMENT_ORDER (AUG asks for no RandAugment)"
    assert without_effect(keys, AUGMENTED, {"DATA_LOADER.NUM_WORKERS": 1}) == []
    segments = {
        "TRAIN.DATASET": "SSv2",
        "TEST.DATASET": "ptvssv2",
        "EVAL.VIEWS": "to_end",
        "DATA.TRAIN_JITTER_FPS": 2.0,
    }
    names = " ".join(without_effect(keys, segments))
    for key in ("LOADER.CLIP_SPAN", "EVAL.VIEWS", "DATA.TRAIN_JITTER_FPS"):
        assert key in names
    pictures = {"TRAIN.DATASET": "imagenet", "TEST.DATASET": "imagenet", "LOADER.INDEX_CACHE": ""}
    assert "LOADER.INDEX_CACHE" in " ".join(without_effect(pictures))
    other = {"DATA.DECODING_BACKEND": "torchcodec", "LOADER.INDEX_CACHE": ""}
    assert without_effect(other) == [
        "without effect: LOADER.INDEX_CACHE (DATA.DECODING_BACKEND is torchcodec: only pyav scans packets)"
    ]
    assert "MAX_BAD_FRACTION" in " ".join(without_effect({"TRAIN.ENABLE": False, "LOADER.MAX_BAD_FRACTION": 0.5}))
