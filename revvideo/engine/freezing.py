"""Parts of a model that training leaves as they are: no gradients, and evaluation mode while the rest trains."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from revvideo.errors import InputError

KEY = "FINETUNE.FREEZE"
WORDS = ("stem", "backbone")
NEAREST = 3  # names that an error message proposes


@dataclasses.dataclass(frozen=True)
class FrozenParts:
    """What `freeze` has frozen.

    Attributes:
        names: what was asked for.
        parameters: names of the parameters that it made untrainable, in the model's order.
        modules: the frozen modules, none of which lies in another.
        num_frozen, num_all: numbers (elements) in the model's frozen parameters, and in all of them.
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    num_frozen: int
    num_all: int

    def keep_in_eval(self) -> None:
        """Set the frozen modules to evaluation mode: no dropout, no drop path, batch norm by its running statistics.

        To be called after every ``model.train()``, which sets them to training mode.
        """
        for module in self.modules:
            module.eval()

    def __str__(self) -> str:
        return (
            f"frozen ({', '.join(self.names)}): {len(self.parameters)} tensors; "
            f"{self.num_frozen / 1e6:.2f} M of {self.num_all / 1e6:.2f} M parameters are not trained"
        )


def freeze(model: nn.Module, names: Sequence[str]) -> FrozenParts:
    """Make parts of a model untrainable, for the optimizer that is built afterwards.

    A module is frozen if it is named, or if none of its parameters is trained any more; whatever lies in it is, too.

    Args:
        model: the bare network, before it is wrapped (DDP) and before the optimizer's groups are made.
        names: FINETUNE.FREEZE: names of parameters (``pos_embed_spatial``) or submodules (``patch_embed``,
            ``blocks.0``), or ``stem`` (patch embedding, positions, class token, their norm and dropout; of a
            convolutional network all before the first stage) or ``backbone`` (all but the classifier and the dropout
            before it). These words need a model with `layer_groups` or `get_classifier`. None: nothing is frozen.

    Raises:
        InputError: an unknown name, or nothing left to train; the model is as it was.
    """
    submodules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    before = {parameter for parameter in parameters.values() if parameter.requires_grad}
    modules: set[nn.Module] = set()  # chosen with everything in them
    frozen: set[nn.Parameter] = set()
    for name in names:
        if name == "stem":
            frozen |= _stem_parameters(model)
            modules |= _stem_modules(model)
        elif name == "backbone":
            frozen |= set(parameters.values()) - set(_classifier(model).parameters())
            modules |= _modules_before_the_head(model)
        elif name in submodules:
            frozen |= set(submodules[name].parameters())
            modules.add(submodules[name])
        elif name in parameters:
            frozen.add(parameters[name])
        else:
            raise InputError(_unknown(name, [*WORDS, *submodules, *parameters]))
    if names and not before - frozen:
        raise InputError(
            f"{KEY} is {list(names)}, which leaves nothing of {type(model).__name__} to train; leave at least the "
            "classifier out (backbone is all but the classifier)"
        )
    for parameter in frozen:
        parameter.requires_grad_(False)
    modules |= {module for module in model.modules() if _trains_nothing(module, frozen)}
    by_name = dict(model.named_parameters())
    return FrozenParts(
        names=tuple(names),
        parameters=tuple(name for name, parameter in by_name.items() if parameter in frozen & before),
        modules=tuple(_outermost(model.modules(), modules)),
        num_frozen=sum(parameter.numel() for parameter in by_name.values() if not parameter.requires_grad),
        num_all=sum(parameter.numel() for parameter in by_name.values()),
    )


def _unknown(name: str, known: list[str]) -> str:
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, n=NEAREST, cutoff=0.5)
    near += [other for other in known if other.rpartition(".")[2] == last and other not in near]
    nearest = ", ".join(near[:NEAREST]) or ", ".join(dict.fromkeys(other.partition(".")[0] for other in known))
    return f"{KEY} names {name!r}, which the model does not have; nearest: {nearest}"


def _trains_nothing(module: nn.Module, frozen: set[nn.Parameter]) -> bool:
    """Whether a module has nothing left to train since the parameters `frozen` are frozen."""
    parameters = set(module.parameters())
    return bool(parameters & frozen) and not any(parameter.requires_grad for parameter in parameters)


def _outermost(modules: Iterable[nn.Module], chosen: set[nn.Module]) -> Iterator[nn.Module]:
    """Those of `modules` (outer ones first, as `nn.Module.modules` gives them) that are chosen and in no other."""
    covered: set[nn.Module] = set()
    for module in modules:
        if module in chosen and module not in covered:
            covered.update(module.modules())
            yield module


# --- the stem ---------------------------------------------------------------------------------------------------------


def _stem_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The first of the layers that layer decay knows."""
    if not hasattr(model, "layer_groups"):
        raise InputError(
            f"{KEY} names the stem, but {type(model).__name__} has no layer_groups() that says what that is; name its "
            "parameters or submodules"
        )
    return {model.get_parameter(name) for name in model.layer_groups()[0]}


def _stem_modules(model: nn.Module) -> set[nn.Module]:
    """Modules that come before the first block, those without parameters (the dropout of the positions) as well."""
    stem, block = ({model.get_parameter(name) for name in group} for group in model.layer_groups()[:2])
    found = set()
    for module in model.modules():  # outer ones first, else in the order of the forward
        inside = set(module.parameters())
        if inside and inside <= block:
            break
        if inside <= stem:
            found.add(module)
    return found


# --- the backbone -----------------------------------------------------------------------------------------------------


def _classifier(model: nn.Module) -> nn.Module:
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    if classifier is None or not list(classifier.parameters()):
        raise InputError(
            f"{KEY} names the backbone, but {type(model).__name__} has no classifier that would be left to train; name "
            "parameters or submodules"
        )
    return classifier


def _modules_before_the_head(model: nn.Module) -> set[nn.Module]:
    """Modules that neither hold the classifier nor stand beside it: the dropout there goes on dropping."""
    classifier = _classifier(model)
    around = [module for module in model.modules() if classifier in set(module.modules())]  # the classifier is last
    beside = set() if around[-2] is model else set(around[-2].modules())
    return set(model.modules()) - set(around) - beside
