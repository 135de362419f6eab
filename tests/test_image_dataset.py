"""Pictures: clips of one frame that go through the loaders, the training and the evaluation of videos."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from revvideo.build import build_train_loader, build_val_loader
from revvideo.config import load_config
from revvideo.config.batch import batch_plan
from revvideo.data import image_dataset as module
from revvideo.data.image_dataset import EvalImages, TrainImages, open_picture
from revvideo.data.loader import eval_loader, train_loader
from revvideo.data.manifest import Manifest
from revvideo.data.transforms import EvalTransform, as_clip
from revvideo.data.video_reader import VideoError
from revvideo.errors import InputError

CLASSES = ("n01", "n02", "n03")
PER_CLASS = 4
SIZE = 32
# On top of ImageNet/REV_VIT_S: two blocks, pictures of 32 pixels.
TINY = {
    "NUM_GPUS": 0,
    "DATA.TRAIN_CROP_SIZE": SIZE,
    "DATA.TEST_CROP_SIZE": SIZE,
    "MODEL.NUM_CLASSES": len(CLASSES),
    "MVIT.DEPTH": 2,
    "MVIT.NUM_HEADS": 2,
    "MVIT.EMBED_DIM": 16,
    "SOLVER.MAX_EPOCH": 1,
    "SOLVER.WARMUP_EPOCHS": 0.5,
    "TRAIN.BATCH_SIZE": 4,
    "TRAIN.EVAL_PERIOD": 1,
    "TEST.ENABLE": True,
    "TEST.NUM_ENSEMBLE_VIEWS": 1,
    "TEST.NUM_SPATIAL_CROPS": 1,
    "DATA_LOADER.NUM_WORKERS": 0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """ImageNet's layout: train/ and val/ with a folder a class."""
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(PER_CLASS):
                pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
                picture = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BILINEAR)
                picture.save(root / split / name / f"{name}_{number}.JPEG")
    return root


def words(data: Path, folder: Path, *layers: dict) -> list[str]:
    merged = TINY | {"DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": folder}
    for layer in layers:
        merged |= layer
    return [str(word) for pair in merged.items() for word in pair]


def run_net(data: Path, folder: Path, *layers: dict) -> tiny.Outcome:
    return tiny.command("run_net", "--cfg", "ImageNet/REV_VIT_S", *words(data, folder, *layers))


def cut(picture, generator=None):
    """A transform: the first 32 x 32 pixels at a random column, as uint8 (1, C, H, W)."""
    x = 0 if generator is None else int(generator.integers(0, picture.width - SIZE))
    array = np.asarray(picture)[:SIZE, x : x + SIZE]
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None]


@pytest.fixture
def manifest(data, tmp_path):
    """Five pictures; number 1 is cut off."""
    paths = sorted(str(path) for path in (data / "train").glob("*/*.JPEG"))[:5]
    broken = tmp_path / "broken.JPEG"
    broken.write_bytes(Path(paths[1]).read_bytes()[:400])
    paths[1] = str(broken)
    return Manifest(tuple(paths), (0, 1, 2, 3, 4), "pictures", kind="image")


# The data sets


def test_training_pictures_are_functions_of_their_key_and_opened_once(manifest, monkeypatch):
    opened = []
    monkeypatch.setattr(module, "open_picture", lambda path: opened.append(path) or open_picture(path))
    item = TrainImages(manifest, cut, seed=0, num_crops_per_picture=3)[2, 4]
    assert opened == [manifest.paths[4]]
    assert item["video"].shape == (3, 1, 3, SIZE, SIZE)
    assert item["video"].dtype == torch.uint8
    assert item["video"].permute(0, 1, 3, 4, 2).is_contiguous()
    assert (item["label"], item["index"], item["bad"]) == (4, 4, [])
    again = TrainImages(manifest, cut, seed=0)[2, 4]["video"]
    assert torch.equal(item["video"][:1], again)
    assert len({bytes(crop.numpy().tobytes()) for crop in item["video"]}) > 1


def test_a_broken_picture_is_replaced_in_training_and_listed_in_evaluation(manifest):
    loader = train_loader(TrainImages(manifest, cut, seed=0), batch_size=5, seed=0)
    (batch,) = list(loader)
    assert batch.video.shape == (5, 1, 3, SIZE, SIZE)
    assert [path for path, _ in batch.bad] == [manifest.paths[1]]
    assert 1 not in batch.index.tolist()
    items = list(eval_loader(EvalImages(manifest, cut)))
    assert [item["video"] is None for item in items] == [False, True, False, False, False]
    assert "truncated" in items[1]["error"].lower()
    assert items[0]["video"].shape == (1, 1, 3, SIZE, SIZE)
    with pytest.raises(InputError, match=r"pictures.*cannot be decoded"):
        list(
            train_loader(
                TrainImages(Manifest(manifest.paths[1:2], (0,), "pictures"), cut, seed=0), batch_size=1, seed=0
            )
        )


