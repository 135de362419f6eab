"""Grad-CAM: the formulas by hand, equal maps with and without the engine, and maps that show where the evidence is."""

import dataclasses

import pytest
import torch
from reduced_models import reduced_options
from tiny_models import CLIP_SHAPE, tiny_blocks, tiny_mvit, tiny_rev_mvit
from torch import nn

from revvideo.errors import InputError
from revvideo.models.block_plan import plan_blocks
from revvideo.models.input_spec import InputSpec
from revvideo.models.registry import create_model
from revvideo.models.rev_blocks import StageTransition
from revvideo.models.rev_mvit import RevMViT
from revvideo.models.reversible import BackpropOptions, ReversibleSequence
from revvideo.models.video_transformer import PatchSpec
from revvideo.visualize.block_output import block_names, choose_block, run_to_block
from revvideo.visualize.grad_cam import grad_cam, interpolation

PLAIN = BackpropOptions("plain")


def some_clips(count: int = 2, shape=CLIP_SHAPE) -> torch.Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(1))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


# The formulas


class Linear(nn.Module):
    """Cells by one convolution, their mean, one linear layer."""

    def __init__(self, num_classes: int = 3):
        super().__init__()
        torch.manual_seed(0)
        self.cells = nn.Conv3d(3, 6, (2, 4, 4), (2, 4, 4))
        self.head = nn.Linear(6, num_classes)

    def forward(self, clips):
        return self.head(self.cells(clips).mean((2, 3, 4)))


def test_of_a_linear_model_the_map_is_its_weights_times_its_cells():
    """dy/dA[c] is w[c] over the number of cells: Grad-CAM is then CAM (Zhou et al. 2016)."""
    model, clips = Linear(), some_clips()
    found = grad_cam(model, clips, [2, 0], block="cells")
    cells = model.cells(clips).detach()
    weights = model.head.weight.detach()[[2, 0]] / cells[0, 0].numel()
    expected = torch.einsum("bc,bcthw->bthw", weights, cells).relu()
    assert found.maps.shape == (2, 4, 8, 8)
    torch.testing.assert_close(found.maps, expected)
    torch.testing.assert_close(found.logits, model(clips).detach())
    assert found.classes.tolist() == [2, 0]


def test_what_does_not_change_the_evidence_does_not_change_the_map():
    model, clips = Linear(), some_clips(3)
    before = grad_cam(model, clips, 1, block="cells").maps
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(grad_cam(model, clips[order], 1, block="cells").maps, before[order])
    torch.testing.assert_close(grad_cam(model, clips[1:2], 1, block="cells").maps, before[1:2])
    with torch.no_grad():
        model.head.bias += 7
        model.head.weight[0] += 3  # another class
    torch.testing.assert_close(grad_cam(model, clips, 1, block="cells").maps, before)
    with torch.no_grad():
        model.head.weight[1] *= 2
    torch.testing.assert_close(grad_cam(model, clips, 1, block="cells").maps, 2 * before)
    shifted = grad_cam(model, clips.roll((2, 4), (2, 4)), 1, block="cells").maps  # by a cell in time and one in space
    torch.testing.assert_close(shifted, 2 * before.roll((1, 1), (1, 3)), rtol=1e-4, atol=1e-6)


def test_without_classes_each_clip_is_explained_for_its_own_prediction():
    model, clips = Linear(), some_clips(4)
    found = grad_cam(model, clips, block="cells")
    assert torch.equal(found.classes, model(clips).argmax(1))
    assert torch.equal(found.maps, grad_cam(model, clips, found.classes, block="cells").maps)


# With and without the engine


