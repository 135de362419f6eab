"""A model as a `torch.export` program of torch's own operators."""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from revvideo.errors import InputError
from revvideo.models.pooling_attention import PoolingAttention

logger = logging.getLogger(__name__)

TORCH_NAMESPACES = ("aten", "prim", "prims")  # of the operators that every torch has
MOST_CLIPS = 2**16  # in a batch of any size


def trace(
    model: nn.Module, shape: Sequence[int], *, batch_size: int | None = None
) -> tuple[ExportedProgram, int | None]:
    """Trace the forward of a model in evaluation mode.

    Args:
        model: float clips to logits `(B, K)`, on the CPU.
        shape: of a clip, `(C, T, H, W)` or `(C, H, W)`.
        batch_size: clips that the program takes at a time; None: any number where the model allows it, else one, and
            a warning says why.

    Returns:
        the program, and the batch size that it is bound to, None for any.

    Raises:
        InputError: torch cannot trace the model, or it calls operators that are not torch's own.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; expected at least 1")
    any_size: RuntimeError | None = None
    if batch_size is None:
        try:
            # Of two clips: torch.export takes a size of 1 for a constant.
            return _portable(_export(model, shape, 2, dynamic=True)), None
        except RuntimeError as error:
            any_size, batch_size = error, 1
    try:
        program = _export(model, shape, batch_size, dynamic=False)
    except RuntimeError as error:
        raise InputError(f"torch.export cannot trace this {type(model).__name__}: {_brief(error)}") from error
    if any_size is not None:
        logger.warning("the batch of this model cannot vary, so it is exported for 1 clip: %s", _brief(any_size))
    return _portable(program), batch_size


def _export(model: nn.Module, shape: Sequence[int], batch_size: int, *, dynamic: bool) -> ExportedProgram:
    assert not model.training
    clips = torch.zeros(batch_size, *shape)
    # A batch has 1 clip or more; without a largest number torch 2.6 finds that the largest integer does not go.
    shapes = ({0: Dim("batch", min=1, max=MOST_CLIPS)},) if dynamic else None
    with torch.no_grad(), _pooling_of_torch(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unable to find the path of the module")  # torch 2.6, of modules of one call
        # strict: torch 2.6 would trace the Python byte code by default, later ones run the code on fake tensors.
        program = torch.export.export(model, (clips,), dynamic_shapes=shapes, strict=False)
    # The example is a part of the file: one number instead of a batch of clips.
    program.example_inputs = ((torch.zeros(()).expand_as(clips),), {})
    return program


@contextlib.contextmanager
def _pooling_of_torch(model: nn.Module) -> Iterator[None]:
    """Pooling by torch's convolution meanwhile: revvideo's own operators exist only where revvideo is imported."""
    attentions = [module for module in model.modules() if isinstance(module, PoolingAttention)]
    before = [attention.options for attention in attentions]
    for attention in attentions:
        attention.options = dataclasses.replace(attention.options, pooling="aten")
    try:
        yield
    finally:
        for attention, options in zip(attentions, before, strict=True):
            attention.options = options


def _portable(program: ExportedProgram) -> ExportedProgram:
    """The program without this machine's paths; an InputError where whoever loads it would need more than torch."""
    graphs = [graph for graph in program.graph_module.modules() if isinstance(graph, torch.fx.GraphModule)]
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    operators = {node.target for node in nodes if isinstance(node.target, torch._ops.OpOverload)}
    foreign = sorted(str(operator) for operator in operators if operator.namespace not in TORCH_NAMESPACES)
    if foreign:
        raise InputError(
            f"the model calls operators that are not torch's own, so a file could not run elsewhere: "
            f"{', '.join(foreign)}; replace them by torch operators"
        )
    for node in nodes:
        node.meta.pop("stack_trace", None)
    for graph in graphs:
        graph.graph.eliminate_dead_code()  # such as questions about dtypes, which torch 2.6 writes but cannot read
        graph.recompile()
    return program


def _brief(error: BaseException) -> str:
    """What went wrong, without advice for those who debug torch."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
