"""One call of a branch F or G that is made twice: in the forward without a graph, in the backward with one.

A branch with a true attribute ``tokenwise`` maps each token by itself, one with a true attribute ``samplewise`` each
sample, and neither draws random numbers. Such a branch is called on some thousand tokens, or a few samples, at a time:
its inner activations stay small, and in the processor's cache.
"""

import contextlib
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import functional_call

from revvideo.models.call_conditions import CallConditions
from revvideo.models.kept_attention import RecordAttention, ReuseAttention

MOST_CHUNKS = 32  # of automatic size: calls cost time, too, and large batches have large streams anyway
SAMPLE_CHUNKS = 8  # a samplewise branch sees whole samples of about as many tokens as this many chunks have


@dataclasses.dataclass
class BranchCall:
    """The call ``branch(*xs, *args)`` and the conditions that it was first made under.

    Args:
        branch: a module; it leaves its input as it is.
        args: further arguments, without tensors that need gradients.
        dtype: that the tensors ``xs`` are cast to, if any.
        chunk_tokens: tokens that a tokenwise branch sees at a time (a samplewise one: see `SAMPLE_CHUNKS`); 0: all, -1:
            by the device.
        keep_attention: keep the outputs of attention for the second time.
    """

    branch: nn.Module
    args: tuple = ()
    dtype: torch.dtype | None = None
    chunk_tokens: int = -1
    keep_attention: bool = False

    def parameters(self) -> list[Tensor]:
        return list(self.branch.parameters())

    def __call__(self, *xs: Tensor) -> Tensor:
        """The plain call, for autograd as usual."""
        return self.branch(*map(self._cast, xs), *self.args)

    def record(
        self, *xs: Tensor, base: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Make the call for the first time.

        Args:
            *xs: ``(B, N, D)``, in most cases one.
            base: added to the result, if given.
            mask: ``(B, 1, 1)``; multiplies the branch.

        Returns:
            ``base + mask * branch(*xs)``, and tensors that `replay` wants back.
        """
        refuse_sharded(self.branch)
        self._conditions = CallConditions(self.branch, xs[0].device)
        versions = [x._version for x in xs]
        recorder = RecordAttention() if self.keep_attention and not _is_compiled(self.branch) else None
        with self._conditions.recorded(), recorder or contextlib.nullcontext():
            result = self._add_in_pieces(xs, base, mask)
        if [x._version for x in xs] != versions:
            raise RuntimeError(
                f"{type(self.branch).__name__} changed its input by an in-place operation, so the backward could not "
                "rebuild it; let F and G begin with an operation that returns a new tensor"
            )
        self._kept_layouts = recorder.layouts if recorder else []
        return result, recorder.tensors if recorder else []

    def _add_in_pieces(self, xs: Sequence[Tensor], base: Tensor | None, mask: Tensor | None) -> Tensor:
        pieces = self._pieces(*xs, base)
        if pieces is None:
            return add_branch(base, self(*xs), mask)
        if base is None:
            return torch.cat([self(*rows) for rows in zip(*map(pieces.of, xs), strict=True)])
        result = torch.empty_like(base)
        rows = [pieces.of(tensor) for tensor in (result, base, pieces.spread(mask, base), *xs)]
        for out, base_rows, mask_rows, *x_rows in zip(*rows, strict=True):
            torch.add(base_rows, times(_checked(self(*x_rows), base_rows), mask_rows), out=out)
        return result

    def replay(
        self,
        xs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        *,
        needs_grad: Sequence[bool],
        reuse: ReuseAttention | None = None,
    ) -> "Replayed":
        """Make the call again, with a graph of its own.

        The graph's leaves are aliases of ``[*xs, *parameters]`` (``needs_grad`` tells which want a gradient), so hooks
        of the real parameters do not see it, and buffers that the branch updates are updated in copies.
        """
        leaves = [t.detach().requires_grad_(n) for t, n in zip((*xs, *parameters), needs_grad, strict=True)]
        xs, aliases = leaves[: len(xs)], leaves[len(xs) :]
        names = [name for name, _ in self.branch.named_parameters()]
        tensors = dict(zip(names, aliases, strict=True))
        tensors |= {name: buffer.clone() for name, buffer in self.branch.named_buffers()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(self._conditions.restored())
            if reuse is not None:
                stack.enter_context(reuse)
            value = functional_call(self.branch, tensors, (*map(self._cast, xs), *self.args))
        return Replayed(value, leaves)

    def pull_back(
        self,
        xs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        kept: Sequence[Tensor],
        grad: Tensor | None,
        mask: Tensor | None,
        *,
        needs_grad: Sequence[bool],
        subtract: tuple[Tensor, Tensor] | None = None,
    ) -> list[Tensor | None]:
        """Make the call again, piece by piece, and go back through it.

        Args:
            xs, parameters: as in `replay`.
            kept: what `record` returned to be kept.
            grad: the gradient of ``mask * branch(*xs)``; None where nothing depends on it.
            mask: as in `record`.
            needs_grad: which gradients are wanted, of ``[*xs, *parameters]``.
            subtract: ``(result, out)``: writes ``result - mask * branch(*xs)`` to ``out``, which may be ``result``.

        Returns:
            The gradients of ``[*xs, *parameters]``, None where none is wanted.
        """
        result, out = subtract or (None, None)
        grad = grad if grad is None else grad.contiguous()  # so that the call is divided as it was in the forward
        needs_grad = [n and grad is not None for n in needs_grad]
        options = {"needs_grad": needs_grad, "reuse": ReuseAttention(self._kept_layouts, kept) if kept else None}
        pieces = self._pieces(*xs, *(tensor for tensor in (result, out, grad) if tensor is not None))
        if pieces is None:
            replayed = self.replay(xs, parameters, **options)
            _subtract(replayed.take_value(), mask, result, out)
            return replayed.gradients(None if grad is None else times(grad, mask))

        totals: list[Tensor | None] = [None] * len(needs_grad)
        total_rows: dict[int, Sequence[Tensor]] = {}
        masks = pieces.spread(mask, xs[0] if grad is None else grad)
        rows = [pieces.of(tensor) for tensor in (result, out, grad, masks, *xs)]
        for i, (result_rows, out_rows, grad_rows, mask_rows, *x_rows) in enumerate(zip(*rows, strict=True)):
            replayed = self.replay(x_rows, parameters, **options)
            _subtract(replayed.take_value(), mask_rows, result_rows, out_rows)
            found = replayed.gradients(None if grad_rows is None else times(grad_rows, mask_rows))
            for j, g in enumerate(found):
                if g is None:
                    continue
                if j >= len(xs):
                    # Into memory of our own: autograd may return one tensor for two parameters, or an expanded one.
                    totals[j] = (
                        g.clone(memory_format=torch.contiguous_format) if totals[j] is None else totals[j].add_(g)
                    )
                elif j and g is found[0]:  # the same gradient for several inputs
                    totals[j] = totals[0]
                else:
                    if totals[j] is None:
                        totals[j] = torch.empty_like(xs[j])
                        total_rows[j] = pieces.of(totals[j])
                    total_rows[j][i].copy_(g)
        return totals

    def _cast(self, x: Tensor) -> Tensor:
        return x if self.dtype is None else x.to(self.dtype)

    def _pieces(self, x: Tensor, *others: Tensor | None) -> "Pieces | None":
        """How the call is divided; None where it is made in one piece."""
        tensors = (x, *(tensor for tensor in others if tensor is not None))
        tokens = x.shape[:-1].numel()
        chunk = chunk_size(self.chunk_tokens, x.device, tokens)
        if not chunk or tokens <= chunk or not all(t.is_contiguous() for t in tensors):
            return None
        if getattr(self.branch, "tokenwise", False) and all(t.shape == x.shape for t in tensors):
            return Pieces.equal(tokens, chunk, by_token=True)
        if getattr(self.branch, "samplewise", False):
            samples = max(1, SAMPLE_CHUNKS * chunk // (tokens // len(x)))
            return Pieces.equal(len(x), samples, by_token=False) if samples < len(x) else None
        return None


def refuse_second_derivative() -> None:
    """In a backward: raise a RuntimeError where a graph of it is asked for, since the replay builds none."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "reversible backprop cannot be differentiated twice (create_graph=True); "
            "build the network with backprop='plain' (REV.BACKPROP plain) for that"
        )