def maps_by_hand(model: RevMViT, clips: torch.Tensor, classes: list[int], block: int) -> torch.Tensor:
    """The equations of the blocks after `block` written out, by autograd as usual."""
    with torch.no_grad():
        _, ((x1, x2, cut_grid),) = model.rev_backbone(model.embed(clips), model.grid, {block})
    joined = x1 is x2
    x1, x2 = leaves = [x.clone().requires_grad_() for x in (x1, x2)]
    if joined:
        x2, leaves = x1, leaves[:1]
    grid = cut_grid
    for layer in model.rev_backbone.layers[block + 1 :]:
        if isinstance(layer, StageTransition):
            x1, grid = layer(x1, x2, grid, options=PLAIN)
            x2 = x1
        else:
            x1 = x1 + layer.F(x2, grid)
            x2 = x2 + layer.G(x1)
    logits = model.head(model.pool_tokens(torch.cat([x1, x2], -1)))
    gradients = torch.autograd.grad(logits[range(len(classes)), classes].sum(), leaves)
    total = sum((g.mean(1, keepdim=True) * x.detach()).sum(-1) for g, x in zip(gradients, leaves))
    return total.relu().unflatten(1, cut_grid)


@pytest.mark.parametrize(
    ("block", "options"),
    [*((i, {}) for i in range(6)), (2, {"chunk_tokens": 7, "keep_mib": -1}), (1, {"buffer_every": 1, "keep_mib": 0})],
)
def test_maps_through_the_engine_are_those_of_plain_backprop(block, options):
    clips, classes = some_clips().double(), [3, 1]
    engine = grad_cam(tiny_rev_mvit(**options).double(), clips, classes, block=block)
    plain_model = tiny_rev_mvit(backprop="plain").double().eval()
    plain = grad_cam(plain_model, clips, classes, block=block)
    expected = maps_by_hand(plain_model, clips, classes, block).float()
    assert float(expected.max()) > 0
    assert distance(plain.maps, expected) < 1e-6
    assert distance(engine.maps, expected) < 1e-6
    assert engine.block == f"rev_backbone.layers.{block}"


