"""Weights into a model: strictly, all or nothing, with a report of every tensor that did not go in as it was.

Always done, because nothing is lost: a fused ``qkv`` is split into ``q``, ``k``, ``v`` or the other way round, and
separate tables for space and time are added up to a joint one. Everything else needs a permission (`PERMISSIONS`).
"""

import dataclasses
import itertools
import logging
import math
import os
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from revvideo.errors import InputError
from revvideo.models.fitting import INFLATIONS, PERMISSIONS, Fitting
from revvideo.models.fixed_positions import fixed_table
from revvideo.models.infer_architecture import (
    Architecture,
    architecture_of,
    architecture_overrides,
    find_overrides,
    read_architecture,
)
from revvideo.models.resize_positions import Grid
from revvideo.models.weights_file import Weights, read_weights, without_wrappers

logger = logging.getLogger(__name__)

LISTED = 8
# Permission -> the config key that gives it to TRAIN.CHECKPOINT_FILE_PATH.
_KEYS = {
    "head": "TRAIN.CHECKPOINT_EPOCH_RESET",
    "interpolate": "TRAIN.CHECKPOINT_EPOCH_RESET",
    "inflate": "TRAIN.CHECKPOINT_INFLATE",
}
# Argument of a builder -> config key; separate_qkv is not here, because loading converts it.
_OVERRIDE_KEYS = {
    "num_classes": "MODEL.NUM_CLASSES",
    "depth": "MVIT.DEPTH",
    "class_token": "MVIT.CLS_EMBED_ON",
    "qkv_bias": "MVIT.QKV_BIAS",
    "pre_q_fusion": "MVIT.REV.PRE_Q_FUSION",
    "respath_fuse": "MVIT.REV.RESPATH_FUSE",
    "in_channels": "DATA.INPUT_CHANNEL_NUM",
    "positions": "MVIT.USE_ABS_POS, MVIT.SEP_POS_EMBED, MVIT.USE_FIXED_SINCOS_POS",
}


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of each tensor; every entry is a name, where useful followed by what was done.

    Args:
        source: the file.
        format: its format.
        matched: loaded as they are.
        converted: the same numbers in another layout or dtype, and what was renamed or left out while reading.
        interpolated: position tables resized to another grid.
        inflated: tensors of an image network extended over time.
        skipped: tensors of the head that stay at their initial values, and tensors of the file that are not used.
    """

    source: str
    format: str
    matched: list[str] = dataclasses.field(default_factory=list)
    converted: list[str] = dataclasses.field(default_factory=list)
    interpolated: list[str] = dataclasses.field(default_factory=list)
    inflated: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether every number of the file went in unchanged; fixed positions, which are computed, aside.

        What a file cannot tell (docs/checkpoints.md) may still differ, such as the number of heads.
        """
        return not (self.interpolated or self.inflated or self.skipped)

    def __str__(self) -> str:
        lines = [f"weights of {self.source} ({self.format}): {len(self.matched)} tensors match"]
        for kind in ("converted", "interpolated", "inflated", "skipped"):
            entries = getattr(self, kind)
            if entries:
                lines.append(f"  {len(entries)} {kind}: {_some(entries)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    weights: Weights | Mapping[str, Tensor] | str | os.PathLike,
    *,
    allow: Collection[str] = (),
    inflation: str = "mean",
    source_grid: Grid | None = None,
) -> LoadReport:
    """Load weights into ``model``; on an error nothing of it has changed.

    Args:
        model: a network, wrapped in DDP or not; for interpolation it has a ``grid`` (T, H, W) of tokens.
        weights: a file, what `read_weights` returned, or a state dict.
        allow: exceptions from strictness:

            - ``"head"``: a classifier that is missing or of other classes keeps its initial values; decoder and
              prediction heads of pre-training are left out.
            - ``"interpolate"``: position tables of another length are interpolated.
            - ``"inflate"``: an image network's kernels and tables are extended over time.
        inflation: ``"mean"``: a kernel is repeated over time and divided by the repeats (TRAIN.CHECKPOINT_INFLATE), so
            that a still clip gives what the image gave, but at its ends; ``"repeat"``: not
            divided (TRAIN.CHECKPOINT_IN_INIT).
        source_grid: tokens along (T, H, W) of the file's network, for tables whose length does not tell them.

    Returns:
        The report, which is logged, too: as a warning unless it is `LoadReport.exact`.

    Raises:
        ValueError: an unknown permission or inflation, or a source_grid that is no three numbers.
        InputError: a tensor is missing, unexpected or of another shape; with what the file holds and what loads it.
    """
    report, state = fit_weights(model, weights, allow=allow, inflation=inflation, source_grid=source_grid)
    unwrapped(model).load_state_dict(state)
    logger.log(logging.INFO if report.exact else logging.WARNING, "%s", report)
    return report


