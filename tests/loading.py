"""What tests of loading weights share: changed models, refused loads, files of small official networks."""

import pytest
import torch
from torch import nn

from revvideo import create_model
from revvideo.errors import InputError
from revvideo.models.checkpoint_formats import Weights, load_weights, write_weights

NARROW = {"embed_dim": 8}
READABLE = {"depth": 6, "input_size": (8, 32, 32)}  # what weights tell, besides the width
SMALL = READABLE | NARROW
SMALL_IMAGE = SMALL | {"input_size": (1, 32, 32)}
FINE_TUNING = {"head", "inflate", "interpolate"}


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(build, amount: float = 0.25, **options) -> nn.Module:
    """A model whose weights are not those of a fresh one."""
    model = build(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount)
    return model


def refusal(model: nn.Module, weights, **options) -> str:
    """The message of a refused load, which left the model as it was."""
    before = snapshot(model)
    with pytest.raises(InputError) as caught:
        load_weights(model, weights, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(caught.value)


def as_weights(state) -> Weights:
    return Weights(state, "tensors", "some.pyth", state)


def saved(tmp_path, name: str, **overrides) -> str:
    """A file with the weights of an official network, made small."""
    torch.manual_seed(3)
    model = create_model(name, **overrides)
    return str(write_weights(tmp_path / f"{name}.pyth", model.state_dict()))
