"""Loading is strict and all or nothing; what a permission allows is exact, and the report lists it."""

import logging

import pytest
import torch
from loading import FINE_TUNING, NARROW, READABLE, SMALL, SMALL_IMAGE, as_weights, changed, refusal, saved, snapshot
from tiny_models import CLIP_SHAPE, tiny_mvit, tiny_rev_mvit
from torch import nn

from revvideo import create_model
from revvideo.errors import InputError
from revvideo.models.block_plan import BlockSpec, plan_blocks
from revvideo.models.checkpoint_formats import (
    infer_overrides,
    load_weights,
    read_weights,
)
from revvideo.models.input_spec import InputSpec
from revvideo.models.pooling_attention import AttentionOptions
from revvideo.models.video_transformer import PatchSpec


def blocks(*, embed_dim: int = 8, num_heads: int = 1, kernel=(3, 3, 3)) -> list[BlockSpec]:
    """Those of `tiny_mvit` by default."""
    factors = [[1, 2.0], [3, 2.0]]
    return plan_blocks(
        depth=6,
        embed_dim=embed_dim,
        num_heads=num_heads,
        dim_mul=factors,
        head_mul=factors,
        pool_q_stride=[[1, 1, 2, 2], [3, 1, 2, 2]],
        pool_kv_stride_adaptive=[1, 4, 4],
        pool_kvq_kernel=kernel,
    )


IMAGE = {
    "blocks": blocks(kernel=(1, 3, 3)),
    "input_spec": InputSpec(frames=1, stride=1, size=(32, 32), image=True),
    "patch": PatchSpec((7, 7), (4, 4), (3, 3)),
}


def refusal_on_meta(model: tuple[str, dict], file: tuple[str, dict], allow=()) -> str:
    """The message for a model and a file of official widths, each a name and overrides, without their memory."""
    with torch.device("meta"):
        state, target = create_model(file[0], **file[1]).state_dict(), create_model(model[0], **model[1])
    with pytest.raises(InputError) as caught:
        load_weights(target, as_weights(state), allow=allow)
    return str(caught.value)


# Strictness


def test_missing_unexpected_and_misshapen_tensors_are_listed_with_counts():
    state = snapshot(changed(tiny_mvit))
    state["extra.weight"] = torch.ones(3)
    del state["norm.bias"]
    state["norm.weight"] = torch.ones(7)
    message = refusal(tiny_mvit(), state)
    for part in ("1 missing: norm.bias (32,)", "1 unexpected: extra.weight (3,)", "norm.weight (7,) instead of (32,)"):
        assert part in message
    assert "6 blocks, width 8" in message


def test_wrong_arguments_are_named():
    model = tiny_mvit()
    with pytest.raises(ValueError, match=r"allow is \['everything'\]; expected some of head, interpolate, inflate"):
        load_weights(model, model.state_dict(), allow={"everything"})
    with pytest.raises(ValueError, match=r"inflation is 'max'; expected one of mean, repeat"):
        load_weights(model, model.state_dict(), inflation="max")


def test_a_model_of_any_kind_is_loaded_strictly():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    assert load_weights(model, state).matched == list(state)
    assert int(model[1].num_batches_tracked) == 1
    assert "1 missing: 1.running_var" in refusal(model, {n: t for n, t in state.items() if n != "1.running_var"})


def test_another_depth_is_refused_and_inferred(tmp_path):
    path = saved(tmp_path, "mvit_b_16x4", **SMALL)
    message = refusal(create_model("mvit_b_16x4", **SMALL | {"depth": 7}), path)
    for part in ("6 blocks", "7 blocks", "missing: ", "blocks.6.", "another architecture", "MVIT.DEPTH 6"):
        assert part in message
    assert infer_overrides(read_weights(path), "mvit_b_16x4") == READABLE
    assert create_model("mvit_b_16x4", checkpoint=path, infer_architecture=True, **NARROW).depth == 6
    for permissions in ({"head"}, FINE_TUNING):
        refusal(create_model("mvit_b_16x4", **SMALL | {"depth": 7}), path, allow=permissions)


def test_the_message_says_which_call_loads_another_depth():
    message = refusal_on_meta(("mvit_b_16x4", {}), ("mvit_b_16x4", {"depth": 7, "num_classes": 9}))
    assert "MODEL.NUM_CLASSES 9, MVIT.DEPTH 7" in message
    assert "create_model('mvit_b_16x4', checkpoint='some.pyth', infer_architecture=True)" in message


