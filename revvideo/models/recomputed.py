"""A branch outside of a reversible block that is computed again in the backward: only its inputs are kept."""

from torch import Tensor
from torch.autograd import Function

from revvideo.models.branch_call import BranchCall, add_branch, refuse_second_derivative


def recomputed(call: BranchCall, *xs: Tensor, base: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """``base + mask * branch(*xs)``; base and mask are optional.

    Args:
        call: of the branch.
        *xs: its inputs, which are kept.
        base: may be one of them.
        mask: ``(B, 1, 1)``.
    """
    return _Recomputed.apply(call, mask, base, len(xs), *xs, *call.parameters())


def plainly(call: BranchCall, *xs: Tensor, base: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """The same for autograd as usual."""
    return add_branch(base, call(*xs), mask)


class _Recomputed(Function):
    @staticmethod
    def forward(ctx, call, mask, base, num_inputs, *tensors):
        ctx.set_materialize_grads(False)
        result, kept = call.record(*tensors[:num_inputs], base=base, mask=mask)
        ctx.call, ctx.num_inputs, ctx.num_kept = call, num_inputs, len(kept)
        ctx.save_for_backward(mask, *kept, *tensors)
        return result

    @staticmethod
    def backward(ctx, grad: Tensor | None):
        refuse_second_derivative()
        mask, *saved = ctx.saved_tensors
        kept, tensors = saved[: ctx.num_kept], saved[ctx.num_kept :]
        xs, parameters = tensors[: ctx.num_inputs], tensors[ctx.num_inputs :]
        _, _, needs_base, _, *needs_grad = ctx.needs_input_grad
        grads = ctx.call.pull_back(xs, parameters, kept, grad, mask, needs_grad=needs_grad)
        return None, None, grad if needs_base else None, None, *grads
