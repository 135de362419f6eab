"""The options of the networks: fusions, skip paths, stems, heads, positions, sizes; which samples drop path wipes."""

import pytest
import torch
from gradients import assert_gradients_equal, parameter_gradients
from reduced_models import clips_for, model_on_meta, reduced_model
from torch import Tensor, nn

from revvideo import build_model, create_model, load_config
from revvideo.models.block_plan import plan_blocks
from revvideo.models.positions import sincos_table
from revvideo.models.stream_fusion import StreamFusion

SMALL = {"input_size": (4, 32, 32), "embed_dim": 16, "num_heads": 2, "depth": 6, "num_classes": 5}


def small(name: str, **overrides) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, **SMALL | overrides)


def step(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(2)
    nn.functional.cross_entropy(model(x), torch.arange(len(x))).backward()
    return parameter_gradients(model)


# Fusion of the streams


def test_fusions_of_the_streams():
    x1, x2 = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    both = torch.cat([x1, x2], dim=-1)
    expected = {"add": x1 + x2, "avg": (x1 + x2) / 2, "max": x1.maximum(x2), "min": x1.minimum(x2), "concat": both}
    for mode, value in expected.items():
        torch.testing.assert_close(StreamFusion(mode, 4)(x1, x2), value)
    mixed = StreamFusion("concat_linear_2", 4)
    assert mixed.fuse_fn.fc1.weight.shape == (16, 8)
    torch.testing.assert_close(mixed(x1, x2), both + mixed.fuse_fn(both))
    normed = StreamFusion("ln+concat_linear_0.5_0.3", 4)
    norm, mlp = normed.fuse_fn
    assert (norm.eps, mlp.fc1.weight.shape, mlp.drop.p) == (1e-5, (4, 8), 0.3)
    assert list(normed.state_dict())[:2] == ["fuse_fn.0.weight", "fuse_fn.0.bias"]


@pytest.mark.parametrize("mode", ["mean", "concat_linear_", "concat_linear_x", "concat_linear_2_1.5", "ln+concat", ""])
def test_an_unknown_fusion_is_refused(mode):
    with pytest.raises(ValueError, match=r"PRE_Q_FUSION"):
        StreamFusion(mode, 4)


FUSIONS = ["add", "avg", "max", "min", "concat", "concat_linear", "concat_linear_2", "ln+concat_linear_1_0.2"]


@pytest.mark.parametrize("mode", FUSIONS)
@pytest.mark.parametrize("mean_pooling", [False, True])
def test_every_fusion_in_both_places_has_the_gradients_of_plain_backprop(mode, mean_pooling):
    options = {"respath_fuse": mode, "pre_q_fusion": mode, "mean_pooling": mean_pooling, "drop_path": 0.3}
    models = [small("rev_mvit_b_16x4", backprop=b, **options).double() for b in ("reversible", "plain")]
    x = clips_for(models[0]).double()
    assert models[0].num_features == (256 if "concat" in mode else 128)
    assert_gradients_equal(step(models[0], x), step(models[1], x), torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        {"res_path": "max"},
        {"pool_mode": "avg"},
        {"pool_mode": "max", "separate_qkv": True},
        {"pool_mode": "conv_unshared"},
        {"pool_first": True},
        {"pool_first": True, "pool_mode": "conv_unshared", "pre_q_fusion": "concat"},
        {"norm_stem": True, "dropout": 0.2},
        {"relative_space": True, "relative_time": True, "residual_pooling": True, "positions": "none"},
        {"positions": "sincos"},
    ],
    ids=str,
)
def test_options_of_reversible_networks_have_the_gradients_of_plain_backprop(options):
    models = [small("rev_mvit_b_16x4", backprop=b, **options).double() for b in ("reversible", "plain")]
    x = clips_for(models[0]).double()
    assert_gradients_equal(step(models[0], x), step(models[1], x), torch.float64)


