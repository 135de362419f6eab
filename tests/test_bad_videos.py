"""Bad videos are named once in the log, each time in the diary, and too many of them end the training."""

import json

import pytest

from revvideo.engine.bad_videos import NAMED, BadVideos
from revvideo.engine.events import EventLog, read_events
from revvideo.errors import CheckFailed


@pytest.fixture
def events(tmp_path):
    with EventLog(tmp_path / "events.jsonl") as log:
        yield log


def test_each_is_recorded_and_named_once(events, caplog):
    videos = BadVideos(events, max_fraction=0.5, min_judged=100)
    for epoch in range(2):
        videos.add(4, [("a.mp4", "no such file")], [("b.mp4", "frame 3")], epoch)
    found = [(event["kind"], event["epoch"], event["path"], event["reason"]) for event in read_events(events.path)]
    bad, damaged = ("a.mp4", "no such file"), ("b.mp4", "frame 3")
    assert found == [(kind, epoch, *video) for epoch in (0, 1) for kind, video in zip(KINDS, (bad, damaged))]
    assert (videos.asked, videos.bad) == (8, 2)
    assert caplog.messages == [
        "unreadable video, another one taken: a.mp4: no such file",
        "damaged video, its good frames are used: b.mp4: frame 3",
    ]


KINDS = ("bad_video", "damaged_video")


def test_the_log_names_a_few_and_the_diary_all(events, caplog):
    videos = BadVideos(events, max_fraction=1.0, min_judged=1)
    videos.add(100, [(f"{number}.mp4", "gone") for number in range(60)], [], 0)
    assert len(caplog.messages) == NAMED < 60
    assert len(list(read_events(events.path))) == 60


@pytest.mark.parametrize(("asked", "num_bad", "stops"), [(100, 11, True), (100, 10, False), (99, 99, False)])
def test_too_many_stop_the_training_once_enough_were_asked_for(events, asked, num_bad, stops):
    videos = BadVideos(events, max_fraction=0.1, min_judged=100)
    bad = [(f"{number}.mp4", "gone") for number in range(num_bad)]
    if not stops:
        videos.add(asked, bad, [], 0)
        return
    with pytest.raises(CheckFailed) as raised:
        videos.add(asked, bad, [], 0)
    message = str(raised.value)
    assert "11 of 100 videos could not be read (11.0%); allowed are 10.0% (LOADER.MAX_BAD_FRACTION)" in message
    assert "The first: 0.mp4: gone; 1.mp4: gone; 2.mp4: gone. " in message
    assert message.endswith(f"{events.path} names each")
    assert len(list(read_events(events.path))) == 11  # also those of the step that ends it


def test_a_resumed_run_goes_on_counting(events):
    before = BadVideos(events, max_fraction=0.1, min_judged=100)
    before.add(95, [(f"{number}.mp4", "gone") for number in range(9)], [], 0)
    after = BadVideos(events, max_fraction=0.1, min_judged=100)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert (after.asked, after.bad) == (95, 9)
    after.add(4, [("x.mp4", "gone")], [], 1)
    with pytest.raises(CheckFailed, match=r"11 of 104 videos .*The first: 0\.mp4: gone; 1\.mp4"):
        after.add(5, [("y.mp4", "gone")], [], 1)


def test_other_processes_count_the_same_and_say_nothing(tmp_path, caplog):
    """Every process comes to the same end on the same lists; one of them logs."""
    with EventLog(tmp_path / "events.jsonl", enabled=False) as silent:
        videos = BadVideos(silent, max_fraction=0.1, min_judged=10)
        with pytest.raises(CheckFailed, match="2 of 10"):
            videos.add(10, [("a.mp4", "gone"), ("b.mp4", "gone")], [], 0)
    assert caplog.messages == []
    assert not silent.path.exists()


def test_nothing_asked_for_is_no_failure(events):
    BadVideos(events, max_fraction=0.0, min_judged=0).add(0, [], [], 0)
