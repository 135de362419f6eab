"""Fine-tuning by configs: the shipped ones, and a tiny run with a frozen part from a checkpoint of other classes."""

from pathlib import Path

import pytest
import tiny
import torch

from revvideo import build, load_config
from revvideo.config import list_shipped_configs
from revvideo.config.batch import batch_plan
from revvideo.config.defaults import KEYS, get_value
from revvideo.engine.checkpoint import load_checkpoint
from revvideo.engine.freezing import freeze
from revvideo.engine.train_step import TrainStep

CONFIGS = {  # -> the config that made the checkpoint
    "finetune/REV_MVIT_B_16x4_FT": "Kinetics/REV_MVIT_B_16x4_CONV",
    "finetune/REV_MVIT_B_16x4_LINEAR": "Kinetics/REV_MVIT_B_16x4_CONV",
    "finetune/REV_MVIT_DEMO_FT": "demo/REV_MVIT_DEMO",
}
NUM_NEW_CLASSES = 3


# --- shipped configs --------------------------------------------------------------------------------------------------


def test_every_shipped_config_for_fine_tuning_is_tested_here():
    assert {name for name in list_shipped_configs() if name.startswith("finetune/")} == set(CONFIGS)


@pytest.mark.parametrize(("name", "base"), CONFIGS.items())
def test_weights_of_the_base_fit(name, base):
    """All but the classifier, when the classes are one's own."""
    with torch.device("meta"):
        pretrained = build.build_model(load_config(base))
        model = build.build_model(load_config(name, ["MODEL.NUM_CLASSES", NUM_NEW_CLASSES]))
    theirs, ours = ({key: t.shape for key, t in each.state_dict().items()} for each in (pretrained, model))
    assert theirs.keys() == ours.keys()
    assert {key for key in ours if ours[key] != theirs[key]} == {"head.projection.weight", "head.projection.bias"}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_configs_train(name):
    cfg = load_config(name)
    assert cfg.TRAIN.CHECKPOINT_EPOCH_RESET
    linear = name.endswith("LINEAR")
    assert [("stem", "backbone")[linear]] == cfg.FINETUNE.FREEZE
    with torch.device("meta"):
        model = build.build_model(cfg)
    stem, *blocks, head = model.layer_groups()
    assert set(freeze(model, cfg.FINETUNE.FREEZE).parameters) >= set(stem)
    groups = build.build_optimizer(cfg, model, batch_plan(cfg)).param_groups
    trained = {parameter: group["layer_decay"] for group in groups for parameter in group["names"]}
    assert trained["head.projection.weight"] == 1.0
    if linear:
        assert set(trained) == {"head.projection.weight", "head.projection.bias"}
    else:
        assert set(trained) == {parameter for layer in (*blocks, head) for parameter in layer}
        assert trained[blocks[0][0]] == pytest.approx(cfg.SOLVER.LAYER_DECAY ** len(blocks))


@pytest.mark.parametrize(("name", "base"), CONFIGS.items())
def test_clips_are_those_that_the_weights_have_learned(name, base):
    """Size, span, colours and positions; only what trains may differ."""
    cfg, other = load_config(name), load_config(base)
    differing = {key for key in KEYS if get_value(cfg, key) != get_value(other, key)}
    assert not {key for key in differing if key.startswith(("DATA.", "TEST.", "REV.", "INIT."))}
    assert {key for key in differing if key.startswith("MVIT.")} <= {"MVIT.DROPPATH_RATE", "MVIT.HEAD_INIT_SCALE"}


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory) -> Path:
    """A checkpoint of the tiny model, of its six classes."""
    folder = tmp_path_factory.mktemp("pretrained")
    tiny.done(tiny.run_net(data, folder, tiny.TRAIN_ONLY))
    return folder / "checkpoints/checkpoint_epoch_00001.pyth"


@pytest.fixture(scope="module")
def own_data(data, tmp_path_factory) -> Path:
    """The same videos, in three classes."""
    root = tmp_path_factory.mktemp("own")
    for split in ("train", "val", "test"):
        rows = (line.rsplit(maxsplit=1) for line in (data / f"{split}.csv").read_text(encoding="utf-8").splitlines())
        tiny.write_list(root / f"{split}.csv", ((str(data / path), int(label) % 3) for path, label in rows))
    return root


