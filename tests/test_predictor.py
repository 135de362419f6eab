"""Predictor: the evaluator's scores for every kind of source, and the model's for every way to name it."""

import logging

import numpy as np
import pytest
import tiny
import torch
from make_clips import CLIPS
from predicting import IMAGE_MODEL, evaluated, weights_file, write_picture
from torch import nn

import revvideo
from revvideo import InputError, Predictor, VideoError
from revvideo.config import load_config
from revvideo.engine.checkpoint import load_checkpoint, save_checkpoint
from revvideo.models.input_spec import InputSpec
from revvideo.predict.model_source import load_predictor_model

VIEWS = (2, 1)  # of the tiny config


@pytest.fixture(scope="module")
def predictor(finished) -> Predictor:
    return Predictor(None, finished[0], views=VIEWS)


@pytest.fixture(scope="module")
def checkpoint(finished):
    return sorted((finished[0] / "checkpoints").glob("*.pyth"))[-1]


# The evaluator


def test_scores_are_the_evaluators_to_the_bit_in_its_batches(finished):
    paths, scores = evaluated(finished[0])
    same_shape = Predictor(None, finished[0], views=VIEWS, batch_clips=tiny.TINY["TEST.BATCH_SIZE"])
    found = list(same_shape.predict_all(paths))
    assert [each.path for each in found] == paths
    np.testing.assert_array_equal(np.stack([each.scores for each in found]), scores)


@pytest.mark.parametrize("batch_clips", [None, 1, 3, 64])
def test_scores_are_the_evaluators_in_other_batches(finished, batch_clips):
    paths, scores = evaluated(finished[0])
    found = Predictor(None, finished[0], views=VIEWS, batch_clips=batch_clips)(paths)
    np.testing.assert_allclose(np.stack([each.scores for each in found]), scores, rtol=0, atol=1e-6)


def test_an_unreadable_video_changes_no_score_of_the_others(finished, tmp_path):
    """In the evaluator's batches it leaves a hole."""
    paths, scores = evaluated(finished[0])
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    paths[1] = str(tmp_path / "bad.mp4")
    found = Predictor(None, finished[0], views=VIEWS, batch_clips=tiny.TINY["TEST.BATCH_SIZE"])(paths)
    assert found[1].error is not None
    assert found[1].scores.size == 0
    for i in (0, 2, 3, 4, 5):
        np.testing.assert_array_equal(found[i].scores, scores[i])


@pytest.mark.parametrize("views", [(1, 1), (3, 3)])
def test_other_views_are_those_of_an_evaluation_with_them(data, finished, views, tmp_path):
    keys = {"TRAIN.ENABLE": False, "TEST.NUM_ENSEMBLE_VIEWS": views[0], "TEST.NUM_SPATIAL_CROPS": views[1]}
    last = sorted((finished[0] / "checkpoints").glob("*.pyth"))[-1]
    tiny.done(tiny.run_net(data, tmp_path / "run", tiny.RANDOM, keys, {"TEST.CHECKPOINT_FILE_PATH": last}))
    paths, scores = evaluated(tmp_path / "run")
    found = Predictor(None, last, views=views, batch_clips=tiny.TINY["TEST.BATCH_SIZE"])(paths)
    np.testing.assert_array_equal(np.stack([each.scores for each in found]), scores)


# Sources


def test_frames_in_memory_are_a_video(predictor, data):
    path = str(data / "test3.mp4")
    with revvideo.open_video(path) as video:
        frames, fps = video.frames(range(video.num_frames)), video.fps
    expected = predictor(path)
    for array in (frames, torch.from_numpy(frames)):
        np.testing.assert_array_equal(predictor(array, fps=fps).scores, expected.scores)
    assert np.abs(predictor(frames, fps=fps / 3).scores - expected.scores).max() > 0  # the rate counts