def test_files_that_are_no_pictures(tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    Image.new("RGB", (99, 3)).save(tmp_path / "strip.png")
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    for name, reason in (
        ("empty.jpg", "empty"),
        ("text.jpg", "cannot identify"),
        ("none.jpg", "No such file"),
        ("", "not a regular file"),
        ("large.png", "40x30 pixels; at most 1000"),
        ("strip.png", "a strip of 99x3 pixels"),
    ):
        with pytest.raises(VideoError, match=reason):
            open_picture(str(tmp_path / name))


def test_pictures_of_any_mode_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16", "LA"):
        path = tmp_path / f"{mode.replace(';', '')}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (8, 6)).save(path)
        assert (open_picture(str(path)).mode, open_picture(str(path)).size) == ("RGB", (8, 6))


# End to end


def test_batches_of_a_config(data, tmp_path):
    cfg = load_config("ImageNet/REV_VIT_S", words(data, tmp_path))
    (batch, *others) = build_train_loader(cfg, batch_plan(cfg))
    assert batch.video.shape == (4, 1, 3, SIZE, SIZE)
    assert len(others) == 2
    labels = torch.cat([each.label for each in (batch, *others)])
    assert torch.bincount(labels).tolist() == [PER_CLASS] * 3
    items = list(build_val_loader(cfg))
    assert [item["label"] for item in items] == [0] * 4 + [1] * 4 + [2] * 4
    assert items[0]["video"].shape == (1, 1, 3, SIZE, SIZE)


def test_pictures_without_augmentation_are_evaluated_as_clips(data, tmp_path):
    """PySlowFast's ResNet path: the short side to DATA.TRAIN_CROP_SIZE, without antialiasing, then the centre."""
    # Of a model whose two crops may differ; only the size of the frames is read from it.
    off = {"AUG.ENABLE": False, "DATA.TRAIN_CROP_SIZE": 40, "MODEL.MODEL_NAME": "PTVResNet"}
    cfg = load_config("ImageNet/REV_VIT_S", words(data, tmp_path, off))
    item = next(iter(build_val_loader(cfg)))
    picture = np.array(open_picture(sorted(map(str, (data / "val").glob("*/*")))[0]))
    expected = EvalTransform(SIZE, short_side=40)(as_clip(picture[None]))
    assert torch.equal(item["video"][0], expected)
    with_aug = load_config("ImageNet/REV_VIT_S", words(data, tmp_path, off, {"AUG.ENABLE": True}))
    assert not torch.equal(next(iter(build_val_loader(with_aug)))["video"][0], expected)
    larger = load_config("ImageNet/REV_VIT_S", words(data, tmp_path, off, {"DATA.TEST_CROP_SIZE": 48}))
    with pytest.raises(InputError, match=r"TEST_CROP_SIZE is 48; expected at most DATA\.TRAIN_CROP_SIZE \(40\)"):
        build_val_loader(larger)


def test_an_image_model_trains_and_is_evaluated(data, tmp_path):
    folder = tmp_path / "run"
    tiny.done(run_net(data, folder, {"DATA_LOADER.NUM_WORKERS": 1, "AUG.NUM_SAMPLE": 2}))
    assert len(tiny.losses(folder)) == 3
    (event,) = tiny.events(folder, "validation")
    assert event["num_videos"] == len(CLASSES) * PER_CLASS
    results = json.loads((folder / "results.json").read_text())  # of val/: there is no test/
    assert (results["num_videos"], results["num_views"], results["num_crops"]) == (12, 1, 1)
    assert results["protocol"].endswith("; pictures")
    assert results["top1_acc"] == event["top1_acc"]


def refused(outcome: tiny.Outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in outcome.err


def test_what_does_not_go_with_pictures(data, tmp_path):
    outcome = run_net(data, tmp_path / "a", {"TEST.NUM_ENSEMBLE_VIEWS": 2})
    refused(outcome, "a picture has one view", "TEST.NUM_ENSEMBLE_VIEWS 1")
    outcome = run_net(data, tmp_path / "b", {"TRAIN.DATASET": "kinetics"})
    refused(outcome, "TRAIN.DATASET is 'kinetics'", "pictures", "imagenet")
    outcome = tiny.run_net(data, tmp_path / "c", {"TRAIN.DATASET": "imagenet", "MODEL.NUM_CLASSES": 3})
    refused(outcome, "the model takes 4 frames", "MVIT.PATCH_2D")
