"""`revvideo visualize`: overlays, contact sheets and clip files, and the command on videos, pictures and bad files."""

from pathlib import Path

import av
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from seeing import CLASS_NAMES, write_checkpoint
from tiny_models import tiny_mvit, tiny_rev_mvit

from revvideo import build
from revvideo.data.manifest import Manifest
from revvideo.errors import InputError
from revvideo.models.input_spec import InputSpec
from revvideo.models.registry import create_model
from revvideo.predict.model_source import load_predictor_model
from revvideo.predict.sources import find_sources
from revvideo.visualize.contact_sheet import CELL_PIXELS, contact_sheet, shown_frames
from revvideo.visualize.explain import Explainer, frames_per_second, write_explained
from revvideo.visualize.grad_cam import grad_cam
from revvideo.visualize.overlay import colours, overlay, relative_heat, write_clip


def grey(count: int = 4, height: int = 32, width: int = 32) -> np.ndarray:
    return np.full((count, height, width, 3), 128, np.uint8)


# Overlays


def test_an_overlay_leaves_frames_alone_where_the_map_is_zero_and_changes_them_most_where_it_is_one():
    frames, heat = grey(), np.zeros((4, 32, 32), np.float32)
    assert np.array_equal(overlay(frames, heat), frames)
    heat[2, :, 8:16], heat[2, :, 16:24] = 0.5, 1.0
    change = np.abs(overlay(frames, heat).astype(int) - frames).sum(-1)
    assert not change[[0, 1, 3]].any()
    assert not change[2, :, :8].any()
    assert 0 < change[2, 0, 10] < change[2, 0, 20]


def test_colours_rise_in_lightness():
    lightness = colours(np.linspace(0, 1, 50, dtype=np.float32)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


def test_maps_are_relative_to_the_highest_value_of_all_views():
    maps = np.array([[[[0.0, 1.0]]], [[[4.0, 2.0]]]])
    assert relative_heat(maps).ravel().tolist() == [0, 0.25, 1, 0.5]
    assert not relative_heat(np.zeros((1, 2, 3, 3))).any()


def test_a_clip_file_has_all_frames_at_their_rate_and_even_sides(tmp_path):
    write_clip(tmp_path / "clip.mp4", grey(9, 33, 35), 7.5)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 7.5)
    assert len(frames) == 9
    assert frames[0].shape == (462, 490, 3)  # 14 times as large
    assert np.abs(frames[4].astype(int) - 128).max() <= 4
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_rate_is_that_of_the_clip_and_repeated_frames_do_not_count():
    assert frames_per_second([np.arange(16) / 7.5]) == pytest.approx(7.5)
    assert frames_per_second([np.array([0, 0.5, 1.0, 1.0, 1.0])]) == 2.0
    assert frames_per_second([np.zeros(4)]) == 1.0


# Contact sheets


def test_a_sheet_shows_each_frame_over_its_overlay():
    frames = [np.stack([np.full((32, 48, 3), 20 * t, np.uint8) for t in range(4)])]
    overlays = [255 - frames[0]]
    sheet = np.asarray(contact_sheet("title", frames, overlays, [np.arange(4) / 2]))
    cells = [(4 + column * (240 + 4) + 120, row) for row in (26 + 80, 26 + 84 + CELL_PIXELS) for column in range(4)]
    assert [int(sheet[y, x, 0]) for x, y in cells] == [0, 20, 40, 60, 255, 235, 215, 195]
    more = np.asarray(contact_sheet("title", frames * 2, overlays * 2, [np.arange(4) / 2] * 2))
    assert more.shape[1] == sheet.shape[1]
    assert more.shape[0] > 1.8 * sheet.shape[0]


def test_long_clips_are_thinned_from_the_first_frame_to_the_last():
    assert shown_frames(4) == [0, 1, 2, 3]
    assert (shown_frames(32)[0], shown_frames(32)[-1], len(shown_frames(32))) == (0, 31, 8)


# The command


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trained") / "model.pyth", data)


