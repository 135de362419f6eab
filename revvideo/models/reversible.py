r"""Reversible sequences: training whose activation memory does not grow with depth.

A reversible block couples two streams (Gomez et al. 2017, "The Reversible Residual Network", eq. 6; Mangalam et al.
2022, "Reversible Vision Transformers", eq. 1)::

    y1 = x1 + F(x2)          x2 = y2 - G(y1)
    y2 = x2 + G(y1)          x1 = y1 - F(x2)

Read as a recurrence, the whole sequence is one chain of half-steps. With ``s[0] = x1``, ``s[1] = x2`` and
``f[1], f[2], f[3], ... = F_1, G_1, F_2, ...``::

    s[t+1] = s[t-1] + m[t] * f[t](s[t])          s[t-1] = s[t+1] - m[t] * f[t](s[t])

(``m`` is the stochastic-depth mask.) Each half-step is one ``autograd.Function``. It saves no activation: its backward
finds the pair ``(s[t], s[t+1])`` on the tape of its forward call, computes ``f[t](s[t])`` once more, rebuilds
``s[t-1]`` and leaves ``(s[t-1], s[t])`` for the half-step before it. The last pair, and every other pair that the
caller asks for, is kept by `_Keep`, which also starts the tape.

Nothing lives on the modules: two forwards before one backward, an evaluation in between and ``retain_graph`` are right.
The parameters are inputs of the Functions and their gradients are returned from them, so DDP, hooks, frozen parameters
and ``torch.autograd.grad`` see an ordinary graph.
"""

import dataclasses
from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function

from revvideo.models.branch_call import BranchCall, add_branch, refuse_second_derivative, refuse_sharded
from revvideo.models.call_conditions import autocast_is_on
from revvideo.models.inversion_check import InversionCheck
from revvideo.models.layers import drop_path_mask
from revvideo.models.overlapped_recompute import OverlappedRecompute, can_overlap

BACKPROP_MODES = ("reversible", "plain")


class ReversibleBlock(nn.Module):
    """One pair (F, G) with stochastic depth on both residual branches.

    F and G are any modules that map a tensor of the streams' shape to the same shape and leave their input as it is. A
    buffer that F or G updates in its forward (BatchNorm's running statistics) is updated once a step. The backward
    computes the outputs a second time with the buffers of that moment, so they may not depend on a buffer that has
    changed since: no spectral norm in training mode, and no training forward of the same BatchNorm between a forward in
    evaluation mode and its backward.

    Args:
        F: first branch, reads the second stream.
        G: second branch, reads the updated first stream.
        drop_path: probability that a sample loses a branch (Huang et al. 2016); masks are drawn per sample and branch.
        shared_mask: use one mask for both branches, as PySlowFast does.

    Raises:
        ValueError: F or G is not a module, or the probability is outside [0, 1).
    """

    def __init__(self, F: nn.Module, G: nn.Module, *, drop_path: float = 0.0, shared_mask: bool = False):
        super().__init__()
        for name, branch in (("F", F), ("G", G)):
            if not isinstance(branch, nn.Module):
                raise ValueError(f"{name} is a {type(branch).__name__}; a reversible block takes torch.nn.Module")
        if not 0.0 <= drop_path < 1.0:
            raise ValueError(f"drop_path is {drop_path}; expected a probability in [0, 1)")
        self.F, self.G = F, G
        self.drop_path = drop_path
        self.shared_mask = shared_mask

    def extra_repr(self) -> str:
        return f"drop_path={self.drop_path:.3f}"