def fit_weights(
    model: nn.Module,
    weights: Weights | Mapping[str, Tensor] | str | os.PathLike,
    *,
    allow: Collection[str] = (),
    inflation: str = "mean",
    source_grid: Grid | None = None,
) -> tuple[LoadReport, dict[str, Tensor]]:
    """What `load_weights` would load, as a whole state dict, and its report; the model may be without memory (meta)."""
    _check_arguments(allow, inflation, source_grid)
    network = unwrapped(model)
    target = network.state_dict()
    if isinstance(weights, str | os.PathLike):
        weights = read_weights(weights)
    elif not isinstance(weights, Weights):
        tensors = dict(weights) if weights.keys() == target.keys() else without_wrappers(weights)
        weights = Weights(tensors, "tensors", "the state dict given", tensors)
    tensors, notes = _under_names_of(target, weights)
    arguments = _fitting_arguments(network) | {
        "inflation": inflation,
        "source_grid": tuple(source_grid) if source_grid else _known_grid(tensors),
    }
    fitting = Fitting(tensors, target, allow=frozenset(allow), **arguments)
    if not fitting.fits:
        ways = _more_permissions(allow)
        enough = next((way for way in ways if Fitting(tensors, target, allow=way, **arguments).fits), None)
        raise InputError(_refusal(weights, tensors, network, fitting, enough))
    report = LoadReport(weights.source, weights.format, converted=notes, skipped=list(fitting.unused))
    for name, tensor in fitting.fitted.items():
        kind, how = fitting.changes.get(name, ("matched", ""))
        if kind == "matched" and tensor.dtype != target[name].dtype:
            kind, how = "converted", f"{tensor.dtype} -> {target[name].dtype}"
        getattr(report, kind).append(f"{name} ({how})" if how else name)
    return report, {**target, **fitting.fitted}


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of DDP and torch.compile."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model


def _check_arguments(allow: Collection[str], inflation: str, source_grid: Grid | None) -> None:
    if isinstance(allow, str):
        raise ValueError(f'allow is {allow!r}, a string; pass a set, such as {{"{allow}"}}')
    if not set(allow) <= set(PERMISSIONS):
        raise ValueError(f"allow is {sorted(allow)}; expected some of {', '.join(PERMISSIONS)}")
    if inflation not in INFLATIONS:
        raise ValueError(f"inflation is {inflation!r}; expected one of {', '.join(INFLATIONS)}")
    if source_grid is not None and (len(source_grid) != 3 or any(n < 1 for n in source_grid)):
        raise ValueError(f"source_grid is {source_grid!r}; expected three numbers from 1, the tokens along (T, H, W)")


def _under_names_of(target: Mapping[str, Tensor], weights: Weights) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the names of the model, and the notes on it: the file's own, or PySlowFast's.

    PySlowFast's wrappers of pytorchvideo's networks put ``model.`` before all names.
    """
    if weights.file_tensors.keys() == target.keys():  # a model that has the file's own names, such as a baseline
        return dict(weights.file_tensors), []
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.file_tensors.items()}
    if bare.keys() == target.keys() and len(bare) == len(weights.file_tensors):
        return bare, ["the prefix model. removed from all names"]
    return dict(weights.tensors), list(weights.notes)


def _fitting_arguments(network: nn.Module) -> dict:
    """What `Fitting` asks of a model."""
    grid, positions = getattr(network, "grid", None), str(getattr(network, "positions", ""))
    fixed = None
    if positions.startswith("sincos"):
        fixed = fixed_table(grid, network.pos_embed.shape[-1], int(network.cls_token is not None))
    return {"grid": grid, "head": _head_names(network), "fixed": fixed}


def _known_grid(tensors: Mapping[str, Tensor]) -> Grid | None:
    """The grid of a file's joint table where something else in the file tells it."""
    held, table = read_architecture(tensors), tensors.get("pos_embed")
    if held is None or table is None or None in held.grid:
        return None
    return held.grid if math.prod(held.grid) == table.shape[1] - held.class_token else None


def _head_names(model: nn.Module) -> set[str]:
    """Names of the classifier's parameters, in the model and in PySlowFast's files."""
    names = {"head.projection.weight", "head.projection.bias"}
    if hasattr(model, "get_classifier"):
        classifier = model.get_classifier()
        for prefix, module in model.named_modules():
            if module is classifier:
                names |= {f"{prefix}.{name}" for name, _ in classifier.named_parameters()}
    return names


def _more_permissions(allow: Collection[str]) -> list[frozenset[str]]:
    """Sets of permissions with more than ``allow``, small ones first."""
    missing = [permission for permission in PERMISSIONS if permission not in allow]
    return [
        frozenset(allow) | set(more)
        for number in range(1, len(missing) + 1)
        for more in itertools.combinations(missing, number)
    ]


