"""The config: PySlowFast's names, defaults and files; nothing dropped silently; one readable error for wrong input."""

import copy
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from config_checks import refused

from revvideo.config import (
    IGNORED_KEYS,
    KEYS,
    ConfigError,
    config_notes,
    default_config,
    dump_config,
    list_shipped_configs,
    load_config,
    shipped_configs_dir,
)
from revvideo.config.defaults import get_value
from revvideo.config.reference import main as reference_main
from revvideo.config.unused_keys import UNUSED_KEYS
from revvideo.errors import InputError

REPOSITORY = Path(__file__).parents[1]
REV = "Kinetics/REV_MVIT_B_16x4_CONV"
PLAIN = "Kinetics/MVIT_B_16x4_CONV"
# The least that makes PySlowFast's defaults a model of ours.
BASE = {"MODEL.MODEL_NAME": "MViT", "DATA.TEST_CROP_SIZE": 224}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def set_in(tree: dict, name: str, value: object) -> None:
    *sections, leaf = name.split(".")
    for part in sections:
        tree = tree.setdefault(part, {})
    tree[leaf] = value


def official(name: str) -> dict:
    """The official file's values: our shipped file, with what theirs says differently put back."""
    tree = yaml.safe_load((shipped_configs_dir() / f"{name}.yaml").read_text(encoding="utf-8"))
    tree["DATA"]["DECODING_BACKEND"] = "torchvision"
    tree["MVIT"]["CLS_EMBED_ON"] = True
    tree["AUG"]["RE_SPLIT"] = False
    return tree


# --- the tree ---------------------------------------------------------------------------------------------------------


def test_defaults_equal_pyslowfast():
    theirs = json.loads((REPOSITORY / "tests/data/pyslowfast_defaults.json").read_text())
    cfg = default_config()
    assert set(theirs) == {name for name, key in KEYS.items() if not key.ours}
    for name, value in theirs.items():
        ours = get_value(cfg, name)
        assert json.loads(json.dumps(ours)) == value, name
        assert type(json.loads(json.dumps(ours))) is type(value), name
    assert isinstance(cfg.SOLVER.BETAS, tuple)
    assert isinstance(cfg.TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN, tuple)


def test_own_keys_are_in_sections_of_their_own():
    pyslowfast_sections = {
        name.split(".")[0] for name in (*UNUSED_KEYS, *KEYS) if name not in KEYS or not KEYS[name].ours
    }
    own = {name.split(".")[0] for name, key in KEYS.items() if key.ours}
    assert own == {"REV", "INIT", "AMP", "RUN", "LOADER", "EVAL", "COMPILE", "EMA", "DIST", "FINETUNE"}
    assert not own & pyslowfast_sections
    assert not set(KEYS) & UNUSED_KEYS


def test_defaults_satisfy_their_own_kinds():
    from revvideo.config.values import check_value, decode_value

    for key in KEYS.values():
        decoded = decode_value(key, key.default, "defaults")
        assert type(decoded) is type(key.default), key.name
        if key.name != "MODEL.MODEL_NAME":  # PySlowFast's default is a model that we do not have
            check_value(key, decoded, "defaults")


def test_trees_do_not_share_lists():
    default_config().DATA.MEAN.append(1.0)
    assert default_config().DATA.MEAN == [0.45, 0.45, 0.45]


def test_reference_is_up_to_date(tmp_path, capsys):
    assert reference_main(["--check", str(REPOSITORY / "docs/config.md")]) == 0, "run the command that stderr names"
    assert reference_main(["--check", str(write(tmp_path / "old.md", "old"))]) == 1
    assert "python -m revvideo.config.reference" in capsys.readouterr().err


def test_imports_no_torch(tmp_path):
    code = "import sys; sys.modules['torch'] = None; import revvideo.config as c; c.load_config('MVIT_B_16x4_CONV')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY)})


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_shipped_configs())
def test_shipped_files_load(name):
    cfg = load_config(name)
    assert cfg.is_frozen()
    assert not [note for note in config_notes(cfg) if "->" in note], "a shipped file needs no change"