def test_another_width_is_refused_with_both_widths():
    message = refusal(tiny_mvit(), tiny_mvit(blocks=blocks(embed_dim=16, num_heads=2)).state_dict(), allow=FINE_TUNING)
    assert "width 16" in message
    assert "width 8" in message
    assert "other widths" in message
    assert "loads it" not in message


@pytest.mark.parametrize("in_file", [True, False])
def test_the_class_token_decides_and_is_inferred(tmp_path, in_file):
    path = saved(tmp_path, "mvit_b_16x4", class_token=in_file, **SMALL)
    message = refusal(create_model("mvit_b_16x4", class_token=not in_file, **SMALL), path, allow=FINE_TUNING)
    assert f"MVIT.CLS_EMBED_ON {in_file}" in message
    assert "cls_token" in message
    model = create_model("mvit_b_16x4", checkpoint=path, infer_architecture=True, **NARROW)
    assert (model.cls_token is not None) == in_file


def test_other_classes_need_a_permission_and_keep_the_initial_classifier(caplog):
    source, model = changed(tiny_mvit), tiny_mvit(num_classes=9)
    message = refusal(model, source.state_dict())
    for part in ("head.projection.weight (5, 32) instead of (9, 32)", 'allow={"head"} loads it', "MODEL.NUM_CLASSES 5"):
        assert part in message
    before = snapshot(model)
    report = load_weights(model, source.state_dict(), allow={"head"})
    after = model.state_dict()
    assert torch.equal(after["head.projection.weight"], before["head.projection.weight"])
    assert all(torch.equal(after[n], source.state_dict()[n]) for n in after if not n.startswith("head."))
    assert "head.projection.weight (9, 32) of the model (keeps its initial values)" in report.skipped
    assert not report.exact
    assert caplog.records[-1].levelno == logging.WARNING
    assert "4 skipped: head.projection" in caplog.text


def test_the_classes_are_inferred(tmp_path):
    path = saved(tmp_path, "mvit_b_16x4", num_classes=7, **SMALL)
    options = {"checkpoint": path, "infer_architecture": True} | NARROW
    assert create_model("mvit_b_16x4", **options).num_classes == 7
    own = create_model("mvit_b_16x4", num_classes=3, allow={"head"}, **options)
    assert own.num_classes == 3


def test_a_file_without_a_classifier_and_a_model_without_one():
    state = tiny_mvit().state_dict()
    bare = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    assert "2 missing: head.projection.weight" in refusal(tiny_mvit(), bare)
    assert len(load_weights(tiny_mvit(), bare, allow={"head"}).skipped) == 2
    model = tiny_mvit()
    model.reset_classifier(0)
    assert "2 unexpected: head.projection.weight" in refusal(model, state)
    assert load_weights(model, state, allow={"head"}).skipped[0].startswith("head.projection.bias (5,)")


def test_tensors_of_pre_training_are_named_and_left_out_with_the_head():
    state = snapshot(tiny_mvit())
    state |= {"mask_token": torch.ones(1), "decoder_embed.weight": torch.ones(2, 2), "pred_head.bias": torch.ones(2)}
    message = refusal(tiny_mvit(), state)
    assert "3 unexpected: mask_token" in message
    assert "3 tensors are of a pre-training network (MAE, MaskFeat" in message
    report = load_weights(tiny_mvit(), state, allow={"head"})
    assert report.skipped == [
        f"{n} (of pre-training)" for n in ("decoder_embed.weight", "mask_token", "pred_head.bias")
    ]


def test_plain_and_reversible_weights_do_not_mix():
    assert "plain network do not fit a reversible one" in refusal(tiny_rev_mvit(), tiny_mvit().state_dict())
    message = refusal(tiny_mvit(), tiny_rev_mvit().state_dict(), allow=FINE_TUNING)
    assert "reversible network do not fit a plain one" in message


@pytest.mark.parametrize("in_file", ["mvit_b_32x3", "mvit_b_32x3_d24"])
def test_sixteen_or_twenty_four_blocks(in_file):
    other = {"mvit_b_32x3": "mvit_b_32x3_d24", "mvit_b_32x3_d24": "mvit_b_32x3"}[in_file]
    message = refusal_on_meta((other, {}), (in_file, {}))
    assert f"{16 if in_file == 'mvit_b_32x3' else 24} blocks" in message
    assert f"create_model({in_file!r}, " in message


# Exact conversions