def test_max_pooled_skip_path():
    transition = small("rev_mvit_b_16x4", res_path="max").rev_backbone.layers[1].eval()
    x1, x2 = torch.randn(2, 2, 2 * 8 * 8, 16)
    skip = transition._skip()((x1 + x2) / 2, (2, 8, 8))
    volume = transition.res_proj((x1 + x2) / 2).transpose(1, 2).unflatten(2, (2, 8, 8))
    expected = nn.functional.max_pool3d(volume, (1, 3, 3), (1, 2, 2), (0, 1, 1)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(skip, expected)


def test_a_transition_may_keep_the_resolution():
    model = small("rev_mvit_b_16x4", transitions=[1, 3, 4, 5])
    assert model(clips_for(model)).shape == (2, 5)


# Drop path of the stage transitions


@pytest.mark.parametrize("mode", ["branches", "output"])
def test_share_of_training_samples_that_are_wiped(mode):
    """PySlowFast drops the finished output of a transition: 5.9 % of the samples of Rev-MViT-B are zero after it."""
    rates = [layer.drop_path for layer in model_on_meta("rev_mvit_b_16x4").rev_backbone.layers]
    kept = 1.0
    for index in (1, 3, 14):
        kept *= 1 - rates[index]
    assert 1 - kept == pytest.approx(0.0593, abs=5e-4)

    model = small("rev_mvit_b_16x4", drop_path=0.5, stage_drop_path=mode, norm_stem=True).train()
    kept = 1.0
    for index in (1, 3, 4):
        kept *= 1 - model.rev_backbone.layers[index].drop_path
    with torch.no_grad():
        x = torch.randn(400, *model.grid, 16).flatten(1, 3)
        for layer in (model.rev_backbone.layers[i] for i in (1, 3, 4)):
            layer.G.mlp.fc2.bias.zero_()
        _, kept_pairs = model.rev_backbone(x, model.grid, [1, 3, 4])
    zero = torch.stack([(pair[0] == 0).flatten(1).all(1) for pair in kept_pairs])  # (3, 400)
    wiped = zero.any(0).float().mean().item()
    assert wiped == (0.0 if mode == "branches" else pytest.approx(1 - kept, abs=0.1))


# Stem, blocks, head


def test_layer_scale_multiplies_the_branches():
    model = small("mvitv2_s_16x4", layer_scale=1e-4)
    block = model.blocks[1]
    assert block.gamma_1.shape == block.gamma_2.shape == (32,)
    assert block.gamma_1.unique().tolist() == [pytest.approx(1e-4)]
    with torch.no_grad():
        for block in model.blocks:
            block.gamma_1.zero_()
            block.gamma_2.zero_()
        x, grid = torch.randn(1, 1 + 2 * 8 * 8, 16), (2, 8, 8)
        assert torch.equal(model.blocks[0](x, grid)[0], x)
    assert small("mvitv2_s_16x4").blocks[0].gamma_1 is None


def test_norm_stem_is_applied_after_the_positions():
    model = small("mvit_b_16x4", norm_stem=True)
    tokens = model.embed(clips_for(model)) - 0.02  # the bias that LayerNorm starts with
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 129), atol=1e-5, rtol=0)
    assert "norm_stem.weight" in model.layer_groups()[0]


def test_scale_of_the_first_classifier():
    large, tiny = (small("vit_b_16x4", head_init_scale=scale) for scale in (1.0, 0.001))
    for one, other in zip(large.get_classifier().parameters(), tiny.get_classifier().parameters(), strict=True):
        torch.testing.assert_close(one * 0.001, other)
    tiny.reset_classifier(7)
    assert tiny.get_classifier().weight.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["mvit_b_16x4", "rev_mvit_b_16x4"])
def test_a_detached_head_trains_alone(name):
    model = small(name, detach_head=True)
    nn.functional.cross_entropy(model(clips_for(model)), torch.arange(2)).backward()
    trained = {n for n, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"head.projection.weight", "head.projection.bias"}


def test_what_the_head_reads():
    x = torch.randn(2, 1 + 128, 128)
    token = small("mvit_b_16x4")
    torch.testing.assert_close(token.pool_tokens(x), token.norm(x[:, 0]))
    mean = small("mvit_b_16x4", mean_pooling=True)
    torch.testing.assert_close(mean.pool_tokens(x), mean.norm(x[:, 1:].mean(1)))
    plain = small("mvit_b_16x4", class_token=False)
    torch.testing.assert_close(plain.pool_tokens(x), plain.norm(x).mean(1))


# Positions and sizes


def test_sine_cosine_positions():
    table = sincos_table((2, 3, 4), 32)  # 8 channels for time, 12 for columns, 12 for rows
    volume = table.view(2, 3, 4, 32)
    assert torch.equal(
        volume[0, 0, 0], torch.cat([torch.zeros(4), torch.ones(4), *[torch.zeros(6), torch.ones(6)] * 2])
    )
    torch.testing.assert_close(
        volume[1, 2, 3, [0, 4, 8, 20]],
        torch.tensor([1.0, 1.0, 3.0, 2.0])
        .sin()
        .where(torch.tensor([True, False, True, True]), torch.tensor([1.0, 1.0, 3.0, 2.0]).cos()),
    )
    assert (volume[0] - volume[1])[..., 8:].abs().max() == 0
    model, twice = (small("mvit_b_16x4", positions=p) for p in ("sincos", "sincos_twice"))
    assert not model.pos_embed.requires_grad
    assert model.pos_embed[0, 0].abs().max() == 0  # the class token has none
    x = torch.zeros(1, 128, 16)
    torch.testing.assert_close(
        (twice.add_positions(x) - twice.add_positions(x)[:, :1])[:, 1:],
        2 * model.pos_embed[:, 1:] - twice.cls_token.detach(),
    )
    with pytest.raises(ValueError, match=r"EMBED_DIM is 24.*multiple of 16"):
        sincos_table((1, 2, 2), 24)