@pytest.mark.parametrize("name", [REV, PLAIN])
def test_official_files_load_unchanged(tmp_path, name):
    tree = official(name)
    assert isinstance(tree["SOLVER"]["COSINE_END_LR"], str), "PyYAML reads 1e-6 as a string: that is the point"
    cfg = load_config(write(tmp_path / "official.yaml", yaml.safe_dump(tree)))
    shipped = load_config(name)
    assert cfg == shipped
    assert cfg.SOLVER.COSINE_END_LR == 1e-6
    assert cfg.MVIT.POOL_Q_STRIDE == [[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]]
    notes = "\n".join(config_notes(cfg))
    assert "DATA.DECODING_BACKEND: torchvision -> pyav" in notes
    assert ("MVIT.CLS_EMBED_ON: True -> False" in notes) == (name == REV)
    assert "AUG.RE_SPLIT" in notes
    assert cfg.MVIT.CLS_EMBED_ON is (name == PLAIN)


def test_changes_and_ignored_keys_are_logged_once(tmp_path, caplog):
    file = write(tmp_path / "official.yaml", yaml.safe_dump(official(REV)))
    with caplog.at_level(logging.INFO, logger="revvideo.config"):
        cfg = load_config(file)
    messages = [record.getMessage() for record in caplog.records if record.name == "revvideo.config"]
    assert messages == [f"config: {note}" for note in config_notes(cfg)]
    assert len(set(messages)) == len(messages)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len([text for text in warnings if "CLS_EMBED_ON" in text]) == 1
    for name in ("DATA.DECODING_BACKEND", "AUG.RE_SPLIT"):
        assert sum(name in text for text in messages) == 1, name


def test_yaml_strings_become_values(tmp_path):
    text = """
MODEL: {MODEL_NAME: MViT}
DATA: {TEST_CROP_SIZE: 224, PATH_LABEL_SEPARATOR: ","}
MVIT:
  POOL_KVQ_KERNEL: (3, 7, 7)
  POOL_KV_STRIDE_ADAPTIVE: None
  DIM_MUL: [[1, 2.0], "(3, 2.0)"]
SOLVER:
  BASE_LR: 1e-4
  WARMUP_EPOCHS: 30
  BETAS: [0.9, 95e-2]
  LRS: [1, 1e-1]
  CLIP_GRAD_L2NORM: 1
  NESTEROV: "false"
OUTPUT_DIR: "123"
"""
    cfg = load_config(write(tmp_path / "a.yaml", text))
    assert cfg.MVIT.POOL_KVQ_KERNEL == [3, 7, 7]
    assert cfg.MVIT.POOL_KV_STRIDE_ADAPTIVE is None
    assert cfg.MVIT.DIM_MUL == [[1, 2.0], [3, 2.0]]
    assert cfg.SOLVER.BASE_LR == 1e-4
    assert type(cfg.SOLVER.WARMUP_EPOCHS) is float
    assert cfg.SOLVER.WARMUP_EPOCHS == 30
    assert cfg.SOLVER.BETAS == (0.9, 0.95)
    assert cfg.SOLVER.LRS == [1.0, 0.1]
    assert type(cfg.SOLVER.CLIP_GRAD_L2NORM) is float
    assert cfg.SOLVER.NESTEROV is False
    assert cfg.DATA.PATH_LABEL_SEPARATOR == ","
    assert cfg.OUTPUT_DIR == "123"


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("TRAIN: {BATCH_SIZE: many}", "TRAIN.BATCH_SIZE", "a whole number"),
        ("TRAIN: {BATCH_SIZE: 1.5}", "TRAIN.BATCH_SIZE", "a whole number"),
        ("TRAIN: {BATCH_SIZE: True}", "TRAIN.BATCH_SIZE", "a whole number"),
        ("TRAIN: {BATCH_SIZE: }", "TRAIN.BATCH_SIZE", "a whole number"),
        ("TRAIN: {ENABLE: 1}", "TRAIN.ENABLE", "True or False"),
        ("SOLVER: {BASE_LR: fast}", "SOLVER.BASE_LR", "a number"),
        ("SOLVER: {BASE_LR: .nan}", "SOLVER.BASE_LR", "a number"),
        ("SOLVER: {CLIP_GRAD_VAL: high}", "SOLVER.CLIP_GRAD_VAL", "a number or None"),
        ("DATA: {MEAN: 0.5}", "DATA.MEAN", "a list of numbers"),
        ("DATA: {MEAN: [a, b, c]}", "DATA.MEAN", "a list of numbers"),
        ("DATA: {PATH_PREFIX: }", "DATA.PATH_PREFIX", "a string"),
        ("OUTPUT_DIR: {A: 1}", "OUTPUT_DIR", "a string"),
        ("MVIT: {DIM_MUL: [1, 2]}", "MVIT.DIM_MUL", "a list of [block, number, ...] lists"),
        ("TRAIN: 3", "TRAIN", "is a section"),
    ],
)
def test_wrong_type_names_file_key_value_and_expectation(tmp_path, line, key, expected):
    file = write(tmp_path / "wrong.yaml", line)
    with refused(str(file), key, "is ", expected):
        load_config(file, BASE)


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("TRAIN.BATCHSIZE", "TRAIN.BATCH_SIZE"),
        ("SOLVR.BASE_LR", "SOLVER.BASE_LR"),
        ("SOLVER.EVAL_PERIOD", "TRAIN.EVAL_PERIOD"),
        ("train.enable", "TRAIN.ENABLE"),
        ("MVIT.REV.BUFFER_LAYER", "MVIT.REV.BUFFER_LAYERS"),
        ("REV.BACKPROB", "REV.BACKPROP"),
    ],
)
def test_unknown_key_names_file_key_and_nearest(tmp_path, written, nearest):
    tree: dict = {}
    set_in(tree, written, 1)
    file = write(tmp_path / "unknown.yaml", yaml.safe_dump(tree))
    with refused(str(file), f"unknown key {written}", f"nearest known key is {nearest}"):
        load_config(file)
    with refused("command line", f"unknown key {written}", f"nearest known key is {nearest}"):
        load_config(PLAIN, [written, "1"])
    assert issubclass(ConfigError, InputError)


