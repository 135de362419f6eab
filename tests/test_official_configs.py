"""The official YAML files of the transformer family, and our own files with their values.

`data/official_configs.json` holds what PySlowFast's files say; they are written to YAML here as they stand there.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from config_checks import refused

from revvideo.config import KEYS, config_notes, list_shipped_configs, load_config, shipped_configs_dir
from revvideo.config.defaults import get_value

OFFICIAL = json.loads((Path(__file__).parent / "data/official_configs.json").read_text(encoding="utf-8"))
REV = "Kinetics/REV_MVIT_B_16x4_CONV"
COMPARED = ("MVIT", "MODEL", "DATA", "AUG", "MIXUP", "SOLVER", "BN", "TEST", "TRAIN")

# Where a shipped file differs from the official one (after loading), and why.
NOT_READ = "no effect, here or there: the file leaves it out, for a load without a note"
EXCEPTIONS = {
    "masked_ssl/k400_VIT_B_16x4_FT": {
        "TRAIN.BATCH_SIZE": "theirs is 1, which their 8 GPUs cannot share; ours is that of the ViT-L file",
        "DATA.DECODING_SHORT_SIZE": NOT_READ,
    },
    "masked_ssl/k400_VIT_L_16x4_FT": {"DATA.DECODING_SHORT_SIZE": NOT_READ},
    "masked_ssl/in1k_VIT_B_MaskFeat_FT": {"BN.USE_PRECISE_STATS": NOT_READ},
}
# SSv2 file -> Kinetics twin, and the keys of MVIT and MODEL in which they differ.
TWINS = {
    "SSv2/MVITv2_S_16x4": ("Kinetics/MVITv2_S_16x4", {"MODEL.NUM_CLASSES", "MVIT.DROPPATH_RATE"}),
    "SSv2/MVITv2_B_32x3": ("Kinetics/MVITv2_B_32x3", {"MODEL.NUM_CLASSES", "MVIT.DROPPATH_RATE"}),
    "SSv2/MVITv2_L_40x3": ("Kinetics/MVITv2_L_40x3_test", {"MODEL.NUM_CLASSES"}),
}


def as_yaml(tree: dict, indent: int = 0) -> str:
    """Block style with JSON's scalars: 1e-06, without a dot, is a string to PyYAML, as in the official files."""
    lines = []
    for name, value in tree.items():
        text = f"\n{as_yaml(value, indent + 2)}" if isinstance(value, dict) else f" {json.dumps(value)}\n"
        lines.append(f"{' ' * indent}{name}:{text}")
    return "".join(lines)


def leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(a, b, sections: tuple[str, ...]) -> set[str]:
    return {name for name in KEYS if name.split(".")[0] in sections and get_value(a, name) != get_value(b, name)}


@pytest.fixture(scope="module")
def official_file(tmp_path_factory):
    """name -> the official file, written once."""
    folder = tmp_path_factory.mktemp("official")

    def write(name: str) -> Path:
        file = folder / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(as_yaml(OFFICIAL[name]), encoding="utf-8")
        return file

    return write


def test_a_shipped_file_exists_for_each_official_one():
    assert len(OFFICIAL) == 19
    assert set(OFFICIAL) <= set(list_shipped_configs())


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_load_unchanged(official_file, name):
    cfg = load_config(official_file(name))
    notes = "\n".join(config_notes(cfg))
    changed = set()
    for key, value in leaves(OFFICIAL[name]):
        if key not in KEYS:
            assert key in notes, key
        elif get_value(cfg, key) != value:
            changed.add(key)
    assert changed <= {"DATA.DECODING_BACKEND", "MVIT.CLS_EMBED_ON"}
    assert ("MVIT.CLS_EMBED_ON" in changed) == (name == REV)
    assert cfg.DATA.DECODING_BACKEND == "pyav"


def test_numbers_without_a_dot_are_strings_to_pyyaml(official_file):
    file = official_file("ImageNet/REV_VIT_S")
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["SOLVER"]["WARMUP_START_LR"] == "1e-08"
    assert load_config(file).SOLVER.WARMUP_START_LR == 1e-8


def test_the_class_token_of_the_reversible_video_model_is_one_warning(official_file, caplog):
    with caplog.at_level(logging.WARNING, logger="revvideo.config"):
        cfg = load_config(official_file(REV))
    assert OFFICIAL[REV]["MVIT"]["CLS_EMBED_ON"] is True
    assert cfg.MVIT.CLS_EMBED_ON is False
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "MVIT.CLS_EMBED_ON: True -> False" in warnings[0]


@pytest.mark.parametrize("name", OFFICIAL)
def test_shipped_files_have_the_official_values(official_file, name):
    differing = differences(load_config(name), load_config(official_file(name)), COMPARED)
    assert differing == set(EXCEPTIONS.get(name, {}))


@pytest.mark.parametrize("name", list_shipped_configs())
def test_shipped_files_load_without_notes(name):
    """But on what does not exist yet."""
    for note in config_notes(load_config(name)):
        assert ": ignored: " in note
        ignored = note.partition(": ignored: ")[2].partition(" (")[0].split(", ")
        assert all(KEYS[key].is_missing for key in ignored), note


@pytest.mark.parametrize("name", TWINS)
def test_ssv2_models_differ_from_their_twins_only_where_the_file_says_so(name):
    twin, expected = TWINS[name]
    ssv2, kinetics = load_config(name), load_config(twin)
    assert differences(ssv2, kinetics, ("MVIT", "MODEL")) == expected
    assert (ssv2.MODEL.NUM_CLASSES, kinetics.MODEL.NUM_CLASSES) == (174, 400)
    for key in ("DATA.NUM_FRAMES", "DATA.TRAIN_CROP_SIZE"):
        assert get_value(ssv2, key) == get_value(kinetics, key)
    assert not ssv2.DATA.RANDOM_FLIP, "left and right are part of the classes"


def test_the_indentation_of_the_official_mvitv2_b_is_refused(tmp_path):
    lines = (shipped_configs_dir() / "ImageNet/MVITv2_B.yaml").read_text(encoding="utf-8").splitlines()
    row = next(index for index, line in enumerate(lines) if line == "  DROPPATH_RATE: 0.3")
    lines[row] = " DROPPATH_RATE: 0.3"
    file = tmp_path / "MVITv2_B.yaml"
    file.write_text("\n".join(lines), encoding="utf-8")
    with refused(f"{file}, line {row + 1}: is not YAML: ", "check the indentation of this line"):
        load_config(file)