@pytest.mark.parametrize("build", [tiny_mvit, tiny_rev_mvit])
@pytest.mark.parametrize("to_separate", [True, False])
def test_fused_and_separate_qkv_are_converted(build, to_separate):
    options = {True: {"attention": AttentionOptions(separate_qkv=True)}, False: {}}
    source, model = changed(build, 0.01, **options[not to_separate]).eval(), build(**options[to_separate]).eval()
    report = load_weights(model, source.state_dict())
    assert report.exact
    assert len(report.converted) == (6 if build is tiny_rev_mvit else 12) * (3 if to_separate else 1)
    x = torch.randn(2, *CLIP_SHAPE)
    torch.testing.assert_close(model(x), source(x), rtol=1e-5, atol=1e-6)


def test_the_dtype_is_the_models_and_reported():
    state = {name: tensor.half() for name, tensor in tiny_mvit().state_dict().items()}
    model = tiny_mvit()
    report = load_weights(model, state)
    assert report.converted[0] == "cls_token (torch.float16 -> torch.float32)"
    assert model.cls_token.dtype == torch.float32


# Names and wrappers


def test_a_permission_as_a_string_is_refused():
    with pytest.raises(ValueError, match=r"allow is 'head', a string; pass a set, such as \{\"head\"\}"):
        load_weights(tiny_mvit(), tiny_mvit().state_dict(), allow="head")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_of_a_state_dict_are_removed(prefix):
    state = changed(tiny_mvit).state_dict()
    model = tiny_mvit()
    load_weights(model, {f"{prefix}{name}": tensor for name, tensor in state.items()})
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_compiled_model_is_loaded():
    state, model = changed(tiny_mvit).state_dict(), tiny_mvit()
    assert load_weights(torch.compile(model), state).exact
    assert torch.equal(model.norm.weight, state["norm.weight"])
    assert load_weights(tiny_mvit(), torch.compile(model).state_dict()).exact


def test_pyslowfasts_wrapper_of_a_baseline_is_taken_off():
    baseline = create_model("ptv/x3d_xs", num_classes=5)
    state = {f"model.{name}": tensor for name, tensor in baseline.state_dict().items()}
    report = load_weights(baseline, as_weights(state))
    assert len(report.matched) == len(state)
    assert report.converted == ["the prefix model. removed from all names"]


# Inflation


def test_an_inflated_plain_network_sees_a_still_clip_as_the_image(tmp_path):
    """Repeated and divided kernels, zero time: without its padding in time, every step of a still clip is the image."""
    path = saved(tmp_path, "mvit_b", **SMALL_IMAGE)
    model = create_model("mvit_b_16x4", num_classes=1000, **SMALL)
    message = refusal(model, path)
    assert 'allow={"inflate"} loads it (in a config: TRAIN.CHECKPOINT_INFLATE True)' in message
    report = load_weights(model, path, allow={"inflate"})
    image = create_model("mvit_b", checkpoint=path, **SMALL_IMAGE)
    assert torch.equal(model.pos_embed_spatial, image.pos_embed[:, 1:])
    assert torch.equal(model.pos_embed_class, image.pos_embed[:, :1])
    assert not model.pos_embed_temporal.any()
    kernel = model.patch_embed.proj.weight
    torch.testing.assert_close(kernel.sum(2), image.patch_embed.proj.weight)
    assert torch.equal(kernel[:, :, 0], kernel[:, :, 2])
    still = torch.randn(1, 3, 1, 32, 32)
    tokens = model.patch_embed(still.expand(-1, -1, 8, -1, -1)).unflatten(1, (4, 64))
    torch.testing.assert_close(tokens[:, 1], image.patch_embed(still), rtol=1e-4, atol=1e-5)
    pools = sum(".pool_" in name for name in model.state_dict())
    assert len(report.inflated) == 1 + pools + 3
    assert "pos_embed_temporal (zeros: the image has no time)" in report.inflated
    assert not report.skipped


def test_inflation_can_repeat_without_dividing(tmp_path):
    path = saved(tmp_path, "mvit_b", **SMALL_IMAGE)
    model = create_model("mvit_b_16x4", num_classes=1000, **SMALL)
    load_weights(model, path, allow={"inflate"}, inflation="repeat")
    image = create_model("mvit_b", checkpoint=path, **SMALL_IMAGE)
    assert torch.equal(model.patch_embed.proj.weight[:, :, 1], image.patch_embed.proj.weight)


