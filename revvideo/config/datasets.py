"""Which data sets a config names, as arguments of the list reader. No torch: the launcher looks for the lists too."""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode

from revvideo.config.values import ConfigError

# TRAIN.DATASET and TEST.DATASET in small letters -> what it is. PySlowFast's ptv... are the same lists, read otherwise.
DATASETS = {
    "kinetics": "kinetics",
    "ptvkinetics": "kinetics",
    "ssv2": "ssv2",
    "ptvssv2": "ssv2",
    "imagenet": "imagenet",
}


def dataset_kind(cfg: CfgNode, split: str) -> str:
    """kinetics, ssv2 or imagenet: TEST.DATASET for the split test, else TRAIN.DATASET.

    Raises:
        ConfigError: another name.
    """
    section = _section(split)
    name = cfg[section].DATASET
    if name.lower() not in DATASETS:
        raise ConfigError(f"{section}.DATASET is {name!r}; expected kinetics, ssv2 or imagenet")
    return DATASETS[name.lower()]


def needed_splits(cfg: CfgNode) -> list[str]:
    """The splits that the jobs of a config read: train and val of a training, test of an evaluation."""
    splits = ["train"] if cfg.TRAIN.ENABLE else []
    if cfg.TRAIN.ENABLE and cfg.TRAIN.EVAL_PERIOD <= cfg.SOLVER.MAX_EPOCH:
        splits.append("val")
    return splits + (["test"] if cfg.TEST.ENABLE else [])


def list_arguments(cfg: CfgNode, split: str) -> dict[str, Any]:
    """Arguments of `revvideo.data.manifest.read_split` for a split of DATA.PATH_TO_DATA_DIR.

    Raises:
        ConfigError: the keys do not say which list to read.
    """
    kind = dataset_kind(cfg, split)
    if not cfg.DATA.PATH_TO_DATA_DIR:
        raise ConfigError(
            f"DATA.PATH_TO_DATA_DIR is empty; set it to the folder that holds {split}.csv, one 'path label' a line, or "
            "the data set in another of the formats of docs/data.md"
        )
    if cfg.DATA.INPUT_CHANNEL_NUM[0] != 3:
        raise ConfigError(
            f"DATA.INPUT_CHANNEL_NUM is {cfg.DATA.INPUT_CHANNEL_NUM}; expected [3]: videos and pictures are read as RGB"
        )
    format = cfg.LOADER.LIST_FORMAT
    return {
        "root": cfg.DATA.PATH_TO_DATA_DIR,
        "split": split,
        "format": "imagenet" if kind == "imagenet" and format == "auto" else format,
        "prefix": cfg.DATA.PATH_PREFIX,
        "separator": cfg.DATA.PATH_LABEL_SEPARATOR,
        "num_classes": cfg.MODEL.NUM_CLASSES,
        "video_folder": cfg.LOADER.VIDEO_FOLDER,
        "class_file": cfg.LOADER.CLASS_FILE,
        "seed": cfg.RNG_SEED,
    }


def check_list_kind(cfg: CfgNode, split: str, manifest_kind: str, source: str) -> None:
    """Refuse pictures where videos are expected, and the other way round.

    Args:
        cfg, split: whose list it is.
        manifest_kind, source: what was found, and in which list or folder.

    Raises:
        ConfigError: as said.
    """
    if (manifest_kind == "image") == (dataset_kind(cfg, split) == "imagenet"):
        return
    section = _section(split)
    found = "pictures" if manifest_kind == "image" else "videos"
    raise ConfigError(
        f"{section}.DATASET is {cfg[section].DATASET!r}, but {source} holds {found}; expected "
        f"{'imagenet' if manifest_kind == 'image' else 'kinetics or ssv2'}, or another LOADER.LIST_FORMAT"
    )


def _section(split: str) -> str:
    return "TEST" if split == "test" else "TRAIN"
