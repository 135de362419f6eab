"""FSDP2 (`torch.distributed.fsdp.fully_shard`) for any model, reversible ones included.

FSDP gathers the parameters of a wrapped module in a hook before its forward and before its backward, and frees them
after each. A reversible engine is in the way of that below the level of its runs: it calls the branches F and G of a
block itself, and their parameters are inputs of its autograd Functions. They are read before a hook of the branch could
gather them (so they would be the local shards), and the backward replays the branch as a function of what was saved,
outside of any hook. So what holds such a pair is wrapped as a whole: its parameters are gathered when the first of its
branches is called and stay until its last gradient is there. What FSDP still saves is the optimizer state, the
parameters and the gradients at rest.
"""

from collections.abc import Iterable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


def shard_model(
    model: nn.Module, mesh: DeviceMesh | None = None, *, groups: Iterable[str] | None = None, **options
) -> nn.Module:
    """Shard the parameters of `model` in place over the processes of `mesh`; build the optimizer after this.

    Args:
        model: on its device; equal on all processes.
        mesh: one- or two-dimensional, see `fully_shard`; None: all processes.
        groups: names of submodules whose parameters are gathered and reduced together, apart from the rest, which is
            one more group. None: `default_groups`. With () the whole model is one group.
        **options: of `fully_shard`, such as `reshard_after_forward` or `mp_policy`.

    Returns:
        The model.

    Raises:
        ValueError: a group does not exist, or it cannot be sharded by itself; the model is as it was.
    """
    names = default_groups(model) if groups is None else list(groups)
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules or not name:
            raise ValueError(f"there is no submodule {name!r} in a {type(model).__name__} to be sharded by itself")
        reason = refusal(model, name)
        if reason:
            raise ValueError(f"{name} cannot be sharded by itself: {reason}; groups that can: {default_groups(model)}")
    for name in sorted(names, key=lambda name: -name.count(".")):  # inner groups first, as fully_shard wants it
        fully_shard(modules[name], mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def default_groups(model: nn.Module) -> list[str]:
    """The blocks that can be sharded by themselves: all of a plain model, the stage transitions of a reversible one."""
    prefix = getattr(model, "blocks_name", None)
    if prefix is None:
        return []
    names = [f"{prefix}.{name}" for name, _ in model.get_submodule(prefix).named_children()]
    return [name for name in names if not refusal(model, name)]


def refusal(model: nn.Module, name: str) -> str | None:
    """Why the submodule `name` cannot be sharded by itself; None if it can."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        if _is_pair(model.get_submodule(".".join(parts[:end]))):
            return (
                f"it is a part of {'.'.join(parts[:end])}, whose branches F and G the reversible engine calls again in "
                "the backward on the parameters of the forward, which FSDP would have freed"
            )
    module = model.get_submodule(name)
    if not _has_forward(module):
        return "it is never called as a whole, so that FSDP's hooks, which gather the parameters, would not run"
    return None


def _is_pair(module: nn.Module) -> bool:
    """Whether a module couples branches F and G."""
    return all(isinstance(getattr(module, name, None), nn.Module) for name in "FG")


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward
