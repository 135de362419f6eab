"""`revvideo models`: a line for each model, or JSON; a pattern that matches nothing is wrong input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from revvideo import list_models
from revvideo.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_table(capsys):
    assert main(["models", "rev_vit_[sb]"]) == 0
    out, err = capsys.readouterr()
    header, *rows = out.splitlines()
    assert header.split("  ")[0] == "model"
    assert [row.split() for row in rows] == [
        ["rev_vit_b", "87.336", "17.49", "image", "224", "x", "224"],
        ["rev_vit_s", "22.435", "4.58", "image", "224", "x", "224"],
    ]
    assert len({len(line.rstrip()) for line in rows}) == 1
    assert err == ""


def test_without_flops_and_a_clip_as_input(capsys):
    assert main(["models", "mvitv2_b_32x3", "--no-flops"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert "GFLOPs" not in header
    assert row.split() == ["mvitv2_b_32x3", "51.230", "32", "x", "3", "224", "x", "224"]


def test_json(capsys):
    assert main(["models", "rev_vit_s", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert model == {
        "name": "rev_vit_s",
        "parameters": 22_434_664,
        "gflops": 4.5842,
        "image": True,
        "frames": 1,
        "stride": 1,
        "size": [224, 224],
    }


@pytest.mark.slow
def test_every_model_has_a_line(capsys):
    assert main(["models", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in models] == list_models()
    assert all(model["gflops"] > 0.1 for model in models)


def test_a_pattern_without_a_match_names_the_nearest(capsys):
    assert main(["models", "rev_vit_x"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("revvideo: error: no model matches 'rev_vit_x'; the nearest names are rev_vit_")


def test_the_script_of_the_checkout():
    command = [sys.executable, str(REPOSITORY / "tools/models.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: tools/models.py ")
