"""`revvideo extract_features`: the evaluator's clips in, features out; the same ones after any interruption."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from seeing import CLASS_NAMES, write_checkpoint
from tiny_models import tiny_mvit

from revvideo import build
from revvideo.data.manifest import Manifest
from revvideo.errors import CheckFailed, InputError
from revvideo.models.registry import create_model
from revvideo.predict.model_source import load_predictor_model
from revvideo.visualize.block_output import run_to_block
from revvideo.visualize.feature_files import FeatureFolder, read_features
from revvideo.visualize.features import FeatureExtractor, FeatureSpec


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trained") / "model.pyth", data, class_names=CLASS_NAMES)


@pytest.fixture
def extract(trained, tmp_path):
    """The command into the folder `out`."""

    def run(*words: object, checkpoint: Path = trained, out: str = "out") -> tiny.Outcome:
        place = ("--checkpoint", checkpoint, "--device", "cpu", "--out", tmp_path / out)
        return tiny.command("extract_features", *words, *place)

    return run


def index(folder: Path) -> list[dict[str, str]]:
    with open(folder / "index.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def views_of(loaded, path: Path, num_views: int = 2) -> torch.Tensor:
    """The evaluator's clips of one video, as the model takes them."""
    dataset = build.build_test_dataset(loaded.cfg, num_views, Manifest((str(path),), (0,), "test"))
    return build.build_eval_input(loaded.cfg, loaded.device)(dataset[0]["video"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# What is written


def test_pooled_features_are_what_the_head_reads_of_the_evaluators_clips(data, trained, extract, tmp_path):
    tiny.done(extract("--list", data / "test.csv", "--views", "2x1"))
    loaded = load_predictor_model(checkpoint=trained, device="cpu")
    rows, out = index(tmp_path / "out"), tmp_path / "out"
    assert [row["label"] for row in rows] == [str((number + 1) % 6) for number in range(6)]
    with np.load(out / "features.npz") as content:
        together = dict(content)
    for number, row in enumerate(rows):
        assert row["path"] == str(data / f"test{number}.mp4")
        with torch.inference_mode():
            expected = loaded.model.forward_features(views_of(loaded, row["path"])).numpy()
        with np.load(out / row["file"]) as content:
            np.testing.assert_allclose(content["features"], expected, rtol=1e-4, atol=1e-5)
            assert (str(content["path"]), int(content["label"])) == (row["path"], int(row["label"]))
        np.testing.assert_allclose(together["features"][number], expected.mean(0), rtol=1e-4, atol=1e-5)
    assert together["features"].dtype == np.float32
    assert together["path"].tolist() == [row["path"] for row in rows]
    assert together["label"].tolist() == [int(row["label"]) for row in rows]
    assert together["class_names"].tolist() == CLASS_NAMES
    facts = json.loads((out / "features.json").read_text())
    assert facts["class_names"] == CLASS_NAMES
    assert (facts["num_views"], facts["num_crops"], facts["frames"]) == (2, 1, 4)


@pytest.mark.parametrize("block", [None, 0])
def test_tokens_are_the_volume_of_a_block(data, trained, block):
    loaded = load_predictor_model(checkpoint=trained, device="cpu")
    spec = FeatureSpec("tokens", block)
    extractor = FeatureExtractor(loaded, spec)
    clips = views_of(loaded, data / "test5.mp4")
    dataset = build.build_test_dataset(loaded.cfg, 2, Manifest((str(data / "test5.mp4"),), (0,), "test"))
    found = extractor.features(dataset[0]["video"])
    with torch.no_grad():
        output = run_to_block(loaded.model, clips, extractor.block)
    assert extractor.block == f"rev_backbone.layers.{3 if block is None else 0}"
    np.testing.assert_allclose(found, output.volume().permute(0, 2, 3, 4, 1), rtol=1e-5, atol=1e-6)
    pooled = FeatureExtractor(loaded, FeatureSpec("pooled", extractor.block)).features(dataset[0]["video"])
    np.testing.assert_allclose(pooled, found.mean((1, 2, 3)), rtol=1e-4, atol=1e-5)


def test_the_tokens_of_the_last_reversible_block_are_what_the_head_pools(data, trained):
    loaded = load_predictor_model(checkpoint=trained, device="cpu")
    clips = views_of(loaded, data / "test5.mp4")
    with torch.no_grad():
        tokens = run_to_block(loaded.model, clips, -1).volume().flatten(2).transpose(1, 2)
        torch.testing.assert_close(loaded.model.pool_tokens(tokens), loaded.model.forward_features(clips))


def test_safetensors_hold_the_same_as_npz(data, extract, tmp_path):
    words = ("--list", data / "test.csv", "--views", "2x3")
    tiny.done(extract(*words))
    tiny.done(extract(*words, "--format", "safetensors", out="tensors"))
    for one, other in zip(index(tmp_path / "out"), index(tmp_path / "tensors"), strict=True):
        features = read_features(tmp_path / "out" / one["file"])
        assert features.shape[0] == 6
        assert np.array_equal(features, read_features(tmp_path / "tensors" / other["file"]))
        with safe_open(tmp_path / "tensors" / other["file"], "np") as file:
            assert file.metadata() == {"path": other["path"]}
    with np.load(tmp_path / "out" / "features.npz") as content:
        tensors = load_file(tmp_path / "tensors" / "features.safetensors")
        assert all(np.array_equal(tensors[name], content[name]) for name in ("features", "label"))


def test_folders_and_the_list_of_a_data_set_name_the_same_videos(data, extract, tmp_path):
    tiny.done(extract("--opts", "DATA.PATH_TO_DATA_DIR", data))
    tiny.done(extract(data, out="folder"))
    of_list, of_folder = index(tmp_path / "out"), index(tmp_path / "folder")
    assert len(of_list) == 6
    assert {row["path"] for row in of_list} < {row["path"] for row in of_folder}
    assert {row["label"] for row in of_folder} == {""}
    with np.load(tmp_path / "folder" / of_folder[0]["file"]) as content:
        assert int(content["label"]) == -1


def test_half_precision_is_stored_on_request(data, extract, tmp_path):
    tiny.done(extract(data / "test1.mp4", "--kind", "tokens", "--half"))
    (row,) = index(tmp_path / "out")
    features = read_features(tmp_path / "out" / row["file"])
    assert features.dtype == np.float16
    assert features.shape == (1, 2, 4, 4, 64)
    assert not (tmp_path / "out" / "features.npz").exists()


def test_features_that_are_not_finite_are_refused(data, trained):
    loaded = load_predictor_model(checkpoint=trained, device="cpu")
    clips = build.build_test_dataset(loaded.cfg, 1, Manifest((str(data / "test5.mp4"),), (0,), "test"))[0]["video"]
    with torch.no_grad():
        loaded.model.norm.weight.fill_(1e6)
    assert FeatureExtractor(loaded, FeatureSpec()).features(clips).dtype == np.float32
    with pytest.raises(CheckFailed, match="without --half"):
        FeatureExtractor(loaded, FeatureSpec(half=True)).features(clips)


def test_pictures_and_plain_models_have_features_too(tmp_path):
    torch.manual_seed(0)
    model = create_model("rev_vit_s", depth=2, embed_dim=32, num_heads=2, num_classes=3, input_size=(1, 32, 32))
    Image.new("RGB", (50, 40), (200, 20, 20)).save(tmp_path / "a.png")
    manifest = Manifest((str(tmp_path / "a.png"),), (0,), "test", kind="image", labelled=False)
    extractor = FeatureExtractor(load_predictor_model(model, device="cpu"), FeatureSpec(views=5, crops=3))
    with FeatureFolder(tmp_path / "out", format="npz", identity={}, description={}) as folder:
        extractor.extract(manifest, folder)
        assert read_features(folder.path / index(folder.path)[0]["file"]).shape == (1, model.num_features)
    tokens = FeatureExtractor(load_predictor_model(tiny_mvit(), device="cpu"), FeatureSpec("tokens"))
    found = tokens.features(torch.zeros((2, 8, 3, 32, 32), dtype=torch.uint8))
    assert found.shape == (2, 4, 2, 2, 32)  # without the class token


# Interruptions and bad videos


@pytest.mark.parametrize("num_before_the_kill", [0, 7])
def test_a_run_that_was_killed_goes_on_and_gives_the_same_bits(
    data, trained, extract, tmp_path, monkeypatch, num_before_the_kill
):
    words = (data, "--views", "2x1", "--opts", "TEST.BATCH_SIZE", 4)  # two videos at a time
    tiny.done(extract(*words, out="whole"))
    added, add = [], FeatureFolder.add

    def dying(self, path, label, features):
        if len(added) == num_before_the_kill:
            (self.path / "videos" / ".x.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        added.append(path)
        add(self, path, label, features)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureFolder, "add", dying)
        assert extract(*words).code == 130
    (tmp_path / "out" / "videos" / ".x.tmp").unlink()

    def counting(self, path, label, features):
        added.append(path)
        add(self, path, label, features)

    monkeypatch.setattr(FeatureFolder, "add", counting)
    tiny.done(extract(*words))
    assert len(added) <= 14 + 1  # the batch that was cut is done again, and no other
    whole, resumed = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert set(whole) == set(resumed)
    for name in set(whole) - {"index.csv"}:
        if name.endswith(".npz"):
            with np.load(tmp_path / "whole" / name) as one, np.load(tmp_path / "out" / name) as other:
                assert all(np.array_equal(one[key], other[key]) for key in one)
        else:
            assert whole[name] == resumed[name]
    added.clear()
    tiny.done(extract(*words))
    assert added == []


def test_bad_videos_are_listed_and_tried_again(data, extract, tmp_path):
    (tmp_path / "videos").mkdir()
    for number in range(3):
        (tmp_path / "videos" / f"{number}.mp4").write_bytes((data / f"test{number}.mp4").read_bytes())
    (tmp_path / "videos" / "1.mp4").write_bytes(b"no video")
    outcome = tiny.done(extract(tmp_path / "videos"))
    assert "features of 2 of 3 videos" in outcome.out
    assert f"{tmp_path}/videos/1.mp4: " in outcome.out
    assert [bool(row["error"]) for row in index(tmp_path / "out")] == [False, True, False]
    with np.load(tmp_path / "out" / "features.npz") as content:
        assert content["path"].tolist() == [str(tmp_path / "videos" / name) for name in ("0.mp4", "2.mp4")]
    assert extract(tmp_path / "videos", "--strict").code == 3
    assert extract(tmp_path / "videos" / "1.mp4", out="other").code == 2
    before = read_features(tmp_path / "out" / index(tmp_path / "out")[0]["file"])
    (tmp_path / "videos" / "1.mp4").write_bytes((data / "test1.mp4").read_bytes())
    assert "features of 3 of 3 videos" in tiny.done(extract(tmp_path / "videos")).out
    rows = {row["path"]: row for row in index(tmp_path / "out")}
    assert not rows[str(tmp_path / "videos" / "1.mp4")]["error"]
    assert np.array_equal(read_features(tmp_path / "out" / rows[str(tmp_path / "videos" / "0.mp4")]["file"]), before)


def test_features_of_different_models_or_protocols_are_not_mixed(data, extract, tmp_path):
    tiny.done(extract(data / "test1.mp4"))
    other = write_checkpoint(tmp_path / "other.pyth", data, seed=1)
    for words, checkpoint, said in [
        (("--views", "3x1"), None, "views;"),
        (("--views", "1x3"), None, "views;"),
        ((), other, "model and input"),
        (("--kind", "tokens"), None, "kind, block"),
        (("--half",), None, "dtype"),
        (("--format", "safetensors"), None, "format"),
    ]:
        named = {} if checkpoint is None else {"checkpoint": checkpoint}
        outcome = extract(data / "test1.mp4", *words, **named)
        assert outcome.code == 2
        assert f"features that differ in: {said}" in outcome.err
    tiny.done(extract(data / "test2.mp4", "--opts", "DATA.PATH_TO_DATA_DIR", data))  # where videos lie does not matter
    assert len(index(tmp_path / "out")) == 2
    tiny.done(extract(data / "test1.mp4", "--views", "3x1", "--restart"))
    (row,) = index(tmp_path / "out")
    assert read_features(tmp_path / "out" / row["file"]).shape == (3, 64)
    assert len(list((tmp_path / "out" / "videos").iterdir())) == 1  # the others belong to no row any more


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no videos are named"),
        (["a.mp4", "--split", "val"], "not two of them"),
        (["--list", "missing.csv"], "missing.csv"),
        (["a.mp4", "--block", "norm"], "no block 'norm'"),
        (["a.mp4", "--views", "2"], "such as 5x1"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(extract, words, said):
    outcome = extract(*words)
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_a_path_that_is_listed_twice_counts_once(data, extract, tmp_path):
    tiny.write_list(tmp_path / "twice.csv", [(data / "test1.mp4", 4), (data / "test2.mp4", 1), (data / "test1.mp4", 2)])
    outcome = tiny.done(extract("--list", tmp_path / "twice.csv"))
    assert [row["label"] for row in index(tmp_path / "out")] == ["4", "1"]
    assert "lists 1 paths more than once" in outcome.err


def test_specs_and_folders_refuse_what_they_do_not_know(tmp_path):
    with pytest.raises(InputError, match="expected one of pooled, tokens"):
        FeatureSpec("mean")
    with pytest.raises(InputError, match="expected one of npz, safetensors"):
        FeatureFolder(tmp_path, format="hdf5", identity={}, description={})
    (tmp_path / "features.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        FeatureFolder(tmp_path, format="npz", identity={}, description={})
