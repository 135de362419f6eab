"""`revvideo benchmark evaluation`: both ways read the same views, and one of them opens each video once."""

import json

import pytest
import run_config
import tiny
import torch

from revvideo import build
from revvideo.benchmark import evaluation
from revvideo.benchmark.evaluation import EACH, ONCE, read_each, read_once


@pytest.mark.parametrize(("num_views", "num_crops"), [(3, 3), (1, 1)])
def test_both_ways_give_what_the_evaluation_reads(data, tmp_path, monkeypatch, num_views, num_crops):
    cfg = run_config.config(data, tmp_path, {"TEST.NUM_SPATIAL_CROPS": num_crops})
    dataset = build.build_test_dataset(cfg, num_views, build.build_manifest(cfg, "test"))
    opened, open_video = [], evaluation.open_video
    monkeypatch.setattr(evaluation, "open_video", lambda *args, **kw: opened.append(args) or open_video(*args, **kw))
    expected = dataset[3]["video"]
    for read, count in ((read_once, 1), (read_each, num_views)):
        opened.clear()
        assert torch.equal(read(dataset, 3), expected)
        assert len(opened) == count


def test_the_command(data, tmp_path):
    keys = tiny.overrides({"DATA.PATH_TO_DATA_DIR": data, "TEST.NUM_ENSEMBLE_VIEWS": 4})
    file = tmp_path / "figures.json"
    words = ["--cfg", "demo/REV_MVIT_DEMO", *keys, "--videos", 2, "--json", file]
    threads = torch.get_num_threads()
    outcome = tiny.done(tiny.command("benchmark", "evaluation", *words))
    torch.set_num_threads(threads)
    figures = json.loads(file.read_text())
    assert (figures["num_videos"], figures["num_views"], figures["num_crops"]) == (2, 4, 1)
    assert [row["what"] for row in figures["rows"]] == ["reading", "evaluation"]
    for row in figures["rows"]:
        assert row["ratio"] == pytest.approx(row["seconds"][EACH] / row["seconds"][ONCE])
    assert "2 videos, 4 temporal views x 1 crops" in outcome.out
    assert outcome.out.splitlines()[0].startswith("revvideo benchmark evaluation --cfg demo/REV_MVIT_DEMO")