def test_a_folder_is_all_of_its_videos_and_a_folder_of_pictures_is_one(predictor, data, tmp_path):
    found = predictor(data)
    assert sorted(each.path for each in found) == sorted(str(path) for path in data.glob("*.mp4"))
    for number in range(20):
        write_picture(tmp_path / f"{number:03d}.png", seed=number)
    alone = predictor(tmp_path)
    assert alone.path == str(tmp_path)
    assert alone.error is None


def test_probabilities_are_on_the_scale_of_one_view(predictor, data):
    found = predictor(data / "test1.mp4")
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert found.scores.sum() == pytest.approx(VIEWS[0], abs=1e-5)
    assert [number for number, _, _ in found.top(6)] == np.argsort(-found.scores, kind="stable").tolist()
    assert found.top(3)[0] == (found.label, found.class_name, found.probability)


def test_one_bad_file_raises_and_many_go_on(predictor, data, tmp_path):
    with pytest.raises(VideoError):
        predictor(tmp_path / "missing.mp4")
    good, bad = predictor([data / "test0.mp4", tmp_path / "missing.mp4"])
    assert good.error is None
    assert "No such file" in bad.error
    with pytest.raises(ValueError, match="has no scores"):
        bad.top(1)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((4, 32, 48, 3), np.float32), "expected uint8"),
        (np.zeros((32, 48, 3), np.uint8), "expected uint8 .T, H, W, 3."),
        (np.zeros((0, 32, 48, 3), np.uint8), "expected uint8"),
        (7, "cannot predict a int"),
    ],
)
def test_what_is_no_source(predictor, source, words):
    with pytest.raises(InputError, match=words):
        predictor(source)


def test_damage_that_no_view_shows(finished):
    """Strict, it is refused as by the evaluator; else it is predicted and told. Damage in the views never is."""
    paths = [CLIPS / "bad" / "trunc_faststart_70.mp4", CLIPS / "bad" / "zeroed_middle.mp4"]
    strict, mild = (Predictor(None, finished[0], views=VIEWS, strict=strict) for strict in (True, False))
    assert all(each.error is not None for each in strict(paths))
    told, refused = mild(paths)
    assert told.error is None
    assert "corrupt packets" in told.damage
    assert refused.error is not None


# Models


def test_the_checkpoint_alone_a_name_a_config_and_a_module_agree(finished, checkpoint, data, predictor):
    path, expected = data / "test2.mp4", None
    cfg = load_config(finished[0] / "config.yaml")
    module = revvideo.build_model(cfg)
    for model, weights in ((None, checkpoint), (finished[0] / "config.yaml", checkpoint), (cfg, finished[0])):
        found = Predictor(model, weights, views=VIEWS)(path).scores
        expected = found if expected is None else expected
        np.testing.assert_array_equal(found, expected)
    shipped = Predictor("demo/REV_MVIT_DEMO", checkpoint, overrides=tiny.TINY, views=VIEWS)
    np.testing.assert_array_equal(shipped(path).scores, expected)
    np.testing.assert_array_equal(Predictor(module, checkpoint, views=VIEWS)(path).scores, expected)
    np.testing.assert_array_equal(Predictor(predictor.loaded, views=VIEWS)(path).scores, expected)


@pytest.mark.parametrize("name", ["rev_mvit_b_16x4", pytest.param("ptv/x3d_xs", marks=pytest.mark.slow)])
def test_a_model_by_name_predicts_what_its_module_gives_for_the_clip(name, data, tmp_path):
    module, file = weights_file(tmp_path, name)
    path, spec = str(data / "test4.mp4"), module.input_spec
    clips = revvideo.load_clip(path, module, views=VIEWS)
    assert clips.shape == (2, 3, spec.frames, *spec.size)
    with torch.no_grad():
        expected = module(clips).softmax(1).sum(0).numpy()
    np.testing.assert_allclose(Predictor(module, views=VIEWS)(path).scores, expected, rtol=0, atol=1e-6)
    with_weights = Predictor(module.requires_grad_(False), file, views=VIEWS)(path)
    np.testing.assert_allclose(with_weights.scores, expected, rtol=0, atol=1e-6)