def test_unused_keys_of_pyslowfast_are_accepted_and_listed(tmp_path):
    tree: dict = {"PREFETCH": {"NUM_LOADERS": 3}, "DEMO": None}
    for name in UNUSED_KEYS:
        if not name.startswith("DEMO."):
            set_in(tree, name, "anything")
    file = write(tmp_path / "unused.yaml", yaml.safe_dump(tree))
    cfg = load_config([file], BASE)
    (note,) = [note for note in config_notes(cfg) if str(file) in note]
    assert "PREFETCH.NUM_LOADERS" in note
    assert "SLOWFAST.ALPHA" in note
    assert "TENSORBOARD.MODEL_VIS.GRAD_CAM.ENABLE" in note
    assert "SLOWFAST" not in cfg
    assert not [text for text in config_notes(load_config(None, BASE)) if "ignored" in text]
    with refused("SLOWFAST.ALFA", "SLOWFAST.ALPHA"):
        load_config(None, {"SLOWFAST.ALFA": 1})


def test_ignored_keys_are_listed_only_when_set():
    assert "AUG.RE_SPLIT" in IGNORED_KEYS
    cfg = load_config(PLAIN, ["DIST_BACKEND", "gloo"])
    assert any("command line: ignored: DIST_BACKEND" in note for note in config_notes(cfg))
    assert not any("LOG_MODEL_INFO" in note for note in config_notes(cfg))


def test_duplicate_keys_last_wins_and_is_listed(tmp_path):
    text = "MODEL: {MODEL_NAME: MViT}\nDATA: {TEST_CROP_SIZE: 224}\nSOLVER:\n  BASE_LR: 1e-4\n  BASE_LR: 1e-5\n"
    cfg = load_config(write(tmp_path / "twice.yaml", text), ["NUM_GPUS", 0, "NUM_GPUS", 2])
    assert cfg.SOLVER.BASE_LR == 1e-5
    assert cfg.NUM_GPUS == 2
    assert any("BASE_LR stands twice" in note and "line 4" in note and "line 5" in note for note in config_notes(cfg))
    assert any("NUM_GPUS stands twice" in note for note in config_notes(cfg))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("MVIT:\n  NUM_HEADS: 1\n DROPPATH_RATE: 0.3\n", "line 3"),  # the fault of the official MVITv2_B
        ("MVIT:\n  NUM_HEADS: 1\n    DEPTH: 3\n", "line 3"),
        ("MVIT:\n\tDEPTH: 3\n", "line 2"),
        ("MVIT: {DEPTH: 3\n", "line 2"),
        ("A: !!python/object/apply:os.system [ls]\n", "line 1"),
    ],
)
def test_yaml_errors_name_file_line_and_reason(tmp_path, text, line):
    file = write(tmp_path / "broken.yaml", text)
    with refused(str(file), line, "is not YAML: "):
        load_config(file)


