"""Parameter groups, optimizers, learning rate and gradient clipping, with PySlowFast's meaning of the SOLVER keys."""

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from revvideo.errors import InputError

OPTIMIZERS = ("sgd", "adam", "adamw", "mt_adamw")
BATCH_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    zero_weight_decay_1d: bool = False,
    no_decay_keywords: Iterable[str] | None = None,
    layer_decay: float = 1.0,
    bn_weight_decay: float = 0.0,
) -> list[dict]:
    """Split the trainable parameters into groups of equal weight decay and equal learning rate.

    A parameter of a batch norm gets `bn_weight_decay`; else one whose name contains one of `no_decay_keywords`, or,
    with `zero_weight_decay_1d`, one that is 1-D or whose name ends in `.bias`, gets 0; all others get `weight_decay`.
    With `layer_decay` d < 1 the learning rate of layer i of n is multiplied by `d ** (n - 1 - i)`; the layers are the
    model's own, so reversible models are decayed as well (PySlowFast leaves them out by their names).

    Args:
        model: the bare network (not wrapped in DDP).
        weight_decay: SOLVER.WEIGHT_DECAY.
        zero_weight_decay_1d: SOLVER.ZERO_WD_1D_PARAM.
        no_decay_keywords: fragments of names that are not decayed; None asks `model.no_weight_decay()`, where the
            model has it.
        layer_decay: SOLVER.LAYER_DECAY, in (0, 1]. Below 1 the model must have `layer_groups() -> list[list[str]]`:
            parameter names, the stem first, then one list a block, the head last.
        bn_weight_decay: BN.WEIGHT_DECAY.

    Returns:
        Groups `{params, weight_decay, layer_decay, names}` for `make_optimizer`: `layer_decay` is the multiplier of the
        learning rate, `names` the parameters' names. Frozen parameters are in none. The order is PySlowFast's: (batch
        norm,) decayed, not decayed; with layer decay that of the first parameter of each group.

    Raises:
        InputError: nothing to train, `layer_decay` outside (0, 1], or a model that does not name its layers.

    Source: PySlowFast, slowfast/models/optimizer.py; layer decay: BEiT (Bao et al. 2021).
    """
    if no_decay_keywords is None:
        no_decay_keywords = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    keywords = tuple(no_decay_keywords)
    multipliers = _layer_multipliers(model, layer_decay)

    groups: dict[tuple, dict] = {}
    for name, parameter, in_batch_norm in _trainable(model):
        one_dimensional = parameter.ndim == 1 or name.endswith(".bias")
        if in_batch_norm:
            kind, decay = 0, bn_weight_decay
        elif any(keyword in name for keyword in keywords) or (zero_weight_decay_1d and one_dimensional):
            kind, decay = 2, 0.0
        else:
            kind, decay = 1, weight_decay
        scale = multipliers[name] if multipliers else 1.0
        group = groups.setdefault(
            (kind, scale), {"params": [], "weight_decay": float(decay), "layer_decay": scale, "names": []}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if not groups:
        raise InputError("nothing to train: the model has no parameter with requires_grad")
    return list(groups.values()) if multipliers else [groups[key] for key in sorted(groups)]


def _trainable(model: nn.Module) -> Iterable[tuple[str, nn.Parameter, bool]]:
    """Name, parameter and whether it belongs to a batch norm, each trainable parameter once."""
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{module_name}.{name}".strip("."), parameter, isinstance(module, BATCH_NORMS)


def _layer_multipliers(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Learning-rate multiplier of every parameter name; empty without layer decay."""
    if not 0.0 < layer_decay <= 1.0:
        raise InputError(f"SOLVER.LAYER_DECAY is {layer_decay}; expected a number in (0, 1]")
    if layer_decay == 1.0:
        return {}
    if not hasattr(model, "layer_groups"):
        raise InputError(
            f"SOLVER.LAYER_DECAY is {layer_decay}, but {type(model).__name__} has no layer_groups() that says which "
            "parameter belongs to which layer; set SOLVER.LAYER_DECAY 1.0"
        )
    layers = model.layer_groups()
    multipliers: dict[str, float] = {}
    for index, names in enumerate(layers):
        for name in names:
            if name in multipliers:
                raise InputError(f"{type(model).__name__}.layer_groups() names {name} twice")
            multipliers[name] = layer_decay ** (len(layers) - 1 - index)
    missing = [name for name, _, _ in _trainable(model) if name not in multipliers]
    if missing:
        raise InputError(
            f"{type(model).__name__}.layer_groups() leaves out {len(missing)} parameters: {', '.join(missing[:8])}"
        )
    return multipliers


def make_optimizer(
    name: str,
    groups: Sequence[dict],
    *,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """The optimizer called `name` in SOLVER.OPTIMIZING_METHOD; epsilon of the Adam family is 1e-8.

    Args:
        name: sgd, adam, adamw, or mt_adamw (AdamW with `foreach=True`: what torch's multi-tensor AdamW became).
        groups: from `parameter_groups`.
        lr: learning rate before the groups' multipliers.
        momentum, dampening, nesterov: of sgd.
        betas: of the Adam family.

    Raises:
        InputError: an unknown name, or numbers that torch refuses.
    """
    adam = {"lr": lr, "betas": tuple(betas), "eps": 1e-8}
    try:
        if name == "sgd":
            optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, dampening=dampening, nesterov=nesterov)
        elif name == "adam":
            optimizer = torch.optim.Adam(groups, **adam)
        elif name == "adamw":
            optimizer = torch.optim.AdamW(groups, **adam)
        elif name == "mt_adamw":
            optimizer = torch.optim.AdamW(groups, **adam, foreach=True)
        else:
            raise InputError(f"SOLVER.OPTIMIZING_METHOD is {name!r}; known: {', '.join(OPTIMIZERS)}")
    except InputError:
        raise
    except ValueError as error:  # torch: negative rate, Nesterov without momentum, ...
        raise InputError(f"SOLVER: {name} cannot be built: {error}") from error
    set_lr(optimizer, lr)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to `lr` times the group's `layer_decay`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("layer_decay", 1.0)


def clip_gradients(parameters: Iterable[Tensor], *, value: float | None = None, l2_norm: float | None = None) -> Tensor:
    """Clip the gradients in place and return their total L2 norm from before.

    As in PySlowFast a limit by value comes first and one by norm is then not applied; None or 0 means no limit.

    Args:
        parameters: parameters; those without a gradient count as zero. Under a loss scaler, unscale before.
        value: SOLVER.CLIP_GRAD_VAL, limit of each element.
        l2_norm: SOLVER.CLIP_GRAD_L2NORM, limit of the total norm.

    Returns:
        Scalar tensor on the gradients' device: reading it is the caller's choice, nothing here waits for the device.

    Raises:
        InputError: a negative limit.
    """
    for key, limit in (("SOLVER.CLIP_GRAD_VAL", value), ("SOLVER.CLIP_GRAD_L2NORM", l2_norm)):
        if limit is not None and limit < 0:
            raise InputError(f"{key} is {limit}; expected a positive number, or None for no clipping")
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if value:
        torch.nn.utils.clip_grad_value_(parameters, value)
    elif l2_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, l2_norm, norm)
    return norm


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict, *, source: str) -> None:
    """Continue an optimizer from `state` (the checkpoint's `optimizer_state`), after checking that it fits.

    Tensors are copied, so the optimizer does not hold on to a memory-mapped checkpoint file. Weight decay, momentum and
    the other settings of the groups stay this optimizer's own: they come from the config, as the learning rate does.

    Args:
        optimizer: an optimizer over the same parameters.
        state: `optimizer.state_dict()` of the earlier run.
        source: where the state comes from, for the message.

    Raises:
        InputError: another kind of optimizer, or other groups, parameters or shapes than this one's.
    """
    have, want = state.get("param_groups", []), optimizer.param_groups
    sizes = [[len(group["params"]) for group in groups] for groups in (have, want)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{source}: its optimizer has groups of {sizes[0]} parameters, this run's has {sizes[1]}: another "
            "weight-decay rule, other frozen layers or another architecture; go on with the config of that run, "
            "or take its weights alone in another OUTPUT_DIR (TRAIN.CHECKPOINT_FILE_PATH with "
            "TRAIN.CHECKPOINT_EPOCH_RESET True)"
        )
    for old, new in zip(have, want):
        if ("betas" in old) != ("betas" in new):
            kinds = ["one of the Adam family" if "betas" in group else "sgd" for group in (old, new)]
            raise InputError(
                f"{source}: its optimizer is {kinds[0]}, this run's is {kinds[1]} (SOLVER.OPTIMIZING_METHOD)"
            )
        if "names" in old and "names" in new and list(old["names"]) != list(new["names"]):
            pairs = zip(old["names"], new["names"])
            first = next(f"{theirs} there, {ours} here" for theirs, ours in pairs if theirs != ours)
            raise InputError(f"{source}: its optimizer belongs to other parameters ({first})")
        for index, parameter in zip(old["params"], new["params"]):
            for key, tensor in state.get("state", {}).get(index, {}).items():
                if isinstance(tensor, Tensor) and tensor.ndim and tensor.shape != parameter.shape:
                    raise InputError(
                        f"{source}: optimizer state {key} has shape {tuple(tensor.shape)} for a parameter of shape "
                        f"{tuple(parameter.shape)}"
                    )
    own = [{key: value for key, value in group.items() if key != "params"} for group in want]
    optimizer.load_state_dict(copy.deepcopy(state))
    for group, settings in zip(optimizer.param_groups, own):
        group.update(settings)