def test_a_name_takes_size_and_classes_from_the_file(data, tmp_path):
    model = revvideo.create_model("mvitv2_s_16x4", num_classes=7, input_size=(2, 64, 64), depth=6)
    file = tmp_path / "w.safetensors"
    revvideo.models.checkpoint_formats.write_weights(file, model.state_dict())
    predictor = Predictor("mvitv2_s_16x4", file, views=(1, 1))
    assert predictor.loaded.input_spec.size == (64, 64)
    assert predictor(data / "test0.mp4").scores.shape == (7,)


def test_a_checkpoint_of_pyslowfast(finished, checkpoint, data, predictor, tmp_path):
    """It carries a config, with keys of training that mean nothing here, and names of no classes."""
    state = load_checkpoint(checkpoint)
    text = (
        state["cfg"].replace("MULTIGRID:", "MULTIGRID_:", 1) + "\nMULTIGRID: {LONG_CYCLE: true}\nDEMO: {ENABLE: true}\n"
    )
    own = {"epoch": 1, "model_state": state["model_state"], "cfg": text}
    save_checkpoint(tmp_path / "psf.pyth", own)
    found = Predictor(None, tmp_path / "psf.pyth", views=VIEWS)(data / "test0.mp4")
    np.testing.assert_array_equal(found.scores, predictor(data / "test0.mp4").scores)
    assert found.class_name == f"class {found.label}"


def test_unknown_keys_of_a_checkpoint_are_told(checkpoint, tmp_path, caplog):
    state = load_checkpoint(checkpoint)
    text = state["cfg"].replace("MVIT:", "MVIT:\n  OF_A_FORK: 3", 1)
    own = {"model_state": state["model_state"], "cfg": text}
    save_checkpoint(tmp_path / "fork.pyth", own)
    with caplog.at_level(logging.WARNING):
        load_predictor_model(None, tmp_path / "fork.pyth")
    assert any("MVIT.OF_A_FORK" in record.message for record in caplog.records)


def test_averaged_weights(checkpoint, data, tmp_path, predictor):
    state = dict(load_checkpoint(checkpoint))
    with pytest.raises(InputError, match="no averaged weights"):
        Predictor(None, checkpoint, averaged=True)
    state["ema_state"] = {name: tensor * 0 for name, tensor in state["model_state"].items()}
    save_checkpoint(tmp_path / "ema.pyth", state)
    found = Predictor(None, tmp_path / "ema.pyth", averaged=True, views=VIEWS)(data / "test0.mp4")
    np.testing.assert_allclose(found.probabilities, 1 / tiny.NUM_CLASSES, atol=1e-6)  # all logits are 0


def test_class_names(checkpoint, data, tmp_path):
    names = [f"name of {number}" for number in range(tiny.NUM_CLASSES)]
    state = dict(load_checkpoint(checkpoint)) | {"class_names": names}
    save_checkpoint(tmp_path / "named.pyth", state)
    (tmp_path / "classes.txt").write_text("\n".join(reversed(names)))
    held = Predictor(None, tmp_path / "named.pyth", views=VIEWS)(data / "test0.mp4")
    assert held.class_name == names[held.label]
    for classes in (tmp_path / "classes.txt", names[::-1]):
        given = Predictor(None, tmp_path / "named.pyth", classes=classes, views=VIEWS)(data / "test0.mp4")
        assert given.class_name == names[::-1][given.label]
    with pytest.raises(InputError, match="2 class names, but the model has 6"):
        Predictor(None, checkpoint, classes=["a", "b"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "neither a model nor a checkpoint"),
        (("rev_mvit_b_16x4",), "weights would be random"),
        (("no_such_model", "CHECKPOINT"), "neither a model"),
        ((None, "WEIGHTS"), "carries no config"),
        ((None, "EMPTY"), "holds no whole checkpoint"),
        ((nn.Linear(2, 2),), "says nothing about its input"),
    ],
)
def test_what_is_no_trained_model(arguments, words, checkpoint, tmp_path):
    bare = tmp_path / "bare.pyth"
    save_checkpoint(bare, {"model_state": load_checkpoint(checkpoint)["model_state"]})
    (tmp_path / "empty").mkdir()
    files = {"CHECKPOINT": checkpoint, "WEIGHTS": bare, "EMPTY": tmp_path / "empty"}
    with pytest.raises(InputError, match=words):
        Predictor(*(files.get(word, word) if isinstance(word, str) else word for word in arguments))


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here(checkpoint, device):
    with pytest.raises(InputError, match=f"--device is '?{device}"):
        Predictor(None, checkpoint, device=device)