def test_both_switches_of_the_fixed_positions():
    options = ["MVIT.USE_FIXED_SINCOS_POS", True, "MVIT.SEP_POS_EMBED", False]
    with torch.device("meta"):
        twice = build_model(load_config("Kinetics/MVIT_B_16x4_CONV", options))
        once = build_model(load_config("Kinetics/MVIT_B_16x4_CONV", [*options, "MVIT.USE_ABS_POS", False]))
    assert (twice.positions, once.positions) == ("sincos_twice", "sincos")


@pytest.mark.parametrize("name", ["rev_mvit_b_16x4", "rev_mvitv2_s_16x4", "mvit_b_16x4", "mvitv2_s_16x4"])
@pytest.mark.parametrize("size", [(4, 56, 56), (2, 28, 28), (6, 32, 48)])
def test_grids_that_are_odd_before_a_transition(name, size):
    """112 px gives 28, 14, 7 and 4 tokens a side; here 14, 7, 4, 2, and 7, 4, 2, 1."""
    model = small(name, input_size=size)
    maps = model.feature_maps(clips_for(model))
    side = [size[1] // 4]
    while len(side) < 4:
        side.append(-(-side[-1] // 2))
    assert [volume.shape[3] for volume in maps] == side
    assert model(clips_for(model)).isfinite().all()


@pytest.mark.parametrize("name", ["rev_mvit_b_16x4", "mvit_b_16x4", "mvitv2_s_16x4", "rev_vit_s", "mvitv2_t", "vit_b"])
def test_another_input_size_interpolates_the_positions(name, caplog):
    """Names and shapes are those of a model made for the size."""
    model = reduced_model(name, num_classes=5)
    frames = 1 if model.input_spec.image else 6
    with caplog.at_level("INFO"):
        model.set_input_size(frames, 64, 48)
    assert "positions interpolated" in caplog.text
    fresh = reduced_model(name, num_classes=5, input_size=(frames, 64, 48))
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in fresh.state_dict().items()}
    assert model(clips_for(model)).shape == (2, 5)
    with pytest.raises(ValueError, match="this model takes"):
        model(clips_for(reduced_model(name)))


def test_interpolated_positions_are_where_they_were():
    model = small("mvit_b_16x4", positions="sincos")
    tables = model.pos_embed.clone()
    model.set_input_size(8, 64, 64)
    assert torch.equal(model.pos_embed[:, 1:].unflatten(1, (4, 16, 16))[:, :2, :8, :8].flatten(1, 3), tables[:, 1:])
    model = small("rev_mvit_b_16x4")
    with torch.no_grad():
        model.pos_embed_spatial.copy_(torch.arange(8.0).repeat(8)[None, :, None].expand(1, 64, 16))  # the column
        model.pos_embed_temporal.fill_(3.0)
    model.set_input_size(6, 64, 64)
    columns = model.pos_embed_spatial.view(16, 16, 16)[:, 4:12, 0]  # away from the borders
    torch.testing.assert_close(columns, ((torch.arange(4, 12) + 0.5) / 2 - 0.5).expand(16, 8), atol=0.05, rtol=0)
    assert model.pos_embed_temporal.unique().tolist() == [3.0]


@pytest.mark.parametrize("name", ["mvit_b", "rev_vit_s"])
def test_an_image_may_come_as_a_clip_of_one_frame(name):
    model = reduced_model(name).eval()
    image = clips_for(model)
    assert torch.equal(model(image), model(image[:, :, None]))


def test_channels_of_the_input():
    model = small("rev_mvit_b_16x4", in_channels=1)
    assert model.input_spec.mean == (0.45,)
    assert model(torch.zeros(1, 1, 4, 32, 32)).shape == (1, 5)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"RevMViT has no option 'droppath'; did you mean 'drop_path'\?"):
        create_model("rev_mvit_b_16x4", droppath=0.1)
    with pytest.raises(ValueError, match="depth is 3; this network needs at least 6 blocks"):
        create_model("mvit_b_16x4", depth=3)
    with pytest.raises(ValueError, match=r"token grid of \(2, 0, 0\)"):
        create_model("vit_b_16x4", input_size=(4, 8, 8))
    with pytest.raises(ValueError, match="positions is 'learned'; expected one of joint"):
        create_model("mvit_b_16x4", positions="learned")
    with pytest.raises(ValueError, match="RevMViT has no option 'class_token'"):
        create_model("rev_mvit_b_16x4", class_token=False)
    with pytest.raises(ValueError, match="an image model takes 1 frame, not 4"):
        create_model("mvit_b", input_size=(4, 32, 32))
    with pytest.raises(ValueError, match=r"DIM_MUL \[\[0, 2.0\]\] widens at block 0.*MVIT.DIM_MUL_IN_ATT"):
        create_model("mvit_b_16x4", dim_mul=[[0, 2.0]])
    with pytest.raises(ValueError, match="allow and infer_architecture are about a checkpoint"):
        create_model("mvit_b_16x4", allow={"head"})


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("depth", "6", "a whole number, 1 or more"),
        ("depth", 6.0, "a whole number, 1 or more"),
        ("num_classes", -1, "a whole number, 0 or more"),
        ("in_channels", 0, "a whole number, 1 or more"),
        ("num_heads", True, "a whole number, 1 or more"),
        ("drop_path", "0.1", "a probability from 0 to below 1"),
        ("drop_path", 1.0, "a probability from 0 to below 1"),
        ("layer_scale", -1, "a number, 0 or more"),
        ("mlp_ratio", 0, "a number above 0"),
        ("input_size", 224, r"three whole numbers \(frames, height, width\), 1 or more"),
        ("input_size", (224, 224), r"three whole numbers \(frames, height, width\)"),
        ("patch", (3, 7, 7), "a PatchSpec"),
        ("pool_q_stride", [[1, 2, 2]], r"a list of \[block, t, h, w\] of whole numbers"),
        ("pool_q_stride", [[1, 1, 2, 2], [1, 1, 1, 1]], "each block once"),
        ("dim_mul", [[1, 2.0], [1, 3.0]], "each block once"),
    ],
)
def test_options_of_the_wrong_kind_are_named(option, value, expected):
    with pytest.raises(ValueError, match=rf"{option} is .*; expected {expected}"):
        create_model("mvit_b_16x4", **{option: value})


