"""The networks that a benchmark compares: models x backprop modes x pooling operators.

Each combination is built without memory before anything is measured, so that what makes no sense is known at once.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from revvideo.errors import InputError
from revvideo.models.registry import create_model, list_models

MODES = ("reversible", "plain", "checkpoint")
META = torch.device("meta")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network to measure.

    Attributes:
        model: name in the registry.
        mode: ``"reversible"``, ``"plain"``, or ``"checkpoint"`` (each block of a plain model recomputed).
        pooling: operator of the pooling convolutions; None leaves the model's own choice.
        options: further arguments of `create_model`.
        compiled: by `revvideo.build.compile.compile_model`.
    """

    model: str
    mode: str
    pooling: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compiled: bool = False

    @property
    def label(self) -> str:
        return " ".join([self.model, self.mode, *([f"pooling {self.pooling}"] if self.pooling else [])])

    def build(self, device: torch.device, **overrides) -> nn.Module:
        """The network on `device`, in training mode, with the same weights at every call.

        Args:
            device: ``meta`` builds it without memory.
            **overrides: arguments of `create_model` instead of those in `options`.

        Raises:
            ValueError: the model has no such mode, or does not take an option.
        """
        options = {**self.options, **overrides} | ({"pooling": self.pooling} if self.pooling else {})
        reversible = is_reversible(self.model)
        if reversible and self.mode != "checkpoint":
            options["backprop"] = self.mode
        model = _create(self.model, device, options)
        if reversible and self.mode == "checkpoint":
            raise ValueError(f"checkpoint is a mode of plain models; those of {self.model} are reversible and plain")
        if self.mode == "reversible" and not reversible:
            raise ValueError(f"{self.model} is not reversible; its modes are plain and checkpoint")
        if self.mode == "checkpoint":
            model.set_grad_checkpointing(True)
        if self.compiled:
            from revvideo.build.compile import compile_model

            compile_model(model)
        return model.train()


def is_reversible(name: str) -> bool:
    """Whether the model called `name` has reversible blocks."""
    with META:
        return getattr(create_model(name), "reversible", False)


def resolve_variants(
    models: Iterable[str],
    modes: Iterable[str],
    poolings: Sequence[str | None],
    options: Mapping[str, Any],
    *,
    compiled: bool = False,
) -> tuple[list[Variant], list[str]]:
    """All combinations that can be built, and a line for each of the others.

    Drop path is off where `options` do not set it.

    Raises:
        InputError: an unknown model (with the nearest name) or mode, or no combination can be built.
    """
    modes = list(modes)
    check_words("mode", modes, MODES)
    variants, skipped = [], []
    for name in dict.fromkeys(models):
        check_name(name)
        for pooling in dict.fromkeys(poolings):
            for mode in dict.fromkeys(modes):
                variant = Variant(name, mode, pooling, without_drop_path(name, options), compiled)
                try:
                    variant.build(META)
                    variants.append(variant)
                except ValueError as error:
                    skipped.append(f"{variant.label}: {error}")
    if not variants:
        more = f" (and {len(skipped) - 1} more combinations)" if len(skipped) > 1 else ""
        raise InputError(f"nothing to measure: {skipped[0]}{more}")
    return variants, skipped


def without_drop_path(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with ``drop_path=0.0`` unless they set it, or the model called `name` has none."""
    try:
        _create(name, META, {"drop_path": 0.0})
    except ValueError:  # nothing else was asked for, so it is this option that the network does not have
        return dict(options)
    return {"drop_path": 0.0, **options}


def check_words(kind: str, words: Iterable[str], known: Collection[str]) -> None:
    """Raise an InputError that names the first of `words` that is not in `known`."""
    for word in words:
        if word not in known:
            raise InputError(f"the {kind} {word!r} is unknown; expected some of {', '.join(known)}")


def check_name(name: str) -> None:
    """Raise an InputError with the nearest name unless there is a model called `name`."""
    if name not in list_models():
        try:
            create_model(name)
        except ValueError as error:
            raise InputError(str(error)) from error


def _create(name: str, device: torch.device, options: Mapping[str, Any]) -> nn.Module:
    if device.type == "meta":
        with META:
            return create_model(name, **options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return create_model(name, **options).to(device)
