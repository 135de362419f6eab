"""What every model of the registry can do, the baselines included."""

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from reduced_models import NUM_CLASSES, clips_for, model_on_meta, reduced_model, reduced_options
from torch import Tensor, nn

from revvideo import create_model, list_models

NAMES = list_models()
OFFICIAL = [name for name in NAMES if not name.startswith("ptv/")]
REVERSIBLE = [name for name in NAMES if name.startswith("rev_")]


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(2)
    nn.functional.cross_entropy(model(x), torch.arange(len(x))).backward()
    return parameter_gradients(model)


@pytest.mark.parametrize("name", NAMES)
def test_built_without_memory(name):
    model = model_on_meta(name)
    spec = model.input_spec
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.num_classes == (1000 if spec.image else 400)
    assert len(spec.mean) == len(spec.std) == spec.channels == 3
    assert model.get_classifier().in_features == model.num_features
    assert model_on_meta(name, num_classes=8).get_classifier().out_features == 8


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward(name):
    model = reduced_model(name)
    x = clips_for(model)
    for training in (True, False):
        logits = model.train(training)(x)
        assert logits.shape == (2, NUM_CLASSES)
        assert logits.isfinite().all()
    with torch.no_grad():
        assert torch.equal(model.forward_head(model.forward_features(x)), logits)
    gradients = step(model.train(), x)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("name", REVERSIBLE)
def test_reversible_gradients_are_those_of_plain_backprop(name):
    models = [reduced_model(name, backprop=mode, drop_path=0.3).double() for mode in ("reversible", "plain")]
    x = clips_for(models[0]).double()
    actual, expected = (step(model, x) for model in models)
    assert_gradients_equal(actual, expected, torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name, tmp_path):
    model = reduced_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with torch.random.fork_rng():
        torch.manual_seed(9)
        other = create_model(name, num_classes=NUM_CLASSES, **reduced_options(name)).eval()
    x = clips_for(model)
    with torch.no_grad():
        assert not torch.equal(other(x), model(x))
        other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
        assert torch.equal(other(x), model(x))


EXPORTED_FAST = ("mvitv2_s_16x4", "rev_mvitv2_s_16x4", "vit_b", "ptv/x3d_xs")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in EXPORTED_FAST else pytest.mark.slow) for n in NAMES])
def test_export_of_the_evaluation_forward(name):
    model = reduced_model(name).eval()
    x = clips_for(model)
    with torch.no_grad():
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x + 1), model(x + 1))


@pytest.mark.parametrize("name", NAMES)
def test_another_shape_is_refused(name):
    model = model_on_meta(name)
    spec = model.input_spec
    channels, *_, height, width = spec.shape
    frames = [] if spec.image else [spec.frames]
    expected = ", ".join(map(str, spec.shape))
    wrong = [(channels + 1, *frames, height, width), (channels, *frames, height, width + 4), (height, width)]
    if frames:
        wrong += [(channels, frames[0] + 1, height, width), (frames[0], channels, height, width)]
    for shape in wrong:
        with pytest.raises(ValueError, match=r"this model takes \(B, C") as caught:
            model(torch.empty(1, *shape, device="meta"))
        assert expected in str(caught.value)
        assert str((1, *shape)) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_feature_maps(name):
    model = reduced_model(name, features_only=True)
    x = clips_for(model)
    maps = model.eval()(x)
    assert len(maps) == len(model.feature_info)
    size = (model.input_spec.frames, *model.input_spec.size)
    for volume, info in zip(maps, model.feature_info, strict=True):
        assert volume.shape[:2] == (2, info["channels"])
        covered = zip(volume.shape[2:], size, info["reduction"], strict=True)
        assert all(cells == -(-pixels // reduction) for cells, pixels, reduction in covered)
        assert info["name"] in dict(model.model.named_modules())
    gradients = torch.autograd.grad(maps[0].sum() + maps[-1].sum(), next(iter(model.parameters())))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_another_classifier(name):
    model = reduced_model(name)
    x = clips_for(model)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.num_classes == 3
    model.reset_classifier(0)
    assert model.eval()(x).shape == (2, model.num_features)
    with torch.no_grad():
        assert torch.equal(model(x), model.forward_features(x))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_in_layers(name):
    model = model_on_meta(name)
    groups = model.layer_groups()
    names = [name for name, _ in model.named_parameters()]
    assert all(groups)
    assert sorted(name for group in groups for name in group) == sorted(names)
    classifier = {id(parameter) for parameter in model.get_classifier().parameters()}
    assert classifier <= {id(dict(model.named_parameters())[name]) for name in groups[-1]}
    for fragment in model.no_weight_decay():
        assert any(fragment in name for name in names)


@pytest.mark.parametrize("name", sorted(set(OFFICIAL) - set(REVERSIBLE)))
def test_gradient_checkpointing_changes_no_gradient(name):
    models = [reduced_model(name, drop_path=0.3).double() for _ in range(2)]
    for model, enable in zip(models, (True, False), strict=True):
        model.set_grad_checkpointing(enable)
    x = clips_for(models[0]).double()
    assert_gradients_equal(step(models[0], x), step(models[1], x), torch.float64)