def test_image_rev_mvit_into_video_names_its_options_and_leaves_nothing_random(tmp_path):
    """PySlowFast leaves 32 tensors of this pair at random."""
    path = saved(tmp_path, "rev_mvit_b", **SMALL_IMAGE)
    refusal(create_model("rev_mvit_b_16x4", **SMALL), path, allow=FINE_TUNING)
    overrides = infer_overrides(read_weights(path), "rev_mvit_b_16x4")
    expected = {"num_classes": 1000, "depth": 6, "separate_qkv": True, "qkv_bias": True}
    assert overrides == expected | {"pre_q_fusion": "concat_linear_2"}
    options = {"input_size": (8, 48, 48), "num_classes": 5, "infer_architecture": True} | NARROW
    model = create_model("rev_mvit_b_16x4", checkpoint=path, allow=FINE_TUNING, **options)
    assert model(torch.randn(1, 3, 8, 48, 48)).shape == (1, 5)
    report = load_weights(model, path, allow=FINE_TUNING)
    assert (
        sorted(entry.split()[0] for entry in report.skipped)
        == ["head.projection.bias"] * 2 + ["head.projection.weight"] * 2
    )
    assert "pos_embed_spatial (from pos_embed, interpolated (1, 64, 8) -> (1, 144, 8))" in report.inflated
    loaded = {entry.split()[0] for kind in ("matched", "inflated") for entry in getattr(report, kind)}
    assert loaded == {name for name in model.state_dict() if not name.startswith("head.")}


def test_the_message_names_the_options_of_the_image_rev_mvit():
    message = refusal_on_meta(("rev_mvit_b_16x4", {}), ("rev_mvit_b", {}), allow=FINE_TUNING)
    for part in ("MVIT.REV.PRE_Q_FUSION concat_linear_2", "MVIT.QKV_BIAS True", "res_proj", "pre_q_fuse"):
        assert part in message
    call = "create_model('rev_mvit_b_16x4', checkpoint='some.pyth', infer_architecture=True, allow="
    assert call in message


def test_image_mvitv2_into_video_gets_relative_positions_of_time(tmp_path):
    path = saved(tmp_path, "mvitv2_t", **SMALL_IMAGE)
    options = {"input_size": (8, 32, 32), "infer_architecture": True} | NARROW
    model = create_model("mvitv2_s_16x4", checkpoint=path, allow={"inflate", "interpolate"}, **options)
    tables = {name: table for name, table in model.state_dict().items() if name.endswith("rel_pos_t")}
    assert len(tables) == 6
    assert not any(table.any() for table in tables.values())


def test_a_joint_image_table_is_repeated_over_time():
    image = tiny_mvit(**IMAGE, positions="joint")
    video = tiny_mvit(positions="joint")
    load_weights(video, image.state_dict(), allow={"inflate"})
    rows = video.pos_embed[:, 1:].unflatten(1, (4, 64))
    assert all(torch.equal(rows[:, step], image.pos_embed[:, 1:]) for step in range(4))


def test_video_weights_do_not_become_an_image_network():
    message = refusal(tiny_mvit(**IMAGE), tiny_mvit().state_dict(), allow=FINE_TUNING)
    assert "patch_embed.proj.weight (8, 3, 3, 7, 7) instead of (8, 3, 7, 7)" in message


# Inference of the architecture


def test_fusions_are_read_from_names_and_shapes(caplog):
    options = {"pre_q_fusion": "ln+concat_linear_3", "respath_fuse": "concat_linear"}
    state = create_model("rev_mvit_b_16x4", **SMALL, **options).state_dict()
    assert infer_overrides(as_weights(state), "rev_mvit_b_16x4") == READABLE | options
    caplog.clear()
    plain = create_model("rev_mvit_b", **SMALL_IMAGE, pre_q_fusion="max").state_dict()
    assert infer_overrides(as_weights(plain), "rev_mvit_b")["pre_q_fusion"] == "avg"
    assert "cannot be told" in caplog.text


def test_what_is_as_the_model_is_not_overridden():
    with torch.device("meta"):
        for name in ("rev_mvit_b_16x4", "mvit_b", "mvitv2_s_16x4", "vit_b_16x4", "rev_vit_s"):
            assert infer_overrides(as_weights(create_model(name).state_dict()), name) == {}


def test_the_input_is_read_from_the_tables(tmp_path):
    for name in ("mvit_b_16x4", "mvitv2_s_16x4", "rev_mvit_b_16x4"):
        path = saved(tmp_path, name, depth=6, input_size=(12, 48, 48), in_channels=2, **NARROW)
        model = create_model(name, checkpoint=path, infer_architecture=True, **NARROW)
        assert model.input_spec.shape == (2, 12, 48, 48)


def test_architectures_of_other_families_cannot_be_inferred():
    with pytest.raises(ValueError, match=r"the architecture of some.pyth cannot be read"):
        infer_overrides(as_weights({"a.weight": torch.ones(1)}), "mvit_b")