def chunk_size(chunk_tokens: int, device: torch.device, tokens: int = 0) -> int:
    """Tokens of a chunk; 0 for no chunks.

    -1 is as many as keep the products fast on this kind of device, and not more than `MOST_CHUNKS` of ``tokens``.
    """
    if chunk_tokens >= 0:
        return chunk_tokens
    return max(3136 if device.type == "cpu" else 131072, -(-tokens // MOST_CHUNKS))


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A division of tensors (B, N, D) into pieces.

    Args:
        sizes: samples of each piece, or tokens.
        by_token: whether they are tokens, of all samples in one row.
    """

    sizes: list[int]
    by_token: bool

    @staticmethod
    def equal(total: int, largest: int, *, by_token: bool) -> "Pieces":
        """As few pieces as there can be, of nearly one size."""
        size = -(-total // -(-total // largest))
        return Pieces([min(size, total - start) for start in range(0, total, size)], by_token)

    def of(self, x: Tensor | None) -> Sequence[Tensor | None]:
        """Views of the pieces of ``x``, (b, N, D) or (1, n, D)."""
        if x is None:
            return [None] * len(self.sizes)
        return x.view(1, -1, x.shape[-1]).split(self.sizes, dim=1) if self.by_token else x.split(self.sizes)

    def spread(self, mask: Tensor | None, like: Tensor) -> Tensor | None:
        """A mask of samples (B, 1, 1) that can be divided as ``like`` is."""
        return mask if mask is None or not self.by_token else mask.expand(*like.shape[:-1], 1).contiguous()


class Replayed:
    """The graph of a call that was made again.

    Args:
        value: the result, with its graph.
        inputs: the leaves, in the order of the gradients.
    """

    def __init__(self, value: Tensor, inputs: list[Tensor]):
        self._value, self._inputs = value, inputs

    def take_value(self) -> Tensor:
        """The result, once; afterwards only the graph is left and the memory is the caller's."""
        value = self._value.detach()
        if self._value.requires_grad:
            with torch.enable_grad():
                self._value = _Hollow.apply(self._value)
        return value

    def gradients(self, grad: Tensor | None) -> list[Tensor | None]:
        """Gradients of all leaves for the gradient ``grad`` of the result; None where none is wanted."""
        grads: list[Tensor | None] = [None] * len(self._inputs)
        wanted = [i for i, tensor in enumerate(self._inputs) if tensor.requires_grad]
        if grad is not None and wanted and self._value.requires_grad:
            value = self._value
            inputs = [self._inputs[i] for i in wanted]
            found = torch.autograd.grad(value, inputs, grad.to(value.dtype), allow_unused=True)
            for i, g in zip(wanted, found, strict=True):
                grads[i] = g
        return grads


class _Hollow(Function):
    """Has the shape and the gradient of its input, but no memory."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return value.new_zeros(()).expand(value.shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def add_branch(base: Tensor | None, branch: Tensor, mask: Tensor | None) -> Tensor:
    """``base + mask * branch``."""
    branch = times(branch, mask)
    return branch if base is None else base + _checked(branch, base)


def _checked(branch: Tensor, stream: Tensor) -> Tensor:
    if branch.shape != stream.shape:
        raise ValueError(
            f"F or G returned the shape {tuple(branch.shape)}; expected the streams' {tuple(stream.shape)}"
        )
    return branch


def times(x: Tensor, mask: Tensor | None) -> Tensor:
    """``mask * x``, or ``x``."""
    return x if mask is None else x * mask


def _subtract(value: Tensor, mask: Tensor | None, result: Tensor | None, out: Tensor | None) -> None:
    if out is not None:
        torch.sub(result, times(value, mask), out=out)


def _is_compiled(module: nn.Module) -> bool:
    return any(m._compiled_call_impl is not None for m in module.modules())


def refuse_sharded(module: nn.Module) -> None:
    """Parameters that FSDP2 frees after the forward of a branch are not there when its backward needs them."""
    if any(hasattr(m, "unshard") and hasattr(m, "reshard") for m in module.modules()):
        raise ValueError(
            "fully_shard was applied inside of a reversible block, whose backward calls its branches outside of FSDP's "
            "hooks; shard the whole model instead: revvideo.distributed.sharding.shard_model(model)"
        )
