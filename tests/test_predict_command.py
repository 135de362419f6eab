"""`revvideo predict`: what is printed, windows over long videos, labelled videos, exit codes."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
from make_clips import CLIPS
from predicting import IMAGE_MODEL, weights_file, write_picture
from videos import write_video

from revvideo import InputError, Predictor, open_video
from revvideo.predict.draw import clock, label_drawing, save_labelled_video
from revvideo.predict.sliding import predict_windows, whole_video, window_frames

VIEWS = ("--views", "2x1")


def predict(*words: object) -> tiny.Outcome:
    return tiny.command("predict", *words, "--device", "cpu")


@pytest.fixture(scope="module")
def predictor(finished) -> Predictor:
    return Predictor(None, finished[0], views=(2, 1))


@pytest.fixture(scope="module")
def long_video(tmp_path_factory) -> Path:
    """Three seconds."""
    return Path(write_video(tmp_path_factory.mktemp("long") / "long.mp4", 90, size=(32, 32)))


# What is printed


def test_text_and_json_say_what_the_predictor_says(finished, data, predictor):
    expected = predictor(data / "test1.mp4")
    text = tiny.done(predict(data / "test1.mp4", "--checkpoint", finished[0], *VIEWS, "--top", 2)).out
    assert text.splitlines()[0] == str(data / "test1.mp4")
    assert [line.split("%  ")[1] for line in text.splitlines()[1:]] == [name for _, name, _ in expected.top(2)]
    lines = tiny.done(predict(data / "test1.mp4", "--checkpoint", finished[0], *VIEWS, "--json")).out.splitlines()
    (found,) = map(json.loads, lines)
    assert (found["path"], found["error"], found["damage"]) == (str(data / "test1.mp4"), None, None)
    for got, (label, name, probability) in zip(found["classes"], expected.top(5), strict=True):
        assert got == {"label": label, "name": name, "score": pytest.approx(probability, abs=1e-6)}


def test_bad_files_are_named_and_the_others_predicted(finished, data, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    words = (bad, data / "test0.mp4", "--checkpoint", finished[0], *VIEWS)
    outcome = tiny.done(predict(*words, "--json"))
    first, second = map(json.loads, outcome.out.splitlines())
    assert first["error"]
    assert not first["classes"]
    assert second["error"] is None
    assert "1 of 2 could not be predicted" in outcome.err
    assert predict(*words, "--strict").code == 3
    assert predict(bad, "--checkpoint", finished[0]).code == 2


def test_every_odd_clip_is_predicted_and_every_bad_one_told(finished):
    """One line of JSON each; what is refused and what is damaged has a reason."""
    odd = sorted(path for path in (CLIPS / "odd").iterdir() if path.suffix != ".json")
    bad = sorted(path for path in (CLIPS / "bad").iterdir() if path.suffix != ".md")
    outcome = tiny.done(predict(*odd, *bad, "--checkpoint", finished[0], *VIEWS, "--json"))
    found = list(map(json.loads, outcome.out.splitlines()))
    assert [each["path"] for each in found] == [str(path) for path in (*odd, *bad)]
    assert [each["path"] for each in found[: len(odd)] if each["error"] is not None] == []
    assert all(each["classes"] or each["error"] for each in found)


def test_collected_clips(clips_folder, finished):
    """Every clip of `real` and `odd` is predicted; each of `bad` gets a line."""
    paths = {
        name: sorted(p for p in (clips_folder / name).iterdir() if p.suffix not in (".json", ".md"))
        for name in ("real", "odd", "bad")
    }
    words = ("--checkpoint", finished[0], "--views", "1x1", "--json")
    for name, files in paths.items():
        found = list(map(json.loads, tiny.done(predict(*files, *words)).out.splitlines()))
        assert [each["path"] for each in found] == [str(path) for path in files]
        if name != "bad":
            assert [each["path"] for each in found if each["error"] is not None] == []


@pytest.mark.parametrize(
    "words", [("--views", "5"), ("--views", "5x2"), ("--top", "0"), ("--cfg", "a", "--model", "b")]
)
def test_arguments_that_argparse_refuses(words, data):
    assert predict(data / "test0.mp4", "--checkpoint", "x", *words).code == 2


def test_a_picture(tmp_path):
    _, file = weights_file(tmp_path, IMAGE_MODEL)
    picture = write_picture(tmp_path / "a.png")
    options = ("--model", IMAGE_MODEL, "--checkpoint", file)
    outcome = predict(picture, *options)
    assert outcome.code == 2
    assert "do not fit" in outcome.err  # a reduced model is no official one: the message says what the file holds


# Windows


def test_windows_cover_every_frame_and_end_with_the_video():
    rng = np.random.default_rng(0)
    for _ in range(200):
        pts = np.cumsum(rng.uniform(0.01, rng.choice([0.1, 3.0]), rng.integers(1, 60))) + rng.uniform(-3, 3)
        duration = pts[-1] - pts[0] + 0.04
        window = float(rng.uniform(0.2, 5))
        step = window * float(rng.uniform(0.1, 1))
        found = window_frames(pts, duration, window, step)
        covered = {frame for _, _, first, last in found for frame in range(first, last + 1)}
        assert covered == set(range(len(pts)))
        for start, end, first, last in found:
            assert end - start <= window + 1e-9
            assert start - 1e-3 <= pts[first] - pts[0] <= pts[last] - pts[0] < end + 1e-3
        assert [start for start, *_ in found] == sorted({start for start, *_ in found})


def test_a_duration_of_years_has_windows_where_frames_are():
    assert len(window_frames(np.array([0.0, 1.0, 1e9]), 1e9 + 1, 10.0, 5.0)) <= 4


def test_each_window_is_predicted_as_a_video_of_its_own(predictor, long_video, tmp_path):
    with predictor.open(long_video) as video:
        found = list(predict_windows(predictor, video, window_seconds=1.0, step_seconds=1.0))
        frames = video.frames(range(video.num_frames))
    assert [(each.start_seconds, each.end_seconds) for each in found] == [(0, 1), (1, 2), (2, 3)]
    for number, window in enumerate(found):
        alone = predictor(frames[30 * number : 30 * (number + 1)], fps=30.0)
        np.testing.assert_array_equal(window.scores, alone.scores)
    mean = whole_video(found)
    np.testing.assert_allclose(mean.scores, np.mean([each.scores for each in found], 0), atol=1e-6)
    assert mean.start_seconds is None


def test_the_command_slides_over_long_videos_only(finished, data, long_video):
    words = (long_video, data / "test0.mp4", "--checkpoint", finished[0], *VIEWS)
    long, short = map(json.loads, tiny.done(predict(*words, "--json", "--window", 1, "--step", 0.5)).out.splitlines())
    assert [each["start_seconds"] for each in long["windows"]] == [0, 0.5, 1, 1.5, 2]
    assert "windows" not in short
    (whole, _) = map(json.loads, tiny.done(predict(*words, "--json")).out.splitlines())
    assert "windows" not in whole
    text = tiny.done(predict(*words, "--window", 1)).out
    assert "0:02.0 - 0:03.0" in text


def test_a_damaged_window_is_left_out_and_with_strict_the_whole_video(finished):
    words = (CLIPS / "bad" / "first_key_garbage.mp4", "--checkpoint", finished[0], "--views", "1x1", "--json")
    words = (*words, "--window", 0.6)
    (whole,) = map(json.loads, tiny.done(predict(*words)).out.splitlines())
    assert whole["error"] is None
    assert {window["error"] is None for window in whole["windows"]} == {True, False}
    outcome = predict(*words, "--strict")
    assert outcome.code == 3
    assert json.loads(outcome.out.splitlines()[0])["error"] is not None


@pytest.mark.parametrize(("options", "words"), [((0.1,), "the clip of the model"), ((1.0, 0.001), "a 100th")])
def test_windows_that_make_no_sense(options, words, predictor, long_video):
    with predictor.open(long_video) as video, pytest.raises(InputError, match=words):
        list(predict_windows(predictor, video, **dict(zip(("window_seconds", "step_seconds"), options))))


# Labelled videos


def test_a_labelled_video_has_all_frames_at_their_times(predictor, tmp_path):
    times = [0, 1, 2, 10, 11, 30, 31, 32, 60]
    source = write_video(tmp_path / "in.mp4", len(times), size=(256, 384), times=times)
    with open_video(source) as video:
        save_labelled_video(video, tmp_path / "sub" / "out.mp4", [predictor(source)])
        pts = video.pts - video.pts[0]
    with open_video(tmp_path / "sub" / "out.mp4", strict=True) as found:
        np.testing.assert_allclose(found.pts - found.pts[0], pts, atol=1e-4)
        assert (found.height, found.width) == (256, 384)
        written = found.frames(range(found.num_frames)).astype(np.int16)
    with open_video(source) as video:  # the lower half is free of text
        shown = video.frames(range(video.num_frames)).astype(np.int16)
    assert np.abs(written - shown)[:, 128:].mean() < 8


def test_the_text_is_drawn_in_its_corner_only():
    frame = np.full((256, 384, 3), 100, np.uint8)
    drawn = label_drawing(["99.0 %  swimming"], (256, 384))(frame)
    assert frame.min() == frame.max() == 100
    assert drawn[:30, :60].max() > 200  # letters
    assert drawn[:10, :10].min() < 50  # on dark ground
    np.testing.assert_array_equal(drawn[100:], frame[100:])
    label_drawing(["x" * 500, "<b>"], (64, 64))(np.zeros((64, 64, 3), np.uint8))  # cut off, not refused


def test_save_video_of_one_and_of_several(finished, data, long_video, tmp_path):
    words = ("--checkpoint", finished[0], *VIEWS, "--save-video")
    tiny.done(predict(long_video, *words, tmp_path / "one.mp4", "--window", 1))
    assert open_video(tmp_path / "one.mp4").num_frames == 90
    (tmp_path / "b").mkdir()
    other = write_video(tmp_path / "b" / "test0.mp4", 12, size=(32, 48))
    tiny.done(predict(data / "test0.mp4", other, *words, tmp_path / "all"))
    assert len(list((tmp_path / "all").glob("*.mp4"))) == 2
    refused = [(data / "test0.mp4", other, *words, tmp_path / "x.mp4"), (other, *words, tmp_path / "x.avi")]
    refused.append((other, *words, other))
    # The labelled video of the first has the name of the second, which is still to be read.
    refused.append((data / "test0.mp4", other, *words, tmp_path / "b"))
    for line in refused:
        assert predict(*line).code == 2
    with av.open(str(other)) as untouched:
        assert untouched.streams.video[0].frames == 12


def test_save_video_where_a_source_is_missing_and_names_meet(finished, tmp_path):
    words = ("--checkpoint", finished[0], *VIEWS, "--save-video")
    out = tmp_path / "v1.0"
    out.mkdir()
    sources = [tmp_path / name for name in ("a_2.mp4", "a.mp4", "b/a.mp4")]
    sources[2].parent.mkdir()
    for source in sources:
        write_video(source, 12, size=(32, 32))
    tiny.done(predict(*sources, *words, out))
    assert len(list(out.iterdir())) == 3
    outcome = predict(tmp_path / "missing.mp4", *words, out / "a.mp4")  # from an earlier call
    assert outcome.code == 2
    assert "could not be predicted" in outcome.err


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.96, 61.25, 3661)] == ["0:00.0", "1:00.0", "1:01.2", "1:01:01.0"]