def test_files_that_are_no_mapping_or_unreadable(tmp_path):
    with refused("a.yaml", "holds a list"):
        load_config(write(tmp_path / "a.yaml", "- 1\n"))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00binary\x80")
    with refused("b.yaml", "cannot be read"):
        load_config(tmp_path / "b.yaml")
    with refused("dotted keys"):
        load_config(write(tmp_path / "c.yaml", "TRAIN.ENABLE: False\n"))
    with refused("is a folder"):
        load_config(tmp_path)


def test_base_files(tmp_path):
    write(tmp_path / "base.yaml", "MODEL: {MODEL_NAME: MViT}\nDATA: {TEST_CROP_SIZE: 224}\nNUM_GPUS: 4\n")
    child = write(tmp_path / "sub/child.yaml", "_BASE_: ../base.yaml\nNUM_GPUS: 2\n")
    assert load_config(child).NUM_GPUS == 2
    assert load_config(child).DATA.TEST_CROP_SIZE == 224
    with refused("leads back"):
        load_config(write(tmp_path / "circle.yaml", "_BASE_: circle.yaml\n"))
    with refused("no_base.yaml", "is no file"):
        load_config(write(tmp_path / "orphan.yaml", "_BASE_: no_base.yaml\n"))


def test_shipped_names(tmp_path, monkeypatch):
    wanted = load_config(REV)
    monkeypatch.chdir(tmp_path)
    for name in (f"{REV}.yaml", f"configs/{REV}.yaml", "REV_MVIT_B_16x4_CONV", "REV_MVIT_B_16x4_CONV.yaml"):
        assert load_config(name) == wanted
    write(tmp_path / REV, yaml.safe_dump({"NUM_GPUS": 3, "MODEL": {"MODEL_NAME": "SlowFast"}}))
    with refused("SlowFast"):  # a real path wins
        load_config(REV)


def test_ambiguous_and_missing_names(tmp_path, monkeypatch):
    from revvideo.config import shipped

    for folder in ("A", "B"):
        write(tmp_path / folder / "SAME.yaml", "")
    monkeypatch.setattr(shipped, "shipped_configs_dir", lambda: tmp_path)
    write(tmp_path / "launch/profile.yaml", "")
    assert shipped.list_shipped_configs() == ("A/SAME", "B/SAME")
    with refused("fits several", "A/SAME, B/SAME"):
        load_config("SAME")
    monkeypatch.undo()
    with refused("configs/Kinetics/REV_MVIT_B_16x4.yaml", "no such file", REV):
        load_config("configs/Kinetics/REV_MVIT_B_16x4.yaml")


# --- the loaded config ------------------------------------------------------------------------------------------------


def test_config_is_frozen_and_keeps_its_notes_through_copies(tmp_path):
    cfg = load_config(write(tmp_path / "official.yaml", yaml.safe_dump(official(REV))))
    with pytest.raises(AttributeError):
        cfg.TRAIN.BATCH_SIZE = 1
    notes = config_notes(cfg)
    assert notes
    for other in (cfg.clone(), copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg))):
        assert other == cfg
        assert config_notes(other) == notes
        assert other.is_frozen()
    assert config_notes(default_config()) == ()


@pytest.mark.parametrize("name", [REV, PLAIN])
def test_dump_loads_again_to_the_same_config(tmp_path, name):
    file = write(tmp_path / "official.yaml", yaml.safe_dump(official(name)))
    cfg = load_config(file, ["SOLVER.STEPS", "[0, 3]", "OUTPUT_DIR", "007", "SOLVER.WARMUP_START_LR", "1e-9"])
    text = dump_config(cfg)
    again = load_config(write(tmp_path / "config.yaml", text))
    assert again == cfg
    assert again.SOLVER.BETAS == (0.9, 0.999)
    assert again.OUTPUT_DIR == "007"
    assert "# DATA.DECODING_BACKEND: torchvision -> pyav" in text
    assert not [note for note in config_notes(again) if "->" in note], "normalised once"
    tree = yaml.safe_load(text)
    for key in KEYS.values():
        if not key.ignored:
            node = tree
            for part in key.name.split("."):
                node = node[part]  # fully resolved: every key that does something is there
