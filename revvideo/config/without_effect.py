"""Keys that a config sets although nothing acts on them in its mode: told, so that nobody waits for their effect."""

from __future__ import annotations

from collections.abc import Iterator

from fvcore.common.config import CfgNode

from revvideo.config.defaults import KEYS, get_value


def keys_without_effect(cfg: CfgNode) -> list[str]:
    """A note for each reason why keys that differ from their defaults do nothing in `cfg`."""
    notes = []
    for names, reason in _rules(cfg):
        changed = [name for name in names.split() if get_value(cfg, name) != KEYS[name].default]
        if changed:
            notes.append(f"without effect: {', '.join(changed)} ({reason})")
    return notes


def _rules(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """(names, reason) where the keys of `names` do nothing."""
    train, test = (_kind(cfg[section].DATASET) for section in ("TRAIN", "TEST"))
    if cfg.DATA_LOADER.NUM_WORKERS == 0:
        names = "LOADER.PREFETCH LOADER.START_METHOD LOADER.TIMEOUT_SECONDS"
        yield names, "DATA_LOADER.NUM_WORKERS is 0: there are no worker processes"
    if train == test == "imagenet":
        yield "LOADER.INDEX_CACHE LOADER.DECODE_SIZE", "TRAIN.DATASET imagenet has no videos"
    elif cfg.DATA.DECODING_BACKEND != "pyav":
        yield "LOADER.INDEX_CACHE", f"DATA.DECODING_BACKEND is {cfg.DATA.DECODING_BACKEND}: only pyav scans packets"
    if train != "kinetics":
        yield "DATA.TRAIN_JITTER_FPS", f"TRAIN.DATASET {train} takes no clips of a span"
    if test != "kinetics":
        yield "EVAL.VIEWS DATA.USE_OFFSET_SAMPLING", f"TEST.DATASET {test} takes no clips of a span"
    if "kinetics" not in (train, test):
        yield "LOADER.CLIP_SPAN", f"TRAIN.DATASET {train} takes no clips of a span"
    if train == "imagenet":
        yield "LOADER.AUGMENT_ORDER", "pictures are cropped first"
    elif not (cfg.AUG.ENABLE and cfg.AUG.AA_TYPE):
        yield "LOADER.AUGMENT_ORDER", "AUG asks for no RandAugment"
    if "imagenet" not in (train, test):
        yield "DATA.IN_VAL_CROP_RATIO", "it is of pictures"
    elif not cfg.AUG.ENABLE:
        yield "DATA.IN_VAL_CROP_RATIO", "AUG.ENABLE is False: the short side is DATA.TRAIN_CROP_SIZE, as in PySlowFast"
    if not cfg.TRAIN.ENABLE:
        yield "LOADER.MAX_BAD_FRACTION", "TRAIN.ENABLE is False; evaluation lists what it cannot read"
    yield from _run_rules(cfg)


def _run_rules(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """The same for the keys of machines, memory, checkpoints and what accompanies a run."""
    if cfg.NUM_GPUS > 0:
        yield "DIST.NUM_PROCESSES", f"NUM_GPUS is {cfg.NUM_GPUS}: each GPU has a process; set NUM_GPUS 0 for the CPU"
    if cfg.NUM_SHARDS == 1:
        yield "DIST.INIT_METHOD", "NUM_SHARDS is 1: one machine has nobody to meet"
    if not cfg.TENSORBOARD.ENABLE:
        yield "TENSORBOARD.LOG_DIR", "TENSORBOARD.ENABLE is False"
    if not cfg.TRAIN.ENABLE:
        names = (
            "RUN.ACCUMULATION_STEPS RUN.AUTO_BATCH_SIZE RUN.MEMORY_LIMIT_MIB RUN.CHECKPOINT_MINUTES "
            "RUN.KEEP_CHECKPOINTS RUN.ON_NAN FINETUNE.FREEZE"
        )
        yield names, "TRAIN.ENABLE is False: nothing is trained"
    elif not cfg.RUN.AUTO_BATCH_SIZE:
        yield "RUN.MEMORY_LIMIT_MIB", "RUN.AUTO_BATCH_SIZE is False: the parts of a step are not chosen by memory"
    if not cfg.TEST.ENABLE:
        names = "EVAL.FLUSH_VIDEOS EVAL.SAVE_VIEWS EVAL.STRICT TEST.SAVE_RESULTS_PATH"
        yield names, "TEST.ENABLE is False: there is no test"
    if not cfg.EMA.ENABLE:
        yield "EMA.DECAY", "EMA.ENABLE is False"


def _kind(name: str) -> str:
    """kinetics, ssv2 or imagenet; PySlowFast's ptv... are the same. Another name is refused where it is used."""
    return name.lower().removeprefix("ptv")
