"""Weights into a model: strictly, all or nothing, with a report of every tensor that did not go in as it was.

Always done, because nothing is lost: a fused ``qkv`` is split into ``q``, ``k``, ``v`` or the other way round, and
separate tables for space and time are added up to a joint one. Everything else needs a permission (`PERMISSIONS`).
"""

import dataclasses
import itertools
import logging
import os
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from revvideo.errors import InputError
from revvideo.models.fitting import INFLATIONS, PERMISSIONS, Fitting
from revvideo.models.infer_architecture import (
    Architecture,
    architecture_overrides,
    find_overrides,
    read_architecture,
)
from revvideo.models.weights_file import Weights, read_weights

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
    "positions": "MVIT.USE_ABS_POS, MVIT.SEP_POS_EMBED",
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
        """Whether the model now computes what the file's network computes."""
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

    Returns:
        The report, which is logged, too: as a warning unless it is `LoadReport.exact`.

    Raises:
        ValueError: an unknown permission or inflation.
        InputError: a tensor is missing, unexpected or of another shape; with what the file holds and what loads it.
    """
    report, state = fit_weights(model, weights, allow=allow, inflation=inflation)
    _unwrapped(model).load_state_dict(state)
    logger.log(logging.INFO if report.exact else logging.WARNING, "%s", report)
    return report


def fit_weights(
    model: nn.Module,
    weights: Weights | Mapping[str, Tensor] | str | os.PathLike,
    *,
    allow: Collection[str] = (),
    inflation: str = "mean",
) -> tuple[LoadReport, dict[str, Tensor]]:
    """What `load_weights` would load, as a whole state dict, and its report; the model may be without memory (meta)."""
    if not set(allow) <= set(PERMISSIONS):
        raise ValueError(f"allow is {sorted(allow)}; expected some of {', '.join(PERMISSIONS)}")
    if inflation not in INFLATIONS:
        raise ValueError(f"inflation is {inflation!r}; expected one of {', '.join(INFLATIONS)}")
    if isinstance(weights, str | os.PathLike):
        weights = read_weights(weights)
    elif not isinstance(weights, Weights):
        weights = Weights(weights, "tensors", "the state dict given", weights)
    network, tensors = _unwrapped(model), dict(weights.tensors)
    target = network.state_dict()
    notes = list(weights.notes)
    if weights.file_tensors.keys() == target.keys():  # a model that has the file's own names, such as a baseline
        tensors, notes = dict(weights.file_tensors), []
    arguments = {"grid": getattr(network, "grid", None), "head": _head_names(network), "inflation": inflation}
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


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


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
    held, built = read_architecture(tensors), read_architecture(target)
    if held is not None:
        lines.append(f"  The file holds a {held}.")
    if built is not None:
        lines.append(f"  The model is a {built}.")
    if fitting.pretraining:
        lines.append(
            f"  {len(fitting.pretraining)} tensors are of a pre-training network (MAE, MaskFeat: decoder, prediction "
            'head, mask token); allow={"head"} leaves them out.'
        )
    if enough is None:
        lines.append("  It is a checkpoint of another architecture.")
    else:
        covered = {"interpolate"} if "inflate" in enough else set()  # by the key of the inflation
        keys = sorted({f"{_KEYS[permission]} True" for permission in enough - fitting.allow - covered})
        lines.append(f"  allow={_set(enough)} loads it (in a config: {', '.join(keys)}).")
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
        target, arguments = model.state_dict(), {"grid": model.grid, "head": _head_names(model), "inflation": "mean"}
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