def test_the_command_writes_a_clip_and_a_sheet_and_goes_on_after_bad_files(data, trained, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    same = tmp_path / "folder"
    same.mkdir()
    (same / "test3.mp4").write_bytes((data / "test4.mp4").read_bytes())
    words = [tmp_path / "bad.mp4", data / "test3.mp4", same / "test3.mp4", "--checkpoint", trained, "--device", "cpu"]
    outcome = tiny.done(tiny.command("visualize", *words, "--out", tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("test3.mp4", "test3.png", "test3_2.mp4", "test3_2.png")
    ]
    assert outcome.err.count("bad.mp4: ") == 1
    assert "1 of 3 files could not be read" in outcome.err
    assert len(outcome.out.splitlines()) == 2
    with av.open(str(tmp_path / "out/test3.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4
    with Image.open(tmp_path / "out/test3.png") as sheet:
        assert sheet.width > 4 * CELL_PIXELS


def test_the_clips_are_the_evaluators(data, trained):
    loaded = load_predictor_model(checkpoint=trained, device="cpu")
    path = str(data / "test5.mp4")
    explained = Explainer(loaded, views=3)(find_sources([path], images=False)[0])
    dataset = build.build_test_dataset(loaded.cfg, 3, Manifest((path,), (0,), "test"))
    views = dataset[0]["video"]
    assert np.array_equal(explained.frames, views.permute(0, 1, 3, 4, 2).numpy())
    assert explained.heat.shape == explained.frames.shape[:-1] == (3, 4, 32, 32)
    assert (explained.heat.min(), explained.heat.max()) == (0, 1)
    assert explained.seconds.shape == (3, 4)
    assert (np.diff(explained.seconds) > 0).all()
    clips = build.build_eval_input(loaded.cfg, loaded.device)(views)
    cam = grad_cam(loaded.model, clips, explained.label).upsample().numpy()
    np.testing.assert_allclose(explained.heat, cam / cam.max(), atol=1e-4)
    with torch.no_grad():
        mean = loaded.model(clips).softmax(1).mean(0)
    assert explained.label == int(mean.argmax())
    assert explained.probability == pytest.approx(float(mean.max()), rel=1e-5)


def test_one_view_is_the_middle_of_the_video(data, trained):
    loaded = load_predictor_model(checkpoint=trained, device="cpu")
    explained = Explainer(loaded)(find_sources([data / "test5.mp4"], images=False)[0])
    assert explained.seconds.mean() == pytest.approx(1.0, abs=0.05)  # 60 frames at 30 a second


def test_classes_are_asked_for_by_number_or_name(data, trained):
    explainer = Explainer(load_predictor_model(checkpoint=trained, classes=CLASS_NAMES, device="cpu"))
    assert [explainer.class_number(word) for word in ("2", "jump high", "EAT")] == [2, 1, 5]
    with pytest.raises(InputError, match="2 classes are called 'a'"):
        explainer.class_number("a")
    with pytest.raises(InputError, match="the classes 0 to 5"):
        explainer.class_number("6")
    with pytest.raises(InputError, match="no names are known"):
        Explainer(load_predictor_model(checkpoint=trained, device="cpu")).class_number("run")


def test_several_targets_have_files_of_their_own(data, trained, tmp_path):
    words = [data / "test3.mp4", "--checkpoint", trained, "--device", "cpu", "--block", "-2", "--target", "0", "4"]
    outcome = tiny.done(tiny.command("visualize", *words, "--out", tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["test3_class0.png", "test3_class4.png"]
    assert "class 4" in outcome.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["missing.mp4"], 2, "1 of 1 files could not be read"),
        (["missing.mp4", "--strict"], 3, "1 of 1 files could not be read"),
        (["x.mp4", "--block", "9"], 2, "the network has 4 blocks"),
        (["x.mp4", "--target", "jump"], 2, "no names are known"),
        (["x.mp4", "--views", "0"], 2, "expected a whole number, 1 or more"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(trained, tmp_path, words, code, said):
    outcome = tiny.command("visualize", *words, "--checkpoint", trained, "--device", "cpu", "--out", tmp_path / "out")
    assert outcome.code == code
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_a_folder_that_cannot_be_written_is_told(data, trained, tmp_path):
    (tmp_path / "out").write_text("a file")
    loaded = load_predictor_model(checkpoint=trained, device="cpu")
    explained = Explainer(loaded)(find_sources([data / "test3.mp4"], images=False)[0])
    with pytest.raises(InputError, match="cannot write to"):
        write_explained(explained, tmp_path / "out", "x")


def test_an_image_model_explains_pictures(tmp_path):
    torch.manual_seed(0)
    model = create_model("rev_vit_s", depth=2, embed_dim=32, num_heads=2, num_classes=3, input_size=(1, 32, 32))
    Image.fromarray(grey(1, 40, 60)[0]).save(tmp_path / "picture.png")
    loaded = load_predictor_model(model, device="cpu")
    explained = Explainer(loaded, views=5)(find_sources([tmp_path / "picture.png"], images=True)[0])
    assert explained.frames.shape == (1, 1, 32, 32, 3)
    assert explained.seconds is None
    assert [path.name for path in write_explained(explained, tmp_path / "out", "p")] == ["p.png"]


@pytest.mark.parametrize("make", [tiny_mvit, tiny_rev_mvit])
def test_arrays_and_modules_work_too(make):
    model = make()
    assert model.input_spec == InputSpec(frames=8, size=(32, 32))
    frames = np.random.default_rng(0).integers(0, 256, (40, 36, 50, 3), dtype=np.uint8)
    explained = Explainer(load_predictor_model(model, device="cpu"))(find_sources([frames], images=False)[0])
    assert explained.heat.shape == (1, 8, 32, 32)
    assert 0 <= explained.label < model.num_classes