def _refusal(
    weights: Weights,
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    fitting: Fitting,
    enough: frozenset[str] | None,
) -> str:
    """The message for weights that do not fit: the differences, what the file holds, and what loads it.

    ``enough``: permissions with which they would fit, if there are any.
    """
    target = network.state_dict()
    kind = type(network).__name__
    lines = [f"{weights.source}: the weights do not fit the model ({len(tensors)} tensors; {kind} has {len(target)})"]
    for difference, entries in fitting.differences().items():
        if entries:
            lines.append(f"  {len(entries)} {difference}: {_some(entries)}")
    lines += [f"  {problem}" for problem in fitting.problems]
    held, built = read_architecture(tensors), architecture_of(network)
    if held is not None:
        lines.append(f"  The file holds a {held}.")
    if built is not None:
        lines.append(f"  The model is a {built}.")
    if fitting.pretraining:
        lines.append(
            f"  {len(fitting.pretraining)} tensors are of a pre-training network (MAE, MaskFeat: decoder, prediction "
            'head, mask token); allow={"head"} leaves them out.'
        )
    unknown = [] if held is None else _unknown_size(held, tensors, target)
    if enough is None and not unknown:
        lines.append("  It is a checkpoint of another architecture.")
    elif enough is not None:
        covered = {"interpolate"} if "inflate" in enough else set()  # by the key of the inflation
        keys = sorted({f"{_KEYS[permission]} True" for permission in enough - fitting.allow - covered})
        lines.append(f"  allow={_set(enough)} loads it (in a config: {', '.join(keys)}).")
    lines += unknown
    if held is not None and built is not None:
        lines += _differences_in_words(held, built)
        if enough is None or architecture_overrides(held, built):
            lines += _call_that_loads(weights, held, built)
    return "\n".join(lines)


def _differences_in_words(held: Architecture, built: Architecture) -> list[str]:
    if held.reversible != built.reversible:
        kinds = ("reversible", "plain") if held.reversible else ("plain", "reversible")
        return [f"  The weights of a {kinds[0]} network do not fit a {kinds[1]} one (MVIT.REV.ENABLE)."]
    lines = []
    needed = {name: value for name, value in architecture_overrides(held, built).items() if name in _OVERRIDE_KEYS}
    if needed:
        keys = ", ".join(f"{_OVERRIDE_KEYS[name]} {value}" for name, value in needed.items())
        lines.append(f"  The model would need {keys}.")
    if held.embed_dim != built.embed_dim or (held.depth == built.depth and held.widths != built.widths):
        lines.append("  The blocks are of other widths: that is another model.")
    return lines


def _unknown_size(held: Architecture, tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """A line on the joint table of a video network where it is of another length and nothing tells its grid."""
    shapes = [table.shape for table in (tensors.get("pos_embed"), target.get("pos_embed")) if table is not None]
    if held.positions != "joint" or None not in held.grid or len(shapes) < 2 or shapes[0] == shapes[1]:
        return []
    return [
        "  The input size of the file is unknown: its joint table does not tell the grid of the tokens. Build the "
        "model with input_size=(frames, height, width) of the file, or interpolate with load_weights(..., "
        "source_grid=(T', H', W'), allow={\"interpolate\"})."
    ]


def _call_that_loads(weights: Weights, held: Architecture, built: Architecture) -> list[str]:
    """A line with a call of `create_model` that was tried on shapes; none if no official model takes the file."""
    from revvideo.models.registry import create_model

    wanted = dataclasses.replace(held, image=built.image) if held.reversible == built.reversible else held
    for name in dict.fromkeys((wanted.official_name, held.official_name)):
        if name is None:
            continue
        try:
            with torch.device("meta"):
                model = create_model(name, **find_overrides(weights, name))
        except ValueError:  # such as too few blocks for the model's stages
            continue
        target = model.state_dict()
        arguments = _fitting_arguments(model) | {"inflation": "mean", "source_grid": _known_grid(weights.tensors)}
        for way in (frozenset(), *_more_permissions(())):
            if Fitting(weights.tensors, target, allow=way, **arguments).fits:
                allow = f", allow={_set(way)}" if way else ""
                call = f"create_model({name!r}, checkpoint={weights.source!r}, infer_architecture=True{allow})"
                return [f"  This call loads it: {call}"]
    return []


def _some(entries: list[str]) -> str:
    more = f", ... ({len(entries) - LISTED} more)" if len(entries) > LISTED else ""
    return ", ".join(entries[:LISTED]) + more


def _set(names: Collection[str]) -> str:
    return "{" + ", ".join(f'"{name}"' for name in PERMISSIONS if name in names) + "}"
