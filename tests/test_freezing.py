"""Frozen parts: no gradients, evaluation mode, and the gradients of the rest as they would be anyway."""

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from reduced_models import clips_for, model_on_meta, reduced_model
from tiny_models import CLIP_SHAPE, tiny_mvit, tiny_rev_mvit
from torch import Tensor, nn

from revvideo import list_models
from revvideo.engine.freezing import FrozenParts, freeze
from revvideo.engine.optimizer import make_optimizer, parameter_groups
from revvideo.errors import InputError

NAMES = list_models()
# One of each family; the others are slow tests.
FAST = ("mvitv2_s_16x4", "rev_mvit_b_16x4", "rev_vit_b", "ptv/x3d_xs")
MARKED = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def train_mode(model: nn.Module, frozen: FrozenParts) -> nn.Module:
    """As the trainer sets it."""
    model.train()
    frozen.keep_in_eval()
    return model


def backward(model: nn.Module, x: Tensor) -> None:
    torch.manual_seed(2)
    nn.functional.cross_entropy(model(x), torch.arange(len(x))).backward()


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def in_training(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if module.training}


def middle_block(model: nn.Module) -> list[str]:
    """All parameters of a block between others, by their names."""
    groups = model.layer_groups()
    return groups[len(groups) // 2]


# --- every model of the registry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MARKED)
def test_the_stem_is_the_first_layer_and_the_backbone_all_but_the_classifier(name):
    model = model_on_meta(name)
    before = trainable(model)
    stem = freeze(model, ["stem"])
    assert set(stem.parameters) == before & set(model.layer_groups()[0])
    assert stem.parameters
    assert trainable(model) == before - set(stem.parameters)

    model = model_on_meta(name)
    freeze(model, ["backbone"])
    left = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert left == {id(parameter) for parameter in model.get_classifier().parameters()}


@pytest.mark.parametrize("name", MARKED)
def test_gradients_of_the_rest_are_those_of_an_unfrozen_model(name):
    """A stem and a block in the middle; the unfrozen model runs in the same modes, and drops the same paths."""
    model, whole = (reduced_model(name).double() for _ in range(2))
    frozen = freeze(model, ["stem", *middle_block(model)])
    train_mode(model, frozen)
    for ours, theirs in zip(model.modules(), whole.modules(), strict=True):
        theirs.training = ours.training
    x = clips_for(model).double()
    for each in (model, whole):
        backward(each, x)
    gradients, expected = parameter_gradients(model), parameter_gradients(whole)
    assert {name for name, gradient in gradients.items() if gradient is None} >= set(frozen.parameters)
    rest = trainable(model)
    assert_gradients_equal(*({n: g[n] for n in rest} for g in (gradients, expected)), torch.float64)


@pytest.mark.parametrize("name", MARKED)
def test_a_frozen_backbone_computes_as_in_evaluation_and_keeps_no_graph(name):
    model = reduced_model(name)
    frozen = freeze(model, ["backbone"])
    x = clips_for(model)
    buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
    with torch.no_grad():
        expected = model.eval().forward_features(x)
    features = train_mode(model, frozen).forward_features(x)
    assert torch.equal(features, expected)
    assert not features.requires_grad
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in model.named_buffers())
    assert model.training
    assert model.get_classifier().training


def test_the_fast_models_exist():
    assert set(FAST) < set(NAMES)


# --- modes ------------------------------------------------------------------------------------------------------------


def dropping_model() -> nn.Module:
    return tiny_rev_mvit(drop_path=0.2, dropout=0.3, head_dropout=0.5)


def test_frozen_modules_stay_in_evaluation_mode_and_no_others():
    model = dropping_model()
    everything = in_training(model)
    assert everything == {name for name, _ in model.named_modules()}
    frozen = freeze(model, ["stem", "rev_backbone.layers.0"])
    assert in_training(model) == everything, "the mode is the caller's until it asks for it"
    first = {name for name in everything if name.startswith("rev_backbone.layers.0")}
    quiet = {"patch_embed", "patch_embed.proj", "pos_drop"} | first
    for _ in range(2):  # training and validation take turns
        train_mode(model, frozen)
        assert in_training(model) == everything - quiet
        assert not in_training(model.eval())


