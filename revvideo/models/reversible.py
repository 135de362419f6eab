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

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call

from revvideo.models.layers import drop_path_mask

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

    Raises:
        ValueError: an unknown ``backprop``.
    """

    def __init__(
        self, blocks: Iterable[ReversibleBlock | tuple[nn.Module, nn.Module]], *, backprop: str = "reversible"
    ):
        super().__init__()
        self.layers = nn.ModuleList(b if isinstance(b, ReversibleBlock) else ReversibleBlock(*b) for b in blocks)
        self.backprop = check_backprop(backprop)

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
        output, kept = run_blocks(self.layers, x1, x2, backprop=self.backprop, intermediates=intermediates)
        return (output, kept) if intermediates else output


def check_backprop(mode: str) -> str:
    """Return ``mode``, or raise a ValueError that names the known ones."""
    if mode not in BACKPROP_MODES:
        raise ValueError(f"backprop is {mode!r}; expected one of {', '.join(BACKPROP_MODES)} (REV.BACKPROP)")
    return mode


def run_blocks(
    blocks: Sequence[ReversibleBlock],
    x1: Tensor,
    x2: Tensor,
    *,
    backprop: str = "reversible",
    f_args: tuple = (),
    intermediates: Sequence[int] = (),
) -> tuple[tuple[Tensor, Tensor], list[tuple[Tensor, Tensor]]]:
    """Run two streams through reversible blocks (the function behind `ReversibleSequence`).

    Streams of half precision are carried in float32, so that the inversion error is that of float32 additions; under
    autocast they stay float32, otherwise (a model in pure half precision) they return in the dtype they came in.

    Args:
        blocks: the blocks, in order.
        x1: first stream.
        x2: second stream.
        backprop: see `ReversibleSequence`.
        f_args: further arguments, without tensors that need gradients, for every F.
        intermediates: indices of blocks whose output pairs are returned too.

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
    branch_dtype = narrow if narrow is not None and not _autocast_is_on(x1.device.type) else None
    stream_dtype = torch.float32 if narrow is not None else dtype
    x1, x2 = x1.to(stream_dtype), x2.to(stream_dtype)

    tape = _Tape() if backprop == "reversible" and torch.is_grad_enabled() else None
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    older, newer = x1, x2
    for index, block in enumerate(blocks):
        mask = None
        for branch, args in ((block.F, f_args), (block.G, ())):
            if mask is None or not block.shared_mask:
                mask = drop_path_mask(newer, block.drop_path if block.training else 0.0)
            call = _BranchCall(branch, args, branch_dtype)
            older, newer = newer, _half_step(tape, call, older, newer, mask)
        if tape is not None and (index in intermediates or index == len(blocks) - 1):
            older, newer = _Keep.apply(tape, tape.time, older, newer)
        if index in intermediates:
            kept[index] = (older, newer)

    pairs = [(older, newer), *(kept[index] for index in intermediates)]
    if branch_dtype is not None:
        pairs = [(first.to(branch_dtype), second.to(branch_dtype)) for first, second in pairs]
    return pairs[0], pairs[1:]


def _half_step(tape: "_Tape | None", call: "_BranchCall", older: Tensor, newer: Tensor, mask: Tensor | None) -> Tensor:
    """``s[t+1]`` from ``s[t-1]`` (older) and ``s[t]`` (newer)."""
    if tape is None:
        return _add_branch(older, call(newer), mask)
    tape.time += 1
    return _HalfStep.apply(tape, tape.time, call, mask, older, newer, *call.parameters())


def _add_branch(stream: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
    if branch.shape != stream.shape:
        raise ValueError(
            f"F or G returned the shape {tuple(branch.shape)}; expected the streams' {tuple(stream.shape)}"
        )
    return stream + branch if mask is None else stream + branch * mask


class _Tape:
    """The one pair of streams that the backward of one forward call has reached.

    ``time`` counts half-steps in the forward. In the backward ``state`` is ``(t, s[t], s[t+1], owned)``; ``owned``
    tells for each of the two whether the tape made it and may overwrite it.
    """

    __slots__ = ("__weakref__", "state", "time")

    def __init__(self) -> None:
        self.time = 0
        self.state: tuple[int, Tensor, Tensor, tuple[bool, bool]] | None = None

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
        ctx.save_for_backward(older, newer)
        return older, newer

    @staticmethod
    def backward(ctx, grad_older: Tensor | None, grad_newer: Tensor | None):
        older, newer = ctx.saved_tensors
        ctx.tape.state = (ctx.time, older.detach(), newer.detach(), (False, False))
        return None, None, grad_older, grad_newer


class _HalfStep(Function):
    """``s[t+1] = s[t-1] + m * f(s[t])``; saves the parameters (by reference) and the mask, no activation."""

    @staticmethod
    def forward(ctx, tape, time, call, mask, older, newer, *parameters):
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.time, ctx.call = tape, time, call
        ctx.save_for_backward(mask, *parameters)
        return _add_branch(older, call.record(newer), mask)

    @staticmethod
    def backward(ctx, grad: Tensor | None):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a reversible sequence cannot be differentiated twice (create_graph=True); "
                "build it with backprop='plain' (REV.BACKPROP plain) for that"
            )
        mask, *parameters = ctx.saved_tensors
        newer, result, (newer_owned, result_owned) = ctx.tape.take(ctx.time)
        _, _, _, _, needs_older, needs_newer, *needs_parameters = ctx.needs_input_grad

        branch, inputs = ctx.call.replay(
            newer, parameters, needs_newer and grad is not None, [n and grad is not None for n in needs_parameters]
        )
        if ctx.time > 1 and (needs_older or needs_newer):  # otherwise no half-step before this one is in the graph
            value = branch.detach() if mask is None else branch.detach() * mask
            older = result.sub_(value) if result_owned else result - value
            ctx.tape.state = (ctx.time - 1, older, newer, (True, newer_owned))
        grads = [None] * len(inputs)
        wanted = [i for i, tensor in enumerate(inputs) if tensor.requires_grad]
        if wanted and branch.requires_grad:
            grad_branch = (grad if mask is None else grad * mask).to(branch.dtype)
            found = torch.autograd.grad(branch, [inputs[i] for i in wanted], grad_branch, allow_unused=True)
            for i, g in zip(wanted, found, strict=True):
                grads[i] = g
        return None, None, None, None, grad if needs_older else None, *grads


