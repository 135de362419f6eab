"""An exponential moving average of a model's weights, kept as a second model that can be evaluated at any time."""

import copy

import torch
from torch import Tensor, nn


class ModelEma:
    """``average = decay * average + (1 - decay) * weights`` after every step, in place.

    The copy is in evaluation mode and has no gradients; `module` is called like the model itself. It shares nothing
    with the model, so it may be made and updated at any time, also between a forward and its backward. Buffers are
    copied.

    Args:
        model: the model as it is at the start of the average; unwrapped (of a `DistributedDataParallel` its `module`).
        decay: weight of the past, 0 <= decay < 1.

    Raises:
        ValueError: another decay.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay of the weight average is {decay}; expected 0 <= decay < 1")
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        for parameter in self.module.parameters():
            parameter.grad = None  # deepcopy takes the gradients along

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of `model` after a step in.

        Raises:
            ValueError: `model` is not of the kind that the average was made of.
        """
        averages, weights = _by_name(self.module), _by_name(model)
        if averages.keys() != weights.keys():
            names = sorted(averages.keys() ^ weights.keys())
            raise ValueError(
                f"{len(names)} tensors are only in the model or only in its average ({', '.join(names[:4])}); expected "
                "the model that the average was made of, without a wrapper"
            )
        trained = [name for name, _ in self.module.named_parameters()]
        torch._foreach_lerp_([averages[n] for n in trained], [weights[n] for n in trained], 1.0 - self.decay)
        for name in averages.keys() - set(trained):
            averages[name].copy_(weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's own names, so that they load as a checkpoint of the model."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with an average.

        Raises:
            RuntimeError: names or shapes differ.
        """
        self.module.load_state_dict(state)


def _by_name(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