@pytest.mark.parametrize(("option", "value"), [("input_size", 224), ("num_classes", "5"), ("head_dropout", 1.5)])
def test_options_of_baselines_are_checked_alike(option, value):
    with pytest.raises(ValueError, match=f"{option} is .*; expected "):
        create_model("ptv/x3d_xs", **{option: value})


def test_widths_that_are_no_multiple_of_the_heads_are_rounded_as_in_pyslowfast():
    widths = {"depth": 2, "dim_mul": [[1, 2.0]], "head_mul": [[1, 2.0]]}
    for dim, heads, expected in ((99, 1, 200), (18, 2, 40), (90, 2, 184)):
        attention = plan_blocks(embed_dim=dim, num_heads=heads, widen_in_attention=True, **widths)
        assert attention[1].dim_out == expected
        reversible = plan_blocks(embed_dim=dim, num_heads=heads, widen_in_attention=True, reversible=True, **widths)
        assert [block.dim_out for block in reversible] == [expected // 2, expected]  # by the heads of the next block
        assert plan_blocks(embed_dim=dim, num_heads=heads, **widths)[0].dim_out == 2 * dim


@pytest.mark.parametrize("name", ["mvitv2_s_16x4", "mvitv2_b_32x3"])
def test_reversible_mvitv2_is_as_large_as_its_twin(name):
    plain, reversible = (sum(p.numel() for p in model_on_meta(n).parameters()) for n in (name, f"rev_{name}"))
    assert reversible == pytest.approx(plain, rel=0.05)


def test_a_new_classifier_is_where_and_what_the_model_is():
    model = reduced_model("mvit_b_16x4").half().eval()
    model.reset_classifier(3)
    head = model.get_classifier()
    assert (head.weight.dtype, head.training) == (torch.float16, False)
    model.reset_classifier(0)
    model.double().reset_classifier(4)
    assert model(clips_for(model).double()).shape == (2, 4)
    assert reduced_model("vit_b", num_classes=0)(clips_for(model_on_meta("vit_b", input_size=(1, 32, 32)))).shape[1] > 5


def test_what_features_do_not_use_is_frozen():
    model = reduced_model("mvit_b_16x4", features_only=True)
    sum(volume.sum() for volume in model(clips_for(model))).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    model.model.set_input_size(4, 48, 48)
    assert model.input_spec.size == (48, 48)
