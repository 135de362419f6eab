"""The average of the weights: its formula, its independence of the model, its use as a model."""

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from tiny_models import CLIP_SHAPE, NUM_CLASSES, tiny_mvit, tiny_rev_mvit
from torch import nn

from revvideo.engine.ema import ModelEma

DECAY = 0.8


def loss_of(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(3)  # for drop path
    clips = torch.randn(2, *CLIP_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return nn.functional.cross_entropy(model(clips), torch.tensor([0, NUM_CLASSES - 1]))


def change(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_average_is_the_weighted_sum_of_all_weights_so_far(dtype):
    model = tiny_rev_mvit().to(dtype)
    ema = ModelEma(model, DECAY)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    memory = {name: p.data_ptr() for name, p in ema.module.named_parameters()}
    for step in range(3):
        change(model, step)
        ema.update(model)
        for name, p in model.named_parameters():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * p.detach().double()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=tolerance, atol=tolerance)
        assert p.data_ptr() == memory[name], "not in place"
        assert not torch.equal(p, model.get_parameter(name))


def test_buffers_are_those_of_the_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = ModelEma(model, DECAY)
    model(torch.randn(5, 3))
    ema.update(model)
    assert all(torch.equal(a, b) for a, b in zip(ema.module.buffers(), model.buffers(), strict=True))
    assert model[1].num_batches_tracked == 1
    ema.module(torch.randn(5, 3))
    assert model[1].num_batches_tracked == ema.module[1].num_batches_tracked == 1


@pytest.mark.parametrize("make", [tiny_rev_mvit, tiny_mvit])
@pytest.mark.parametrize("when", ["before", "between forward and backward", "after"])
def test_an_average_made_and_updated_at_any_time_leaves_the_gradients_alone(make, when):
    def gradients(with_average: bool):
        model = make(drop_path=0.3).double().train()
        ema = ModelEma(model, DECAY) if with_average and when == "before" else None
        loss = loss_of(model)
        if with_average and when == "between forward and backward":
            ema = ModelEma(model, DECAY)
            ema.update(model)
            with torch.no_grad():
                loss_of(ema.module)
        loss.backward()
        if with_average:
            ema = ModelEma(model, DECAY) if ema is None else ema
            ema.update(model)
            assert all(p.grad is None and not p.requires_grad for p in ema.module.parameters())
            assert not any(module.training for module in ema.module.modules())
            assert model.training
        return parameter_gradients(model)

    assert_gradients_equal(gradients(True), gradients(False), torch.float64)


def test_the_average_is_evaluated_beside_the_model_and_saved_under_its_names():
    model = tiny_rev_mvit().double()
    ema = ModelEma(model, DECAY)
    change(model, 0)
    ema.update(model)
    model.eval()
    with torch.no_grad():
        raw, averaged = loss_of(model), loss_of(ema.module)
        assert raw != averaged
        assert loss_of(model) == raw  # the evaluation has swapped nothing
        again = ModelEma(tiny_rev_mvit().double(), DECAY)
        assert ema.state_dict().keys() == model.state_dict().keys()
        again.load_state_dict(ema.state_dict())
        assert loss_of(again.module) == averaged
        change(model, 1)
        for each in (ema, again):
            each.update(model)
        assert loss_of(again.module) == loss_of(ema.module) != averaged


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_wrong_decay_is_refused(decay):
    with pytest.raises(ValueError, match="0 <= decay < 1"):
        ModelEma(nn.Linear(2, 2), decay)


def test_another_model_is_refused():
    ema = ModelEma(nn.Linear(2, 2), DECAY)
    with pytest.raises(ValueError, match=r"0\.bias, 0\.weight, bias, weight"):
        ema.update(nn.Sequential(nn.Linear(2, 2)))
