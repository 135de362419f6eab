"""What a merged config must satisfy, and the few values that are changed in it.

Both run once, in `load_config`. Each change is a note; everything that cannot work is a ConfigError here instead of a
crash later. What follows from other keys is computed where it is used (`batch.py` for the batch arithmetic).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from fvcore.common.config import CfgNode

from revvideo.config.batch import planned_processes
from revvideo.config.defaults import KEYS, get_value, set_value
from revvideo.config.values import ConfigError, check_value

# PySlowFast switches that mean another program: key -> (values that we accept, why).
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "DETECTION.ENABLE": ((False,), "revvideo classifies; it does not detect"),
    "MASK.ENABLE": ((False,), "masked pre-training is not supported; fine-tuning configs leave it off"),
    "MULTIGRID.SHORT_CYCLE": ((False,), "multigrid training is not supported"),
    "MULTIGRID.LONG_CYCLE": ((False,), "multigrid training is not supported"),
    "CONTRASTIVE.NUM_MLP_LAYERS": ((1,), "only the linear head exists"),
    "DATA.MULTI_LABEL": ((False,), "a video has one label"),
    "SOLVER.LARS_ON": ((False,), "LARS is not supported"),
}

# A fusion of the two streams that has weights; the groups are MULT and DROP.
_LINEAR_FUSION = re.compile(r"(?:ln\+)?concat_linear(?:_(\d+\.?\d*|\.\d+)(?:_(\d*\.?\d+))?)?")
# Where machines meet: HOST is a name, an IPv4 address, or an IPv6 address in brackets.
_MEETING_POINT = re.compile(r"tcp://(?:\[[0-9A-Fa-f:.%]+\]|[^\s/:\[\]]+):(\d{1,5})")
_FUSIONS = ("add", "max", "min", "avg", "concat")


def check_config(cfg: CfgNode, origin_of: Callable[[str], str]) -> None:
    """Check every value and every combination that the config alone can decide.

    Args:
        cfg: a complete tree whose values have their declared types.
        origin_of: dotted key -> file, "command line" or "defaults", for the messages.

    Raises:
        ConfigError: the first value or combination that cannot work.
    """
    for name, (allowed, reason) in _REFUSED.items():
        value = get_value(cfg, name)
        if value not in allowed:
            raise ConfigError(f"{origin_of(name)}: {name} is {value!r}; expected {allowed[0]!r}: {reason}")
    if cfg.TASK == "ssl":
        raise ConfigError(f"{origin_of('TASK')}: TASK is 'ssl'; expected '': self-supervised training is not supported")
    for key in KEYS.values():
        if not key.ignored:
            check_value(key, get_value(cfg, key.name), origin_of(key.name))
    _check_lists(cfg, origin_of)
    _check_machines(cfg, origin_of)
    _check_training(cfg, origin_of)
    if cfg.MODEL.MODEL_NAME == "MViT":
        _check_mvit_values(cfg, origin_of)
        _check_mvit_combinations(cfg, origin_of)


def _require(cfg: CfgNode, origin_of: Callable[[str], str], name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{origin_of(name)}: {name} is {get_value(cfg, name)!r}; expected {expected}")


def _check_lists(cfg: CfgNode, origin_of: Callable[[str], str]) -> None:
    require = partial(_require, cfg, origin_of)

    def is_range(values: list) -> bool:
        return len(values) == 2 and 0 < values[0] <= values[1]

    data = cfg.DATA
    channels = data.INPUT_CHANNEL_NUM
    require("DATA.INPUT_CHANNEL_NUM", bool(channels) and channels[0] >= 1, "at least one number, 1 or more")
    for name in ("DATA.MEAN", "DATA.STD"):
        expected = f"{channels[0]} numbers, one a channel (DATA.INPUT_CHANNEL_NUM)"
        require(name, len(get_value(cfg, name)) == channels[0], expected)
    require("DATA.STD", all(value > 0 for value in data.STD), "numbers > 0")
    require("DATA.TRAIN_JITTER_SCALES", is_range(data.TRAIN_JITTER_SCALES), "[smallest, largest], in pixels")
    for name in ("DATA.TRAIN_JITTER_SCALES_RELATIVE", "DATA.TRAIN_JITTER_ASPECT_RELATIVE"):
        values = get_value(cfg, name)
        require(name, not values or is_range(values), "[smallest, largest], or [] for no random resized crop")
    require(
        "DATA.TRAIN_JITTER_ASPECT_RELATIVE",
        bool(data.TRAIN_JITTER_ASPECT_RELATIVE) == bool(data.TRAIN_JITTER_SCALES_RELATIVE),
        "a range exactly where DATA.TRAIN_JITTER_SCALES_RELATIVE has one",
    )
    require("DATA.PATH_LABEL_SEPARATOR", bool(data.PATH_LABEL_SEPARATOR), "at least one character")
    offsets_and_end = data.USE_OFFSET_SAMPLING and cfg.EVAL.VIEWS == "to_end"
    require("EVAL.VIEWS", not offsets_and_end, "pyslowfast where DATA.USE_OFFSET_SAMPLING is True")
    views = cfg.TEST.NUM_TEMPORAL_CLIPS
    require("TEST.NUM_TEMPORAL_CLIPS", all(count >= 1 for count in views), "numbers of views, 1 or more each")
    betas = cfg.SOLVER.BETAS
    require("SOLVER.BETAS", len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "two numbers from 0 to below 1")
    for name in ("SOLVER.CLIP_GRAD_VAL", "SOLVER.CLIP_GRAD_L2NORM"):
        limit = get_value(cfg, name)
        require(name, limit is None or limit >= 0, "a number >= 0, or None for no clipping")


def _check_mvit_values(cfg: CfgNode, origin_of: Callable[[str], str]) -> None:
    """The form of the lists and strings of MVIT; that their blocks exist is checked where the blocks are planned."""
    require = partial(_require, cfg, origin_of)

    def are_whole(values: list, smallest: int) -> bool:
        return all(type(value) is int and value >= smallest for value in values)

    axes = 2 if cfg.MVIT.PATCH_2D else 3
    meaning = "H and W (MVIT.PATCH_2D True)" if axes == 2 else "T, H and W (MVIT.PATCH_2D False)"
    for name, smallest in (("MVIT.PATCH_KERNEL", 1), ("MVIT.PATCH_STRIDE", 1), ("MVIT.PATCH_PADDING", 0)):
        values = get_value(cfg, name)
        holds = len(values) == axes and are_whole(values, smallest)
        require(name, holds, f"{axes} numbers >= {smallest}, for {meaning}")
    for name in ("MVIT.POOL_KV_STRIDE_ADAPTIVE", "MVIT.POOL_KVQ_KERNEL"):
        values = get_value(cfg, name)
        require(name, not values or (len(values) == 3 and are_whole(values, 1)), "3 numbers >= 1, for T, H and W")
    for name in ("MVIT.POOL_Q_STRIDE", "MVIT.POOL_KV_STRIDE"):
        rows = get_value(cfg, name)
        holds = all(len(row) == 4 and are_whole(row[:1], 0) and are_whole(row[1:], 1) for row in rows)
        require(name, holds, "[block, T, H, W] entries: whole numbers, blocks from 0, strides from 1")
    for name in ("MVIT.DIM_MUL", "MVIT.HEAD_MUL"):
        holds = all(len(row) == 2 and are_whole(row[:1], 0) and row[1] > 0 for row in get_value(cfg, name))
        require(name, holds, "[block, factor] entries: blocks from 0, factors > 0")
    for name in ("MVIT.REV.RESPATH_FUSE", "MVIT.REV.PRE_Q_FUSION"):
        expected = (
            f"{', '.join(_FUSIONS)} or [ln+]concat_linear[_MULT[_DROP]], such as concat_linear_2 or "
            "ln+concat_linear_2_0.1: an MLP of the concatenated streams, MULT > 0 times as wide inside, with dropout "
            "DROP from 0 to below 1"
        )
        require(name, _is_fusion(get_value(cfg, name)), expected)


def _is_fusion(mode: str) -> bool:
    match = _LINEAR_FUSION.fullmatch(mode)
    if match is None:
        return mode in _FUSIONS
    return float(match[1] or 1) > 0 and float(match[2] or 0) < 1


def _check_mvit_combinations(cfg: CfgNode, origin_of: Callable[[str], str]) -> None:
    mvit = cfg.MVIT

    def refuse(name: str, other: str, expected: str) -> None:
        raise ConfigError(
            f"{origin_of(name)}: {name} is {get_value(cfg, name)!r}, and {other} is {get_value(cfg, other)!r} "
            f"({origin_of(other)}); expected {expected}"
        )

    if cfg.DATA.TRAIN_CROP_SIZE != cfg.DATA.TEST_CROP_SIZE:
        expected = "equal sizes: the positions of an MViT are made for one crop"
        refuse("DATA.TEST_CROP_SIZE", "DATA.TRAIN_CROP_SIZE", expected)
    if mvit.USE_FIXED_SINCOS_POS and mvit.SEP_POS_EMBED:
        expected = "one of the two: the sine-cosine positions are one table for all tokens"
        refuse("MVIT.USE_FIXED_SINCOS_POS", "MVIT.SEP_POS_EMBED", expected)
    if mvit.LAYER_SCALE_INIT_VALUE > 0 and mvit.REV.ENABLE:
        refuse("MVIT.LAYER_SCALE_INIT_VALUE", "MVIT.REV.ENABLE", "0: reversible blocks have no layer scale")


def _check_machines(cfg: CfgNode, origin_of: Callable[[str], str]) -> None:
    meeting_point = cfg.DIST.INIT_METHOD
    match = _MEETING_POINT.fullmatch(meeting_point)
    holds = not meeting_point or (match is not None and 1 <= int(match[1]) <= 65535)
    expected = "tcp://HOST:PORT of the first machine, such as tcp://node01:29500 (--init_method sets it), or ''"
    _require(cfg, origin_of, "DIST.INIT_METHOD", holds, expected)
    if cfg.SHARD_ID >= cfg.NUM_SHARDS:
        raise ConfigError(
            f"{origin_of('SHARD_ID')}: SHARD_ID is {cfg.SHARD_ID}; expected a number below NUM_SHARDS "
            f"({cfg.NUM_SHARDS}, {origin_of('NUM_SHARDS')}): machines are counted from 0"
        )


def _check_training(cfg: CfgNode, origin_of: Callable[[str], str]) -> None:
    solver = cfg.SOLVER
    expected = "a finite number of MiB, or 0 for what the device has"
    _require(cfg, origin_of, "RUN.MEMORY_LIMIT_MIB", math.isfinite(cfg.RUN.MEMORY_LIMIT_MIB), expected)
    if cfg.MIXUP.ENABLE and cfg.MODEL.LOSS_FUNC == "cross_entropy":
        raise ConfigError(
            f"{origin_of('MODEL.LOSS_FUNC')}: MODEL.LOSS_FUNC is 'cross_entropy' with MIXUP.ENABLE True "
            f"({origin_of('MIXUP.ENABLE')}); expected soft_cross_entropy: mixed labels are no class numbers"
        )
    if solver.LR_POLICY == "steps_with_relative_lrs":
        steps, rates = solver.STEPS, solver.LRS
        if not steps or steps[0] != 0 or len(steps) != len(rates) or sorted(set(steps)) != steps:
            raise ConfigError(
                f"{origin_of('SOLVER.STEPS')}: SOLVER.STEPS is {steps!r} and SOLVER.LRS is {rates!r}; expected two "
                "lists of equal length, STEPS rising from 0 (SOLVER.LR_POLICY steps_with_relative_lrs)"
            )
    starts_after = solver.LR_POLICY == "cosine" and solver.COSINE_AFTER_WARMUP
    if cfg.TRAIN.ENABLE and starts_after and solver.WARMUP_EPOCHS >= solver.MAX_EPOCH:
        raise ConfigError(
            f"{origin_of('SOLVER.WARMUP_EPOCHS')}: SOLVER.WARMUP_EPOCHS is {solver.WARMUP_EPOCHS}; expected less than "
            f"SOLVER.MAX_EPOCH ({solver.MAX_EPOCH}, {origin_of('SOLVER.MAX_EPOCH')}): with SOLVER.COSINE_AFTER_WARMUP "
            "the cosine starts after the warm-up"
        )


def normalise_config(cfg: CfgNode) -> list[tuple[int, str]]:
    """Change, in the unfrozen `cfg`, the values that mean something else here.

    Returns:
        (logging level, note) for each change.
    """
    notes = []

    def change(name: str, value: Any, reason: str, level: int) -> None:
        notes.append((level, f"{name}: {get_value(cfg, name)} -> {value}: {reason}"))
        set_value(cfg, name, value)

    if cfg.DATA.DECODING_BACKEND == "torchvision":
        change("DATA.DECODING_BACKEND", "pyav", "torchvision decodes no video any more", logging.INFO)
    if cfg.MVIT.REV.ENABLE and cfg.MVIT.CLS_EMBED_ON:
        reason = "reversible models (MVIT.REV.ENABLE) have no class token"
        change("MVIT.CLS_EMBED_ON", False, reason, logging.WARNING)
    if cfg.RUN.AUTO_BATCH_SIZE and cfg.RUN.ACCUMULATION_STEPS != 1:
        reason = "RUN.AUTO_BATCH_SIZE finds the number of parts itself; set it to False to decide"
        change("RUN.ACCUMULATION_STEPS", 1, reason, logging.WARNING)
    if cfg.MVIT.REV.ENABLE and cfg.REV.BACKPROP == "reversible" and cfg.REV.STAGE_DROPPATH == "output":
        fragile = (
            "REV.STAGE_DROPPATH output sets the streams of dropped samples to zero; LayerNorm then magnifies the "
            "rounding of the rebuilt ones, and gradients can be far off: use branches, or REV.BACKPROP plain"
        )
        notes.append((logging.WARNING, fragile))
    return notes


def batch_note(cfg: CfgNode) -> str:
    """A note where TRAIN.BATCH_SIZE does not divide among the processes of a machine, else "".

    Not an error here: an official fine-tuning file says 1 clip and 8 GPUs, and it must load. Training on so many
    processes is refused by `batch_plan`.
    """
    processes = planned_processes(cfg)
    if not cfg.TRAIN.ENABLE or cfg.TRAIN.BATCH_SIZE % processes == 0:
        return ""
    name, kind = ("NUM_GPUS", "GPUs") if cfg.NUM_GPUS else ("DIST.NUM_PROCESSES", "processes")
    return (
        f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} cannot be divided among {name} {processes}: "
        f"training on that many {kind} will be refused"
    )