def test_dropout_beside_the_classifier_goes_on_and_that_of_the_backbone_does_not():
    model = dropping_model()
    train_mode(model, freeze(model, ["backbone"]))
    assert in_training(model) == {"", "head", "head.dropout", "head.projection"}
    x = torch.randn(4, *CLIP_SHAPE)
    with torch.no_grad():
        first, second = model.forward_features(x), model.forward_features(x)
        assert torch.equal(first, second)
        assert not torch.equal(model.forward_head(first), model.forward_head(first))


def test_a_module_whose_parameters_are_all_named_is_frozen_with_what_is_in_it():
    model = tiny_mvit(drop_path=0.5)
    assert "drop_path" in dict(model.blocks[2].named_children())
    frozen = freeze(model, middle_block(model))
    index = next(i for i, block in enumerate(model.blocks) if not any(p.requires_grad for p in block.parameters()))
    assert frozen.modules == (model.blocks[index],)
    train_mode(model, frozen)
    assert not model.blocks[index].drop_path.training
    assert model.blocks[index - 1].drop_path.training


def test_a_part_without_parameters_can_be_named():
    model = dropping_model()
    frozen = freeze(model, ["pos_drop"])
    assert (frozen.parameters, frozen.modules) == ((), (model.pos_drop,))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["stem"], ["backbone"], ["pos_embed_spatial", "rev_backbone.layers.1.G.mlp.fc1"]])
def test_steps_leave_frozen_parts_as_they_are_and_move_the_rest(names):
    model = dropping_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    frozen = freeze(model, names)
    groups = parameter_groups(model, weight_decay=0.1, zero_weight_decay_1d=True, layer_decay=0.8)
    optimizer = make_optimizer("adamw", groups, lr=1e-2)
    for _ in range(2):
        train_mode(model, frozen)
        optimizer.zero_grad()
        backward(model, torch.randn(5, *CLIP_SHAPE))
        optimizer.step()
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == set(frozen.parameters)
    in_optimizer = {name for group in groups for name in group["names"]}
    assert in_optimizer == before.keys() - same


def test_tied_weights_are_frozen_under_any_of_their_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    frozen = freeze(model, ["1.weight"])
    assert frozen.parameters == ("0.weight",)
    assert not model[0].weight.requires_grad


def test_the_line_tells_what_was_frozen():
    model = tiny_rev_mvit()
    total = sum(parameter.numel() for parameter in model.parameters())
    left = sum(parameter.numel() for parameter in model.head.parameters())
    frozen = freeze(model, ["backbone"])
    assert (frozen.num_frozen, frozen.num_all) == (total - left, total)
    assert str(frozen).startswith(f"frozen (backbone): {len(list(model.parameters())) - 2} tensors; ")


def test_no_names_freeze_nothing():
    model = model_on_meta("vit_b", positions="sincos")  # whose position table was never trained
    before = trainable(model)
    assert before < dict(model.named_parameters()).keys()
    frozen = freeze(model, [])
    assert (frozen.parameters, frozen.modules) == ((), ())
    assert trainable(model) == before


# --- wrong names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["stem", "patch_embd"], ["'patch_embd'", "nearest: patch_embed"]),
        (["blocks.0"], ["'blocks.0'", "rev_backbone.layers.0"]),
        (["Backbone"], ["'Backbone'", "nearest: backbone"]),
        ([""], ["''", "nearest: stem, backbone, patch_embed"]),
        (["backbone", "head"], ["['backbone', 'head']", "nothing of RevMViT to train"]),
        (["stem", "rev_backbone", "norm", "head"], ["nothing of RevMViT to train"]),
    ],
)
def test_wrong_names_are_refused_and_change_nothing(names, words):
    model = tiny_rev_mvit()
    before = trainable(model)
    with pytest.raises(InputError) as caught:
        freeze(model, names)
    for word in ("FINETUNE.FREEZE", *words):
        assert word in str(caught.value)
    assert trainable(model) == before


@pytest.mark.parametrize("word", ["stem", "backbone"])
def test_words_need_a_model_that_says_what_they_are(word):
    with pytest.raises(InputError, match=f"FINETUNE.FREEZE names the {word}, but Sequential has no"):
        freeze(nn.Sequential(nn.Linear(3, 2)), [word])


def test_a_backbone_without_a_classifier_is_refused():
    model = tiny_rev_mvit()
    model.reset_classifier(0)
    with pytest.raises(InputError, match="no classifier"):
        freeze(model, ["backbone"])