class _BranchCall:
    """One call of F or G, and what it takes to make the same call again in the backward.

    The same call means: the same autocast state, the same train/eval mode of every submodule, the same random numbers.
    Autocast's weight cache is off in both, because a cast made while gradients are off would be found there later by
    code that needs its gradient.
    """

    def __init__(self, branch: nn.Module, args: tuple, dtype: torch.dtype | None):
        self.branch, self.args, self.dtype = branch, args, dtype

    def parameters(self) -> list[Tensor]:
        return list(self.branch.parameters())

    def _cast(self, x: Tensor) -> Tensor:
        return x if self.dtype is None else x.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.branch(self._cast(x), *self.args)

    def record(self, x: Tensor) -> Tensor:
        """Call the branch and remember the conditions."""
        self.modes = [module.training for module in self.branch.modules()]
        self.autocast = _autocast_state(x.device)
        before, version = _random_state(x.device), x._version
        with _autocast(self.autocast):
            result = self(x)
        if x._version != version:
            raise RuntimeError(
                f"{type(self.branch).__name__} changed its input by an in-place operation, so the backward could not "
                "rebuild it; let F and G begin with an operation that returns a new tensor"
            )
        after = _random_state(x.device)
        drew = any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))
        self.random_state = before if drew else None
        return result

    def replay(
        self, x: Tensor, parameters: Sequence[Tensor], x_needs_grad: bool, needs_grad: Sequence[bool]
    ) -> tuple[Tensor, list[Tensor]]:
        """Make the recorded call again on aliases of ``x`` and the parameters that are leaves of a graph of its own.

        Returns the result, and the aliases as the list ``[x, *parameters]``. Hooks of the real parameters do not see
        this graph, and buffers that the branch updates are updated in copies.
        """
        x = x.detach().requires_grad_(x_needs_grad)
        aliases = [p.detach().requires_grad_(n) for p, n in zip(parameters, needs_grad, strict=True)]
        names = [name for name, _ in self.branch.named_parameters()]
        tensors = dict(zip(names, aliases, strict=True))
        tensors |= {name: buffer.clone() for name, buffer in self.branch.named_buffers()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_autocast(self.autocast))
            stack.enter_context(_modes(self.branch, self.modes))
            if self.random_state is not None:
                stack.enter_context(_random_state_set(x.device, self.random_state))
            result = functional_call(self.branch, tensors, (self._cast(x), *self.args))
        return result, [x, *aliases]


def _autocast_is_on(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _autocast_state(device: torch.device) -> list[tuple[str, bool, torch.dtype]]:
    kinds = [kind for kind in {"cpu", device.type} if torch.amp.is_autocast_available(kind)]
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in sorted(kinds)]


@contextlib.contextmanager
def _autocast(state: list[tuple[str, bool, torch.dtype]]):
    with contextlib.ExitStack() as stack:
        for kind, enabled, dtype in state:
            stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
        yield


@contextlib.contextmanager
def _modes(module: nn.Module, modes: list[bool]):
    """Every submodule in the recorded train/eval mode for a while."""
    modules = list(module.modules())
    now = [m.training for m in modules]
    for m, mode in zip(modules, modes, strict=True):
        m.training = mode
    try:
        yield
    finally:
        for m, mode in zip(modules, now, strict=True):
            m.training = mode


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    if device.type not in ("cpu", "meta"):
        state.append(torch.get_device_module(device).get_rng_state(device))
    return state


@contextlib.contextmanager
def _random_state_set(device: torch.device, state: list[Tensor]):
    """The generators in the recorded state for a while; afterwards exactly where they were."""

    def put(values: list[Tensor]) -> None:
        torch.set_rng_state(values[0])
        if len(values) > 1:
            torch.get_device_module(device).set_rng_state(values[1], device)

    now = _random_state(device)
    put(state)
    try:
        yield
    finally:
        put(now)