@pytest.mark.parametrize("backprop", ["reversible", "plain"])
def test_the_streams_of_an_intermediate_pair_have_gradients_of_their_own(backprop):
    """y2 is made of y1; the gradient of y1 is that of a pair of independent inputs, with and without the engine."""
    torch.manual_seed(0)
    network = ReversibleSequence([(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)], backprop=backprop).double()
    x1, x2 = torch.randn(2, 3, 5, 4, dtype=torch.float64).unbind()
    (y1, y2), ((h1, h2),) = network(x1, x2, intermediates=[0])
    found = torch.autograd.grad((y1 * y2).sum(), (h1, h2))
    a, b = (h.detach().requires_grad_() for h in (h1, h2))
    z1 = a + network.layers[1].F(b)
    z2 = b + network.layers[1].G(z1)
    for gradient, expected in zip(found, torch.autograd.grad((z1 * z2).sum(), (a, b))):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_the_model_is_left_as_it_was():
    model = tiny_rev_mvit(detach_head=True, drop_path=0.3)
    model.train()
    model.norm.eval()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    with torch.inference_mode():
        inside = grad_cam(model, some_clips(), block=2).maps
    assert torch.equal(inside, grad_cam(model, some_clips(), block=2).maps)  # evaluation mode: nothing is dropped
    assert inside.max() > 0
    assert [module.training for module in model.modules()] == modes
    assert model.detach_head
    assert all(parameter.requires_grad == (parameter is not frozen) for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


# Which block


def test_the_default_is_the_last_block_whose_tokens_count():
    assert choose_block(tiny_rev_mvit()) == "rev_backbone.layers.5"
    assert choose_block(tiny_mvit()) == "blocks.4"  # the head reads the class token, which reads the block before
    assert choose_block(tiny_mvit(mean_pooling=True)) == "blocks.5"
    assert choose_block(tiny_mvit(), -3) == "blocks.3"
    assert grad_cam(tiny_mvit(), some_clips()).maps.max() > 0


@pytest.mark.parametrize(
    ("model", "block", "words"),
    [
        (tiny_mvit, -1, "class token alone"),
        (tiny_rev_mvit, 6, "the network has 6 blocks"),
        (tiny_rev_mvit, "rev_backbone.layers.2.F", "no block 'rev_backbone.layers.2.F'"),
        (tiny_mvit, "blocks.9", "expected a number below 6, or blocks.0 to blocks.5"),
        (tiny_mvit, "norm", "expected a volume"),
        (Linear, None, "name a module"),
        (Linear, "head", "expected a volume"),
    ],
)
def test_a_block_that_cannot_be_is_refused_in_words(model, block, words):
    with pytest.raises(InputError, match=words):
        grad_cam(model(), some_clips(), block=block)


@pytest.mark.parametrize(("classes", "words"), [(5, "classes 0 to 4"), ([0, 1, 2], "for 2 clips"), (-1, "class -1")])
def test_a_class_that_is_none_is_refused(classes, words):
    with pytest.raises(InputError, match=words):
        grad_cam(tiny_mvit(), some_clips(), classes)


@pytest.mark.parametrize("make", [tiny_mvit, tiny_rev_mvit])
def test_cells_lie_where_they_look_at(make):
    """The pixels that a token of the patch embedding depends on are centred on its place in the clip."""
    model = make().eval()
    output = run_to_block(model, some_clips(1), 0)
    clips = some_clips(1).requires_grad_()
    tokens = model.patch_embed(clips)[0].unflatten(0, output.grid)
    for cell in [(1, 2, 3), (2, 5, 1)]:
        (gradient,) = torch.autograd.grad(tokens[cell].sum(), clips, retain_graph=True)
        touched = gradient[0].abs().sum(0).nonzero()
        centre = (touched.min(0).values + touched.max(0).values) / 2
        expected = [first + step * i for first, step, i in zip(output.first, output.step, cell)]
        assert centre.tolist() == expected
    assert [run_to_block(model, some_clips(1), block).step[2] for block in range(6)] == [4, 8, 8, 16, 16, 16]


@pytest.mark.parametrize("name", ["rev_mvit_b_16x4", "mvitv2_s_16x4", "ptv/slow_r50", "ptv/mvit_b_16x4"])
def test_blocks_of_every_family_give_the_volumes_of_its_stages(name):
    torch.manual_seed(0)
    model = create_model(name, **reduced_options(name)).eval()
    clips = some_clips(1, model.input_spec.shape)
    with torch.no_grad():
        stages = model.feature_maps(clips)
        for info, expected in zip(model.feature_info, stages, strict=True):
            block = [each for each in block_names(model) if f"{each}.".startswith(f"{info['name']}.")][-1]
            output = run_to_block(model, clips, block)
            if len(output.outputs) == 1:  # a stage transition, whose streams are one: `feature_maps` has it twice
                expected = expected[:, : output.volume().shape[1]]
            torch.testing.assert_close(output.volume(), expected)
            torch.testing.assert_close(output.logits, model(clips))
            assert output.step == info["reduction"]
    found = grad_cam(model, clips)
    assert found.upsample().shape == (1, model.input_spec.frames, *model.input_spec.size)
    assert torch.isfinite(found.maps).all()


def test_interpolation_passes_through_the_cells_and_is_linear_between_them():
    weights = interpolation(9, 3, 0.0, 4.0)
    values = weights @ torch.tensor([1.0, 5.0, 3.0])
    assert values.tolist() == [1, 2, 3, 4, 5, 4.5, 4, 3.5, 3]
    centred = interpolation(8, 2, 1.5, 4.0)
    torch.testing.assert_close(centred.sum(1), torch.ones(8))
    assert (centred @ torch.tensor([0.0, 4.0])).tolist() == [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]


@pytest.mark.parametrize("reversible", [True, False])
def test_pictures_have_maps_of_one_frame(reversible):
    spec = InputSpec(frames=1, stride=1, size=(32, 32), image=True)
    image = {"input_spec": spec, "patch": PatchSpec((7, 7), (4, 4), (3, 3)), "positions": "joint"}
    kernels = {"q_kernel": (1, 3, 3), "kv_kernel": (1, 3, 3)}
    blocks = [dataclasses.replace(block, **kernels) for block in tiny_blocks(reversible=reversible)]
    model = (tiny_rev_mvit if reversible else tiny_mvit)(blocks=blocks, **image)
    found = grad_cam(model, some_clips(2, (3, 32, 32)), block=2)
    assert found.maps.shape == (2, 1, 4, 4)
    assert found.upsample().shape == (2, 1, 32, 32)
    assert found.maps.max() > 0


# Where the evidence is


def moving_object(seed: int, noise: float = 0.3, channel: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A bright square of 8 pixels that crosses a noisy clip: (3, 8, 32, 32), and where it is, bool (8, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    clip = noise * torch.randn(CLIP_SHAPE, generator=generator)
    place = torch.zeros(CLIP_SHAPE[1:], dtype=torch.bool)
    y, start, end = torch.randint(0, 25, (3,), generator=generator).tolist()
    for t in range(CLIP_SHAPE[1]):
        x = round(start + (end - start) * t / (CLIP_SHAPE[1] - 1))
        place[t, y : y + 8, x : x + 8] = True
    clip[:, place] = 3.0 if channel is None else -1.0
    if channel is not None:
        clip[channel, place] = 3.0
    return clip, place


def brightness_detector() -> RevMViT:
    """A Rev-ViT that does nothing but to see bright patches: its branches give zero, class 1 is their number."""
    blocks = plan_blocks(depth=3, embed_dim=8, num_heads=1, widen_in_attention=True)
    torch.manual_seed(0)
    spec = InputSpec(frames=8, size=(32, 32))
    patch = PatchSpec((1, 5, 5), (1, 4, 4), (0, 2, 2))
    model = RevMViT(blocks=blocks, transitions=(), num_classes=2, input_spec=spec, patch=patch, positions="none").eval()
    with torch.no_grad():
        for layer in model.rev_backbone.layers:
            for linear in (layer.F.attn.proj, layer.G.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        convolution = model.patch_embed.proj
        convolution.weight.zero_()
        convolution.weight[0] = 1.0 / convolution.weight[0].numel()
        convolution.bias.copy_(torch.tensor([-1.5] + [0.0] * 7))
        head = model.get_classifier()
        head.weight.zero_()
        head.weight[1, 0] = head.weight[1, 8] = 1.0  # the brightness in both streams
    return model


@pytest.mark.parametrize("block", range(3))
def test_the_map_follows_the_moving_object_that_decides(block):
    model = brightness_detector()
    for seed in range(4):
        clip, place = moving_object(seed)
        found = grad_cam(model, clip[None], 1, block=block)
        heat = found.upsample()[0]
        empty = grad_cam(model, 0.0 * clip[None], 1, block=block)
        assert found.logits[0, 1] > empty.logits[0, 1]
        highest = heat.flatten(1).argmax(1)
        assert place.flatten(1)[range(8), highest].all()  # in each frame the highest value lies on the object
        near = nn.functional.max_pool2d(place[None].float(), 9, 1, 4)[0] > 0
        assert heat[near].sum() > 0.95 * heat.sum()


@pytest.mark.slow
def test_a_trained_reversible_network_looks_at_the_object():
    """Its colour is the class; the map of the first block has over three times the object's share of the area."""
    torch.manual_seed(0)
    model = tiny_rev_mvit(init_scheme="fan_in", num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.0)

    def batch(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scenes = [moving_object(seed, channel=seed % 3) for seed in range(first, first + count)]
        clips, places = (torch.stack(each) for each in zip(*scenes))
        return clips, torch.arange(first, first + count) % 3, places

    for step in range(80):
        clips, labels, _ = batch(18 * step, 18)
        loss = nn.functional.cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clips, labels, places = batch(100_000, 24)
    found = grad_cam(model, clips, labels, block=0)
    assert (found.logits.argmax(1) == labels).float().mean() > 0.9
    heat = found.upsample()
    share = (heat * places).sum((1, 2, 3)) / heat.sum((1, 2, 3))
    assert share.mean() > 3 * places.float().mean()
