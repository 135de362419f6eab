"""The losses of MODEL.LOSS_FUNC, by PySlowFast's names.

Every loss is a module `(outputs, targets) -> scalar`, the mean over the batch, computed in float32 or better whatever
autocast does around it. Targets are class numbers `(B,)` or class weights `(B, K)`.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revvideo.errors import InputError


class Loss(nn.Module, ABC):
    """Base of the losses.

    Attributes:
        takes_probabilities: True if the loss wants probabilities in [0, 1] instead of logits (only `bce`). Models
            return logits, so the caller then applies the activation of MODEL.HEAD_ACT first.
    """

    takes_probabilities = False

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss.

        Args:
            outputs: `(B, K)` floating.
            targets: `(B,)` integer class numbers or `(B, K)` floating weights.

        Returns:
            Scalar, float32 (float64 for float64 outputs).
        """
        with torch.autocast(outputs.device.type, enabled=False):
            if outputs.dtype in (torch.float16, torch.bfloat16):
                outputs = outputs.float()
            return self.loss(outputs, targets if is_class_numbers(targets) else targets.to(outputs.dtype))

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As `forward`, with both arguments in full precision."""


class CrossEntropy(Loss):
    """`torch.nn.functional.cross_entropy`: log-softmax and negative log-likelihood."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


class SoftCrossEntropy(Loss):
    """Mean over the batch of `-sum_k t_k log_softmax(z)_k`; the targets are used as they are, not renormalised.

    Source: PySlowFast, slowfast/models/losses.py (SoftTargetCrossEntropyLoss).
    """

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if is_class_numbers(targets):
            return F.cross_entropy(outputs, targets)
        if targets.shape != outputs.shape:
            raise ValueError(f"targets {tuple(targets.shape)} do not match outputs {tuple(outputs.shape)}")
        return -(targets * F.log_softmax(outputs, dim=1)).sum(dim=1).mean()


class BinaryCrossEntropy(Loss):
    """`torch.nn.BCELoss` on probabilities (after a sigmoid): mean over samples and classes."""

    takes_probabilities = True

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy(outputs, as_weights(targets, outputs))


class BinaryCrossEntropyWithLogits(Loss):
    """`torch.nn.BCEWithLogitsLoss`: mean over samples and classes."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, as_weights(targets, outputs))


LOSSES = {
    "cross_entropy": CrossEntropy,
    "soft_cross_entropy": SoftCrossEntropy,
    "bce": BinaryCrossEntropy,
    "bce_logit": BinaryCrossEntropyWithLogits,
}


def make_loss(name: str) -> Loss:
    """The loss called `name` in MODEL.LOSS_FUNC.

    Raises:
        InputError: a name that is not in `LOSSES`.
    """
    if name not in LOSSES:
        raise InputError(f"MODEL.LOSS_FUNC is {name!r}; known: {', '.join(LOSSES)}")
    return LOSSES[name]()


def is_class_numbers(targets: Tensor) -> bool:
    """True for `(B,)` integer labels, False for `(B, K)` weights."""
    return targets.ndim == 1 and not targets.is_floating_point()


def as_weights(targets: Tensor, outputs: Tensor) -> Tensor:
    """Targets as `(B, K)` weights: class numbers `(B,)` become one-hot, in the dtype of `outputs` `(B, K)`."""
    return F.one_hot(targets.long(), outputs.shape[1]).to(outputs.dtype) if is_class_numbers(targets) else targets
