"""`revvideo convert`, and the weights that TRAIN and TEST of a config start from."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from tiny_models import tiny_mvit, tiny_rev_mvit

from revvideo import create_model, jobs
from revvideo.build.checkpoint_config import config_differences
from revvideo.cli.main import main
from revvideo.config import dump_config, load_config
from revvideo.errors import InputError
from revvideo.models.checkpoint_formats import read_weights, write_weights
from revvideo.models.qkv_layout import separate_qkv

NARROW = {"depth": 6, "embed_dim": 8, "input_size": (8, 32, 32)}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_there_and_back(tmp_path, capsys):
    state = tiny_rev_mvit().state_dict()
    start = write_weights(tmp_path / "start.pyth", state, epoch=4)
    assert main(["convert", str(start), str(tmp_path / "a.safetensors"), "--separate-qkv"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "start.pyth: pyslowfast, 120 tensors",
        "holds: reversible video network, 6 blocks, width 8",
        "written",
    ):
        assert part in shown
    assert "rev_backbone.layers.0.F.attn.q.weight" in read_weights(tmp_path / "a.safetensors").tensors
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.pyth"), "--fused-qkv"]) == 0
    assert same(read_weights(tmp_path / "b.pyth").tensors, state)
    assert main(["convert", str(start), str(tmp_path / "c.bin"), "--to", "pyslowfast"]) == 0
    assert read_weights(tmp_path / "c.bin").extra["epoch"] == 4
    assert same(read_weights(tmp_path / "c.bin").tensors, state)


def test_the_command_in_tools_is_the_same(tmp_path, monkeypatch, capsys):
    start = write_weights(tmp_path / "start.pyth", tiny_mvit().state_dict())
    tool = Path(__file__).resolve().parents[1] / "tools/convert.py"
    monkeypatch.setattr(sys, "argv", [str(tool), str(start), str(tmp_path / "a.safetensors")])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(tool), run_name="__main__")
    assert left.value.code == 0
    assert "a.safetensors: written" in capsys.readouterr().out


def test_the_weights_can_be_checked_against_a_model(tmp_path, capsys):
    start = write_weights(tmp_path / "vit.pyth", create_model("rev_vit_s", depth=1).state_dict())
    out = tmp_path / "out.pyth"
    assert main(["convert", str(start), str(out), "--model", "rev_vit_s"]) == 2
    assert "do not fit the model" in capsys.readouterr().err
    assert not out.exists()
    assert main(["convert", str(start), str(out), "--model", "rev_vit"]) == 2
    assert "did you mean 'rev_vit_" in capsys.readouterr().err


def test_weights_that_fit_are_reported(tmp_path, capsys):
    start = write_weights(tmp_path / "vit.pyth", create_model("rev_vit_s").state_dict())
    assert main(["convert", str(start), str(tmp_path / "o.safetensors"), "--model", "rev_vit_s", "--fused-qkv"]) == 0
    shown = capsys.readouterr().out
    assert "fits rev_vit_s: " in shown
    assert "72 converted" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.pyth", "out.pyth"], "no such checkpoint file"),
        (["start.pyth", "start.pyth"], "same file"),
        (["start.pyth", "out.onnx"], "expected one of pyslowfast, safetensors"),
        (["start.pyth", "start.pyth/out.pyth"], "cannot be written"),
        (["start.pyth", "/proc/out.pyth"], "cannot be written"),
        (["start.pyth", "/proc/out.safetensors"], "cannot be written"),
        (["start.pyth", "."], "is a folder"),
        ([".", "out.pyth"], "is a folder"),
    ],
)
def test_wrong_input(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_weights(tmp_path / "start.pyth", {"w": torch.ones(1)})
    assert main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["start.pyth"]


# The keys of a config


class Trainer(SimpleNamespace):
    """What `start_from_weights` needs of a trainer."""

    def load(self, state: dict, *, source: str) -> None:
        self.progress = state

    def restart_average(self) -> None:
        self.restarted = True


def started(path, model, **keys) -> Trainer:
    cfg = load_config("demo/REV_MVIT_DEMO", [item for name, value in keys.items() for item in (f"TRAIN.{name}", value)])
    trainer = Trainer(model=model, progress=None)
    trainer.state = trainer
    jobs.start_from_weights(cfg, trainer, str(path))
    return trainer


def test_a_run_goes_on_with_the_optimizer_unless_it_says_not_to(tmp_path):
    state = {name: tensor + 1 for name, tensor in tiny_rev_mvit().state_dict().items()}
    torch.save({"epoch": 3, "model_state": state, "optimizer_state": {"a": 1}}, tmp_path / "a.pyth")
    trainer = started(tmp_path / "a.pyth", tiny_rev_mvit())
    assert trainer.progress["epoch"] == 3
    assert trainer.progress["optimizer_state"] == {"a": 1}
    assert same(trainer.progress["model_state"], state)
    trainer = started(tmp_path / "a.pyth", tiny_rev_mvit(), CHECKPOINT_EPOCH_RESET=True)
    assert trainer.progress is None
    assert same(trainer.model.state_dict(), state)


def test_an_optimizer_is_not_taken_with_converted_weights(tmp_path):
    state = separate_qkv({name: tensor + 1 for name, tensor in tiny_rev_mvit().state_dict().items()})
    content = {"epoch": 3, "model_state": state, "optimizer_state": {"a": 1}}
    torch.save(content, tmp_path / "a.pyth")
    model = tiny_rev_mvit()
    with pytest.raises(InputError, match=r"optimizer state is of other tensors.*TRAIN.CHECKPOINT_EPOCH_RESET True"):
        started(tmp_path / "a.pyth", model)
    assert same(model.state_dict(), tiny_rev_mvit().state_dict())
    started(tmp_path / "a.pyth", model, CHECKPOINT_EPOCH_RESET=True)
    assert same(separate_qkv(model.state_dict()), state)


def test_the_config_in_a_checkpoint_is_compared(tmp_path, caplog):
    cfg = load_config("demo/REV_MVIT_DEMO")
    assert config_differences(cfg, yaml.safe_load(dump_config(cfg))) == []
    other = load_config("demo/REV_MVIT_DEMO", ["MVIT.NUM_HEADS", 2, "MVIT.REV.RES_PATH", "max", "SOLVER.BASE_LR", 3.0])
    mine = cfg.MVIT.NUM_HEADS
    differences = [("MVIT.NUM_HEADS", 2, mine), ("MVIT.REV.RES_PATH", "max", "conv")]
    assert config_differences(cfg, yaml.safe_load(dump_config(other))) == differences
    assert config_differences(cfg, {"MVIT": {"CLS_EMBED_ON": True}, "MODEL": None}) == []
    content = {"model_state": tiny_rev_mvit().state_dict()}
    for text, message in ((dump_config(other), "MVIT.NUM_HEADS 2 (here"), ("a: [", "cannot be read"), ("x", "cannot")):
        caplog.clear()
        torch.save({**content, "cfg": text}, tmp_path / "a.pyth")
        started(tmp_path / "a.pyth", tiny_rev_mvit(), CHECKPOINT_EPOCH_RESET=True)
        (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert message in warning


def test_fine_tuning_may_have_other_classes(tmp_path):
    path = write_weights(tmp_path / "a.pyth", tiny_rev_mvit().state_dict())
    with pytest.raises(InputError, match=r"TRAIN.CHECKPOINT_EPOCH_RESET True"):
        started(path, tiny_rev_mvit(num_classes=3))
    started(path, tiny_rev_mvit(num_classes=3), CHECKPOINT_EPOCH_RESET=True)


@pytest.mark.parametrize(("key", "factor"), [("CHECKPOINT_INFLATE", 1 / 3), ("CHECKPOINT_IN_INIT", 1.0)])
def test_image_checkpoints_are_inflated_as_the_config_says(tmp_path, key, factor):
    image = create_model("mvit_b", **NARROW | {"input_size": (1, 32, 32)}, num_classes=5)
    path = write_weights(tmp_path / "a.pyth", image.state_dict())
    model = create_model("mvit_b_16x4", **NARROW, num_classes=5)
    with pytest.raises(InputError, match=r"TRAIN.CHECKPOINT_INFLATE True"):
        started(path, model)
    trainer = started(path, model, **{key: True})
    kernel, flat = model.patch_embed.proj.weight, image.patch_embed.proj.weight
    torch.testing.assert_close(kernel[:, :, 1], flat * factor)
    assert trainer.progress is None
    with pytest.raises(InputError, match="keep one"):
        started(path, model, CHECKPOINT_INFLATE=True, CHECKPOINT_IN_INIT=True)


def test_parts_of_names_are_removed(tmp_path):
    state = tiny_rev_mvit().state_dict()
    path = write_weights(tmp_path / "a.pyth", {f"encoder.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(InputError, match="unexpected: encoder"):
        started(path, tiny_rev_mvit(), CHECKPOINT_EPOCH_RESET=True)
    keys = {"CHECKPOINT_CLEAR_NAME_PATTERN": ("encoder.",), "CHECKPOINT_EPOCH_RESET": True}
    assert same(started(path, tiny_rev_mvit(), **keys).model.state_dict(), state)