def fine_tune(own_data: Path, pretrained: Path, folder: Path, **keys) -> tiny.Outcome:
    own = {
        "DATA.PATH_TO_DATA_DIR": own_data,
        "OUTPUT_DIR": folder,
        "TRAIN.CHECKPOINT_FILE_PATH": pretrained,
        "MODEL.NUM_CLASSES": NUM_NEW_CLASSES,
        "SOLVER.BASE_LR": 1e-2,
    }
    words = tiny.overrides(own, {"MVIT.DROPPATH_RATE": 0.3}, keys)
    return tiny.command("run_net", "--cfg", "finetune/REV_MVIT_DEMO_FT", *words)


def changed(before: dict, after: dict) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


def test_a_run_with_a_frozen_stem_and_its_resumption(data, own_data, pretrained, tmp_path):
    outcome = tiny.done(fine_tune(own_data, pretrained, tmp_path))
    assert "top-1" in outcome.err
    before = load_checkpoint(pretrained)["model_state"]
    first = load_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth")
    classifier = {"head.projection.weight", "head.projection.bias"}
    assert {name for name, tensor in before.items() if tensor.shape != first["model_state"][name].shape} == classifier
    with torch.device("meta"):
        model = build.build_model(load_config(tmp_path / "config.yaml"))
    rest = set(model.state_dict()) - set(model.layer_groups()[0])
    shared = {name: tensor for name, tensor in first["model_state"].items() if name not in classifier}
    assert changed(before, shared) == rest - classifier
    optimized = {name for group in first["optimizer_state"]["param_groups"] for name in group["names"]}
    assert optimized == rest

    resumed = tiny.done(fine_tune(own_data, pretrained, tmp_path, **{"SOLVER.MAX_EPOCH": 2}))
    assert f"weights from {pretrained}" not in resumed.err, "the run's own checkpoint comes first"
    second = load_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_00002.pyth")["model_state"]
    assert changed(first["model_state"], second) == rest


def test_a_linear_probe(own_data, pretrained, tmp_path):
    keys = {"FINETUNE.FREEZE": ["backbone"], "SOLVER.LAYER_DECAY": 1.0}
    tiny.done(fine_tune(own_data, pretrained, tmp_path, **keys))
    before = load_checkpoint(pretrained)["model_state"]
    after = load_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_00001.pyth")["model_state"]
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert before.keys() - same == {"head.projection.weight", "head.projection.bias"}


def test_frozen_parts_compute_as_in_evaluation_in_every_step(own_data, pretrained, tmp_path, monkeypatch):
    """After a validation, too."""
    update, training = TrainStep.update, []

    def noted(step, *args, **kwargs):
        training.append({name for name, module in step.model.named_modules() if module.training})
        update(step, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "update", noted)
    keys = {"FINETUNE.FREEZE": ["backbone"], "SOLVER.LAYER_DECAY": 1.0, "SOLVER.MAX_EPOCH": 2, "TEST.ENABLE": False}
    tiny.done(fine_tune(own_data, pretrained, tmp_path, **keys))
    assert len(training) == 4
    assert all("head.projection" in names for names in training)
    assert not [name for names in training for name in names if name.startswith(("patch_embed", "rev_backbone"))]


def test_a_frozen_part_that_does_not_exist_is_wrong_input(own_data, pretrained, tmp_path):
    outcome = fine_tune(own_data, pretrained, tmp_path, **{"FINETUNE.FREEZE": ["blocks.0"]})
    assert outcome.code == 2
    assert "FINETUNE.FREEZE names 'blocks.0'" in outcome.err
    assert "Traceback" not in outcome.err


def test_frozen_parts_without_weights_to_keep_are_refused_before_anything_is_read(own_data, tmp_path):
    keys = {"FINETUNE.FREEZE": ["stem"], "DATA.PATH_TO_DATA_DIR": tmp_path / "nowhere"}
    outcome = tiny.run_net(own_data, tmp_path / "run", keys)
    assert outcome.code == 2
    assert "there are no weights to keep: set TRAIN.CHECKPOINT_FILE_PATH" in outcome.err
