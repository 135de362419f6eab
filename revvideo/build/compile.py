"""`torch.compile` of a model's branches (COMPILE.ENABLE)."""

import logging

import torch
from torch import nn

from revvideo.config import ConfigError

logger = logging.getLogger(__name__)

GRAPHS_PER_BRANCH = 8  # forward, recompute, evaluation, each with a second shape or precision to spare
# Random numbers of eager mode: compiled and eager training drop the same samples, and the recompute of a reversible
# block, which is another graph than its forward, draws what the forward drew.
INDUCTOR_OPTIONS = {"fallback_random": True}


def branches_of(model: nn.Module) -> list[nn.Module]:
    """What is compiled, each by itself: F and G of reversible blocks and stage transitions, else whole blocks."""
    blocks = list(model.get_submodule(model.blocks_name)) if hasattr(model, "blocks_name") else []
    if hasattr(model, "block_names"):  # pytorchvideo's networks
        blocks = [model.get_submodule(name.rstrip(".")) for name in model.block_names()]
    return [part for block in blocks for part in ((block.F, block.G) if hasattr(block, "F") else (block,))]


def compile_model(model: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the branches of `model` in place, for the shapes that they meet (no dynamic shapes).

    The names in the state dict stay, a deep copy is not compiled. What couples the branches stays eager: the reversible
    engine, drop path between the streams, stem and head. Compilation happens at the first calls, a branch at a time.

    All branches of a kind share the code of one `forward`, and torch limits the graphs of a piece of code to 8
    (`torch._dynamo.config.recompile_limit`); the limit of this process is raised to what the model needs, because above
    it torch would go on in eager mode with a mere warning.

    Raises:
        ConfigError: there is nothing to compile, or inductor finds no compiler.
    """
    branches = branches_of(model)
    if not branches:
        raise ConfigError(
            f"COMPILE.ENABLE is True, but a {type(model).__name__} has no blocks to compile; set it False"
        )
    options = {}
    if backend == "inductor":
        _check_compiler(next(model.parameters()).device)
        options["options"] = INDUCTOR_OPTIONS
    _raise_limit(GRAPHS_PER_BRANCH * len(branches))
    for branch in branches:
        branch.compile(dynamic=False, backend=backend, **options)
    logger.info("torch.compile (%s) of %d branches; the first steps take longer", backend, len(branches))


def _raise_limit(graphs: int) -> None:
    config = torch._dynamo.config
    # Named cache_size_limit before torch 2.7.
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    for limit in (name, f"accumulated_{name}"):
        setattr(config, limit, max(getattr(config, limit), graphs))


def _check_compiler(device: torch.device) -> None:
    """Compile and run one small function, so that a missing compiler is told now and not as a crash in step 1."""
    try:
        torch.compile(_probe, dynamic=False)(torch.ones(8, device=device))
    except RuntimeError as error:
        needs = "a C++ compiler (g++ or clang++)" if device.type == "cpu" else "Triton and a C compiler"
        raise ConfigError(
            f"COMPILE.ENABLE is True, but torch.compile does not work on {device.type}: "
            f"{str(error).splitlines()[0]}; install {needs}, or set COMPILE.ENABLE False"
        ) from error


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