class ReversibleSequence(nn.Module):
    """A run of reversible blocks whose training memory is one pair of streams, whatever its depth.

    Args:
        blocks: `ReversibleBlock` modules, or plain ``(F, G)`` pairs of modules.
        backprop: ``"reversible"`` rebuilds activations in the backward; ``"plain"`` is the same network with ordinary
            backprop.
        chunk_tokens, buffer_every, parallel: see `BackpropOptions`.

    Raises:
        ValueError: an unknown ``backprop``, or a number below its limit.
    """

    def __init__(
        self,
        blocks: Iterable[ReversibleBlock | tuple[nn.Module, nn.Module]],
        *,
        backprop: str = "reversible",
        chunk_tokens: int = -1,
        buffer_every: int = 0,
        parallel: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(b if isinstance(b, ReversibleBlock) else ReversibleBlock(*b) for b in blocks)
        self.options = BackpropOptions(backprop, chunk_tokens, buffer_every=buffer_every, parallel=parallel)

    def forward(self, x1: Tensor, x2: Tensor, *, intermediates: Sequence[int] = ()):
        """Run the streams ``x1``, ``x2`` (both of one shape, batch first) through all blocks.

        Args:
            x1: first stream.
            x2: second stream.
            intermediates: indices of blocks whose outputs are wanted too, for a loss on them or as features. Their
                pairs are kept in memory.

        Returns:
            ``(y1, y2)``, or ``((y1, y2), [(y1, y2) of each index in the order asked])`` with ``intermediates``.
        """
        output, kept = run_blocks(self.layers, x1, x2, options=self.options, intermediates=intermediates)
        return (output, kept) if intermediates else output


@dataclasses.dataclass(frozen=True)
class BackpropOptions:
    """How reversible blocks are trained. None of it changes a number beyond rounding.

    Args:
        backprop: ``"reversible"`` rebuilds the activations in the backward; ``"plain"`` keeps them, as usual.
        chunk_tokens: tokens that an MLP works on at a time; 0: all, -1: 3136 on a CPU, 131072 elsewhere.
        keep_mib: MiB by which what is kept for the backward instead of being recomputed (attention outputs first) may
            raise the peak of a step; None: by 60 percent, 0: keep what does not raise it, -1: nothing. (It acts where
            the sizes are known: in `RevMViT`.)
        buffer_every: keep the inputs of every n-th block of a run, the first one included, so that rounding does not
            add up over more than n blocks; 0: only the run's outputs are kept.
        parallel: recompute the next branch beside the gradient of this one, on a second CUDA stream (PaReprop; Zhu and
            Mangalam 2023). Nothing is chunked and no attention output is kept then.

    Raises:
        ValueError: an unknown ``backprop``, or a number below its limit.
    """

    backprop: str = "reversible"
    chunk_tokens: int = -1
    keep_mib: float | None = None
    buffer_every: int = 0
    parallel: bool = False

    def __post_init__(self):
        if self.backprop not in BACKPROP_MODES:
            known = ", ".join(BACKPROP_MODES)
            raise ValueError(f"backprop is {self.backprop!r}; expected one of {known} (REV.BACKPROP)")
        for name, key, smallest in (
            ("chunk_tokens", "REV.CHUNK", -1),
            ("keep_mib", "REV.KEEP_MIB", -1),
            ("buffer_every", "REV.BUFFER_EVERY", 0),
        ):
            value = getattr(self, name)
            if name == "keep_mib" and value is None:
                continue
            kinds, kind = ((int, float), "number") if name == "keep_mib" else (int, "whole number")
            fits = isinstance(value, kinds) and not isinstance(value, bool) and (value >= 0 or value == smallest)
            if not fits or value == float("inf"):  # NaN does not fit either
                raise ValueError(f"{name} is {value!r}; expected a {kind}, {smallest} or more ({key})")


DEFAULT_BACKPROP = BackpropOptions()


def run_blocks(
    blocks: Sequence[ReversibleBlock],
    x1: Tensor,
    x2: Tensor,
    *,
    options: BackpropOptions = DEFAULT_BACKPROP,
    f_args: tuple = (),
    intermediates: Collection[int] = (),
    keep_attention: Collection[int] = (),
    check: InversionCheck | None = None,
    first_block: int = 0,
) -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
    """Run two streams through reversible blocks (the function behind `ReversibleSequence`).

    Streams of half precision are carried in float32, so that the inversion error is that of float32 additions; under
    autocast they stay float32, otherwise (a model in pure half precision) they return in the dtype they came in.

    Args:
        blocks: the blocks, in order.
        x1: first stream.
        x2: second stream.
        options: how they are trained.
        f_args: further arguments, without tensors that need gradients, for every F.
        intermediates: indices of blocks whose output pairs are returned too.
        keep_attention: indices of blocks whose attention outputs are kept for the backward.
        check: compares the rebuilt inputs of each block with the true ones.
        first_block: number of the first block, in the reports of ``check``.

    Returns:
        The last pair and the list of the intermediate ones.

    Raises:
        ValueError: the streams differ in shape, or an index is out of range.
    """
    if x1.shape != x2.shape:
        raise ValueError(f"the streams have shapes {tuple(x1.shape)} and {tuple(x2.shape)}; expected one shape")
    if not set(intermediates) <= set(range(len(blocks))):
        raise ValueError(f"intermediates {list(intermediates)} ask for a block outside 0..{len(blocks) - 1}")

    dtype = torch.promote_types(x1.dtype, x2.dtype)
    narrow = dtype if dtype in (torch.bfloat16, torch.float16) else None
    branch_dtype = narrow if narrow is not None and not autocast_is_on(x1.device.type) else None
    stream_dtype = torch.float32 if narrow is not None else dtype
    x1, x2 = x1.to(stream_dtype), x2.to(stream_dtype)

    reversible = options.backprop == "reversible" and torch.is_grad_enabled()
    tape = _Tape(check, overlap=options.parallel and can_overlap(x1.device)) if reversible else None
    chunk = 0 if tape is not None and tape.overlap is not None else options.chunk_tokens
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    older, newer, inputs_are_kept = x1, x2, options.buffer_every > 0
    for index, block in enumerate(blocks):
        if tape is not None:
            refuse_sharded(block)  # the block too: it is never called, so nothing would gather its parameters
        keep = index in keep_attention and (tape is None or tape.overlap is None)
        if tape is not None and check is not None:
            tape.copy_inputs(first_block + index, older, newer)
        mask = None
        for branch, args in ((block.F, f_args), (block.G, ())):
            if mask is None or not block.shared_mask:
                mask = drop_path_mask(newer, block.drop_path if block.training else 0.0)
            call = BranchCall(branch, args, branch_dtype, chunk, keep)
            exact, inputs_are_kept = inputs_are_kept, False
            older, newer = newer, _half_step(tape, call, older, newer, mask, exact)
        buffered = options.buffer_every and (index + 1) % options.buffer_every == 0
        if tape is not None and (buffered or index in intermediates or index == len(blocks) - 1):
            older, newer = _Keep.apply(tape, tape.time, older, newer)
            inputs_are_kept = True
        if index in intermediates:
            if tape is None:  # as the engine has it: y2, which is made of y1, does not count in the gradient of y1
                older, newer = older.view_as(older), newer.view_as(newer)
            kept[index] = (older, newer)

    pairs = [(older, newer), *(kept[index] for index in intermediates)]
    if branch_dtype is not None:
        pairs = [(first.to(branch_dtype), second.to(branch_dtype)) for first, second in pairs]
    return pairs[0], pairs[1:]


def _half_step(
    tape: "_Tape | None", call: BranchCall, older: Tensor, newer: Tensor, mask: Tensor | None, exact: bool
) -> Tensor:
    """``s[t+1]`` from ``s[t-1]`` (older) and ``s[t]`` (newer), which are kept in any case if ``exact``."""
    if tape is None:
        return add_branch(older, call(newer), mask)
    tape.time += 1
    return _HalfStep.apply(tape, tape.time, call, mask, exact, older, newer, *call.parameters())


class _Tape:
    """The one pair of streams that the backward of one forward call has reached.

    ``time`` counts half-steps in the forward. In the backward ``state`` is ``(t, s[t], s[t+1], owned)``; ``owned``
    tells for each of the two whether the tape made it and may overwrite it.
    """

    __slots__ = ("__weakref__", "check", "inputs", "overlap", "state", "time")

    def __init__(self, check: InversionCheck | None = None, *, overlap: bool = False) -> None:
        self.time = 0
        self.state: tuple[int, Tensor, Tensor, tuple[bool, bool]] | None = None
        self.overlap = OverlappedRecompute() if overlap else None
        self.check = check
        self.inputs: dict[int, tuple[int, Tensor, Tensor]] = {}  # time of F -> block, copies of its inputs

    def copy_inputs(self, block: int, x1: Tensor, x2: Tensor) -> None:
        self.inputs[self.time + 1] = (block, *(x.detach().to("cpu", copy=True) for x in (x1, x2)))

    def take(self, time: int) -> tuple[Tensor, Tensor, tuple[bool, bool]]:
        state, self.state = self.state, None
        if state is None or state[0] != time:
            raise RuntimeError(
                "the output of a block inside a reversible sequence was used without the blocks after it; "
                "ask for it by forward(..., intermediates=[index]), which keeps it"
            )
        return state[1:]


class _Keep(Function):
    """Identity on a pair of streams that saves it and, in the backward, starts the tape from it."""

    @staticmethod
    def forward(ctx, tape: _Tape, time: int, older: Tensor, newer: Tensor):
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.time = tape, time
        if tape.overlap is not None:
            tape.overlap.starts_at(time)
        ctx.save_for_backward(older, newer)
        return older, newer

    @staticmethod
    def backward(ctx, grad_older: Tensor | None, grad_newer: Tensor | None):
        older, newer = ctx.saved_tensors
        ctx.tape.state = (ctx.time, older.detach(), newer.detach(), (False, False))
        return None, None, grad_older, grad_newer


class _HalfStep(Function):
    """``s[t+1] = s[t-1] + m * f(s[t])``; saves the parameters (by reference), the mask and what the call keeps.

    Where a `_Keep` holds the pair ``(s[t-1], s[t])``, the half-step saves ``s[t]`` too (the same memory): its gradient
    is then free of the rounding of the half-step after it, and nothing has to be rebuilt.
    """

    @staticmethod
    def forward(ctx, tape, time, call, mask, exact, older, newer, *parameters):
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.time, ctx.call = tape, time, call
        result, kept = call.record(newer, base=older, mask=mask)
        if tape.overlap is not None:
            tape.overlap.note(time, call, parameters)
        ctx.num_kept = len(kept)
        ctx.save_for_backward(mask, newer if exact else None, *kept, *parameters)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor | None):
        refuse_second_derivative()
        mask, exact, *saved = ctx.saved_tensors
        kept, parameters = saved[: ctx.num_kept], saved[ctx.num_kept :]
        tape, time = ctx.tape, ctx.time
        newer, result, (newer_owned, result_owned) = tape.take(time)
        _, _, _, _, _, needs_older, needs_newer, *needs_parameters = ctx.needs_input_grad

        older = None  # needed where a half-step before this one is in the graph, or compared
        if exact is not None:
            newer = exact
        elif (time > 1 and (needs_older or needs_newer)) or time in tape.inputs:
            older = result if result_owned else torch.empty_like(result)
            tape.state = (time - 1, older, newer, (True, newer_owned))
        rest = {"needs_grad": [needs_newer, *needs_parameters], "subtract": older if older is None else (result, older)}
        if tape.overlap is None:
            grads = ctx.call.pull_back([newer], parameters, kept, grad, mask, **rest)
        else:
            grads = tape.overlap.pull_back(time, ctx.call, newer, parameters, grad, mask, **rest)
        if time in tape.inputs:
            block, x1, x2 = tape.inputs[time]
            tape.check.compare(block, x1, x2, x1 if older is None else older, newer)
        return None, None, None, None, None, grad if needs_older else None, *grads