# Pictures


@pytest.fixture(scope="module")
def image_model(tmp_path_factory) -> nn.Module:
    return weights_file(tmp_path_factory.mktemp("image"), IMAGE_MODEL)[0]


def test_an_image_model_takes_a_picture(image_model, tmp_path):
    picture = write_picture(tmp_path / "a.png")
    predictor = Predictor(image_model)
    clips = revvideo.load_clip(picture, image_model)
    assert clips.shape == (1, 3, 1, 32, 32)
    with torch.no_grad():
        expected = image_model(clips).softmax(1)[0].numpy()
    np.testing.assert_allclose(predictor(picture).scores, expected, rtol=0, atol=1e-6)
    from PIL import Image

    np.testing.assert_array_equal(predictor(np.array(Image.open(picture))).scores, predictor(picture).scores)
    write_picture(tmp_path / "b.png", seed=1)
    assert [each.path for each in predictor(tmp_path)] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


def test_a_video_is_no_picture_and_a_picture_no_video(image_model, predictor, data, tmp_path):
    with pytest.raises(VideoError, match="the model takes pictures"):
        Predictor(image_model)(data / "test0.mp4")
    with pytest.raises(VideoError, match="the model takes videos"):
        predictor(write_picture(tmp_path / "a.png"))
    with pytest.raises(InputError, match="takes pictures"):
        Predictor(image_model)(np.zeros((4, 32, 32, 3), np.uint8))


# The other entrances


def test_inference_model_answers_as_mmpretrain_does(finished, data, predictor, image_model, tmp_path):
    names = list("abcdef")
    found = revvideo.inference_model(None, data / "test0.mp4", finished[0], classes=names, views=VIEWS)
    expected = predictor(data / "test0.mp4")
    assert set(found) == {"pred_scores", "pred_label", "pred_score", "pred_class"}
    np.testing.assert_array_equal(found["pred_scores"], expected.probabilities)
    assert (found["pred_label"], found["pred_class"]) == (expected.label, names[expected.label])
    assert found["pred_score"] == pytest.approx(found["pred_scores"].max())
    again = revvideo.inference_model(Predictor(image_model), write_picture(tmp_path / "a.png"))
    assert again["pred_class"] == f"class {again['pred_label']}"
    with pytest.raises(VideoError):
        revvideo.inference_model(predictor, tmp_path / "missing.mp4")


def test_load_clip_takes_numbers_instead_of_a_model(data):
    path = data / "test3.mp4"
    clips = revvideo.load_clip(path, frames=6, stride=2, size=24, views=(2, 3))
    assert clips.shape == (6, 3, 6, 24, 24)
    assert clips.dtype == torch.float32
    spec = InputSpec(frames=6, stride=2, size=(24, 24))
    torch.testing.assert_close(revvideo.load_clip(path, spec, views=(2, 3)), clips, rtol=0, atol=0)
    with pytest.raises(InputError, match="is a folder"):
        revvideo.load_clip(data)
