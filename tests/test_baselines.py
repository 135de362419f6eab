"""pytorchvideo's networks as baselines: its numbers and names, our interface, PySlowFast's configs."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
import yaml
from config_checks import refused
from torch import Tensor, nn

from revvideo.build.baseline import build_baseline
from revvideo.config import load_config
from revvideo.engine.optimizer import make_optimizer, parameter_groups
from revvideo.models.baseline_networks import BATCH_NORMS
from revvideo.models.baselines import build_mvit, build_x3d
from revvideo.models.input_spec import InputSpec
from revvideo.models.registry import create_model, list_models

PARAMETERS = {
    "slow_r50": 32_454_096,
    "c2d_r50": 24_327_632,
    "i3d_r50": 28_043_472,
    "csn_r101": 22_213_776,
    "r2plus1d_r50": 28_107_600,
    "x3d_xs": 3_794_274,
    "x3d_s": 3_794_274,
    "x3d_m": 3_794_274,
    "x3d_l": 6_153_384,
    "mvit_b_16x4": 36_610_672,
    "mvit_b_32x3": 36_611_440,
}
# Small inputs (T, H, W), the grid of the last volume, what makes the network narrow (our name, pytorchvideo's, value).
SMALL = {
    "slow_r50": ((3, 40, 40), (3, 2, 2), ("width", "stem_dim_out", 8)),
    "c2d_r50": ((4, 40, 40), (2, 2, 2), ("width", "stem_dim_out", 8)),
    "i3d_r50": ((5, 40, 40), (2, 2, 2), ("width", "stem_dim_out", 8)),
    "csn_r101": ((9, 40, 40), (2, 2, 2), ("width", "stem_dim_out", 8)),
    "r2plus1d_r50": ((5, 40, 40), (2, 2, 2), ("width", "stem_dim_out", 8)),
    "x3d_xs": ((4, 40, 40), (4, 2, 2), ("width_factor", "width_factor", 1.0)),
    "mvit_b_16x4": ((4, 64, 64), (2, 2, 2), ("embed_dim", "patch_embed_dim", 16)),
}
NUM_CLASSES = 5


def hub_model(name: str, **options) -> nn.Module:
    """pytorchvideo's own network, without the softmax that some of its heads have."""
    from pytorchvideo.models import hub

    if name.startswith(("x3d", "r2plus1d")):
        options["head_activation"] = None
    return getattr(hub, name.replace("mvit_b_", "mvit_base_"))(**options)


def small_twins(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """Our model and pytorchvideo's with the same weights, narrow and at a small size, and clips."""
    torch.manual_seed(0)
    size, grid, (ours, theirs, value) = SMALL[name]
    options = {"num_classes": NUM_CLASSES, "input_size": size, "head_dropout": 0.5}
    model = create_model(f"ptv/{name}", **options, **{ours: value})
    if name.startswith("mvit"):
        options = {"head_num_classes": NUM_CLASSES, "temporal_size": size[0], "spatial_size": size[1:]}
        twin = hub_model(name, **options, **{theirs: value})
    else:
        twin = hub_model(name, model_num_class=NUM_CLASSES, **{theirs: value})
        head = twin.blocks[-1]
        pooling = head.pool if name.startswith("x3d") else head
        pooling.pool, head.dropout = nn.AvgPool3d(grid, stride=1), nn.Dropout(0.5)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.2, 1.0)  # the last batch norm of a block starts at zero and would hide it
    model.load_state_dict(twin.state_dict())  # strict: the same names and shapes
    return model, twin, torch.randn(2, 3, *size)


def tiny_x3d(**options) -> nn.Module:
    torch.manual_seed(0)
    spec = InputSpec(frames=4, size=(32, 32))
    return build_x3d(input_spec=spec, num_classes=NUM_CLASSES, width_factor=1, depth_factor=1, head_dim=64, **options)


def tiny_mvit(**options) -> nn.Module:
    torch.manual_seed(0)
    doubled = [[1, 2.0]]
    return build_mvit(
        input_spec=InputSpec(frames=4, size=(32, 32)),
        num_classes=NUM_CLASSES,
        depth=3,
        embed_dim=16,
        dim_mul=doubled,
        head_mul=doubled,
        pool_q_stride=[[1, 1, 2, 2]],
        **options,
    )


def tiny_clips(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


# pytorchvideo's networks


def test_all_names_are_listed():
    assert list_models("ptv/*") == sorted(f"ptv/{name}" for name in PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size(name):
    with torch.device("meta"):
        model = create_model(f"ptv/{name}").eval()
        clips = torch.empty(1, *model.input_spec.shape)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert model(clips).shape == (1, 400)
    assert model.num_features == model.forward_features(clips).shape[1] == model.get_classifier().in_features
    maps = model.feature_maps(clips)
    assert len(maps) == len(model.feature_info) == 4
    for volume, info in zip(maps, model.feature_info, strict=True):
        cells = [math.ceil(n / r) for n, r in zip(clips.shape[2:], info["reduction"], strict=True)]
        assert volume.shape == (1, info["channels"], *cells)
        assert dict(model.named_modules())[info["name"]] is not None
    if not name.startswith("mvit"):
        with torch.device("meta"):
            pools = [head.pool for head in (model.get_head(), hub_model(name).blocks[-1])]
        ours, theirs = (tuple(getattr(pool, "pool", pool).kernel_size) for pool in pools)
        assert ours == theirs, "at the hub's own size the heads are the same"


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_pytorchvideos(name):
    model, twin, clips = small_twins(name)
    for mode in (True, False):
        logits = []
        for network in (model.train(mode), twin.train(mode)):
            torch.manual_seed(2)  # the same dropout
            logits.append(network(clips))
        assert logits[0].shape == (2, NUM_CLASSES)
        torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.forward_head(model.forward_features(clips)), logits[0], rtol=0, atol=0)


def test_larger_pictures_in_evaluation():
    torch.manual_seed(0)
    spec = InputSpec(frames=4, size=(64, 64))
    options = {"width_factor": 1.0, "depth_factor": 1.0}
    model = build_x3d(input_spec=spec, num_classes=NUM_CLASSES, eval_size=(90, 90), **options).eval()
    twin = hub_model("x3d_xs", model_num_class=NUM_CLASSES, **options)
    twin.blocks[-1].pool.pool = nn.AvgPool3d((4, 2, 2), stride=1)  # 2 x 2 places of the 3 x 3 cells
    twin.load_state_dict(model.state_dict())
    clips = torch.randn(1, 3, 4, 90, 90)
    torch.testing.assert_close(model(clips), twin.eval()(clips), rtol=1e-5, atol=1e-5)
    assert model(clips[..., :64, :64]).shape == (1, NUM_CLASSES)
    with pytest.raises(ValueError, match="64, 64"):
        model.train()(clips)


# The interface, beyond what test_every_model.py states of every model


@pytest.mark.parametrize("build", [tiny_x3d, tiny_mvit])
def test_a_detached_head_trains_alone(build):
    model = build()
    model.reset_classifier(3)
    assert not model.get_classifier().bias.any()
    model.detach_head = True
    model(tiny_clips()).sum().backward()
    trained = {id(parameter) for parameter in model.parameters() if parameter.grad is not None}
    assert trained == {id(parameter) for parameter in model.get_classifier().parameters()}


def test_the_volumes_of_an_mvit_are_its_tokens():
    model, kept = tiny_mvit().eval(), []
    model.blocks[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    volume = model.feature_maps(tiny_clips())[-1]
    tokens, (frames, height, width) = kept[0]
    assert volume.shape[2:] == (frames, height, width)
    assert torch.equal(volume[:, :, 1, 2, 3], tokens[:, 1 + (1 * height + 2) * width + 3])


@pytest.mark.parametrize("build", [tiny_x3d, tiny_mvit])
def test_layer_groups_run_from_the_input_to_the_output(build):
    model = build()
    groups = model.layer_groups()
    assert [name for group in groups for name in group] == [name for name, _ in model.named_parameters()]
    assert len(groups) == 2 + (3 if build is tiny_mvit else 1 + 2 + 5 + 3)


@pytest.mark.parametrize("build", [tiny_x3d, tiny_mvit])
def test_checkpointing_changes_no_number(build):
    options = {"drop_path": 0.5} if build is tiny_mvit else {}
    gradients, states = [], []
    for checkpointing in (False, True):
        model = build(**options).train()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        model(tiny_clips()).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        states.append(model.state_dict())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    for name, tensor in states[0].items():  # running statistics and batch counts too
        assert torch.equal(states[1][name], tensor), name


def test_an_optimizer_step_decays_batch_norm_on_its_own():
    model = tiny_x3d()
    groups = parameter_groups(model, weight_decay=0.1, bn_weight_decay=0.01, layer_decay=0.9)
    norms = {
        f"{module}.{name}"
        for module, layer in model.named_modules()
        if isinstance(layer, BATCH_NORMS)
        for name, _ in layer.named_parameters()
    }
    assert norms
    assert {name for group in groups if group["weight_decay"] == 0.01 for name in group["names"]} == norms
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(tiny_clips()).square().sum().backward()
    make_optimizer("sgd", groups, lr=0.1).step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.ndim > 1)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ptv/slow_r50", {"drop_path": 0.1}, "no option 'drop_path'"),
        ("ptv/slow_r50", {"arch": "i3d"}, "no option 'arch'"),
        ("ptv/csn_r101", {"depth": 18}, "RESNET.DEPTH"),
        ("ptv/i3d_r50", {"input_size": (1, 64, 64)}, "DATA.NUM_FRAMES"),
        ("ptv/x3d_s", {"input_size": (4, 64, 96)}, "64 x 96"),
        ("ptv/mvit_b_16x4", {"depth": 8}, "MVIT.DIM_MUL"),
        ("ptv/mvit_b_16x4", {"pool_mode": "conv_unshared"}, "pytorchvideo does not build"),
    ],
)
def test_options_that_make_no_network(name, options, words):
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        create_model(name, **options)


def test_other_channels():
    model = create_model("ptv/x3d_xs", in_channels=1, input_size=(4, 32, 32), num_classes=2).eval()
    assert model(torch.zeros(1, 1, 4, 32, 32)).shape == (1, 2)


# Configs

RESNET = {"WIDTH_PER_GROUP": 64, "NUM_GROUPS": 1, "DEPTH": 50, "TRANS_FUNC": "bottleneck_transform"}
X3D = {"WIDTH_FACTOR": 2.0, "DEPTH_FACTOR": 2.2, "BOTTLENECK_FACTOR": 2.25, "DIM_C5": 2048, "DIM_C1": 12}
THREE_POINTS = [[1, 2.0], [3, 2.0], [14, 2.0]]
MVIT = {
    "SEP_POS_EMBED": True,
    "PATCH_PADDING": "(1, 3, 3)",
    "DIM_MUL": THREE_POINTS,
    "HEAD_MUL": THREE_POINTS,
    "POOL_Q_STRIDE": [[1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2]],
    "POOL_KV_STRIDE_ADAPTIVE": [1, 8, 8],
    "POOL_KVQ_KERNEL": [3, 3, 3],
}
# What PySlowFast's official files say of the network: name, MODEL.ARCH, frames x stride, crops, section.
OFFICIAL = {
    "slow_r50": ("PTVResNet", "slow", (8, 8), (224, 256), {"RESNET": RESNET}),
    "c2d_r50": ("PTVResNet", "c2d", (8, 8), (224, 256), {"RESNET": RESNET}),
    "i3d_r50": ("PTVResNet", "i3d", (8, 8), (224, 256), {"RESNET": RESNET}),
    "csn_r101": ("PTVCSN", "csn", (32, 2), (224, 256), {"RESNET": {"WIDTH_PER_GROUP": 64, "DEPTH": 101}}),
    "r2plus1d_r50": ("PTVR2plus1D", "r2plus1d", (16, 4), (224, 256), {"RESNET": {"DEPTH": 50}}),
    "x3d_s": ("PTVX3D", "x3d", (13, 6), (160, 182), {"X3D": X3D}),
    "x3d_l": ("PTVX3D", "x3d", (16, 5), (312, 356), {"X3D": X3D | {"DEPTH_FACTOR": 5.0}}),
    "mvit_b_16x4": ("PTVMViT", "mvit", (16, 4), (224, 224), {"MVIT": MVIT}),
}


def official_config(folder, name: str):
    family, arch, (frames, stride), (train, test), sections = OFFICIAL[name]
    tree = {
        "TRAIN": {"DATASET": "ptvkinetics", "BATCH_SIZE": 64},
        "TEST": {"DATASET": "ptvkinetics", "NUM_SPATIAL_CROPS": 3},
        "DATA": {
            "NUM_FRAMES": frames,
            "SAMPLING_RATE": stride,
            "TRAIN_CROP_SIZE": train,
            "TEST_CROP_SIZE": test,
            "INPUT_CHANNEL_NUM": [3],
        },
        "NONLOCAL": {"LOCATION": [[[]]] * 4, "GROUP": [[1]] * 4, "INSTANTIATION": "dot_product"},
        "BN": {"USE_PRECISE_STATS": True, "NUM_BATCHES_PRECISE": 200, "WEIGHT_DECAY": 0.0},
        "MODEL": {"MODEL_NAME": family, "ARCH": arch, "NUM_CLASSES": 400, "DROPOUT_RATE": 0.5},
        "NUM_GPUS": 8,
    }
    tree |= sections
    if family == "PTVX3D":
        tree["RESNET"] = {"ZERO_INIT_FINAL_BN": True, "TRANS_FUNC": "x3d_transform", "STRIDE_1X1": False}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return load_config(file)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_configs_build_the_named_models(tmp_path, name):
    cfg = official_config(tmp_path, name)
    with torch.device("meta"):
        model, named = build_baseline(cfg), create_model(f"ptv/{name}")
        test_clips = torch.empty(1, 3, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE)
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (model, named)]
    assert shapes[0] == shapes[1]
    assert model.input_spec == named.input_spec
    assert model.get_head().dropout.p == 0.5
    assert model.eval()(test_clips).shape == (1, 400)


@pytest.mark.parametrize(
    ("name", "overrides", "key"),
    [
        ("slow_r50", {"MODEL.ARCH": "slowfast"}, "MODEL.ARCH"),
        ("slow_r50", {"RESNET.DEPTH": 18}, "RESNET.DEPTH"),
        ("slow_r50", {"RESNET.STRIDE_1X1": True}, "RESNET.STRIDE_1X1"),
        ("slow_r50", {"RESNET.TRANS_FUNC": "x3d_transform"}, "RESNET.TRANS_FUNC"),
        ("slow_r50", {"RESNET.SPATIAL_STRIDES": [[1], [2], [2]]}, "RESNET.SPATIAL_STRIDES"),
        ("slow_r50", {"NONLOCAL.LOCATION": [[[]], [[1, 3]], [[1, 3, 5]], [[]]]}, "NONLOCAL.LOCATION"),
        ("slow_r50", {"BN.NORM_TYPE": "sync_batchnorm"}, "BN.NORM_TYPE"),
        ("csn_r101", {"RESNET.NUM_GROUPS": 32}, "RESNET.NUM_GROUPS"),
        ("x3d_s", {"RESNET.TRANS_FUNC": "bottleneck_transform"}, "RESNET.TRANS_FUNC"),
        ("x3d_s", {"X3D.SCALE_RES2": True}, "X3D.SCALE_RES2"),
        ("mvit_b_16x4", {"MVIT.REL_POS_SPATIAL": True}, "MVIT.REL_POS_SPATIAL"),
        ("mvit_b_16x4", {"MVIT.DEPTH": 8}, "MVIT.DIM_MUL"),
        ("mvit_b_16x4", {"DATA.TEST_CROP_SIZE": 256}, "DATA.TEST_CROP_SIZE"),
    ],
)
def test_what_a_config_cannot_have_is_named(tmp_path, name, overrides, key):
    official_config(tmp_path, name)
    cfg = load_config(tmp_path / f"{name}.yaml", overrides)
    with torch.device("meta"), refused(key):
        build_baseline(cfg)


def test_layout_keys_of_a_config_are_read(tmp_path):
    official_config(tmp_path, "slow_r50")
    overrides = {"RESNET.NUM_GROUPS": 2, "RESNET.SPATIAL_STRIDES": [[1], [2], [2], [1]], "MODEL.ACT_CHECKPOINT": True}
    cfg = load_config(tmp_path / "slow_r50.yaml", overrides | {"RESNET.SPATIAL_DILATIONS": [[1], [1], [1], [2]]})
    with torch.device("meta"):
        model = build_baseline(cfg)
    assert model.checkpointing
    assert model.feature_info[-1]["reduction"] == (1, 16, 16)
    conv = model.blocks[4].res_blocks[0].branch2.conv_b
    assert (conv.groups, conv.dilation, conv.stride) == (2, (1, 2, 2), (1, 1, 1))
    assert model.get_head().pool.kernel_size == (8, 14, 14)


def test_run_net_trains_and_tests_a_baseline(data, tmp_path):
    x3d = {
        "MODEL.MODEL_NAME": "PTVX3D",
        "RESNET.TRANS_FUNC": "x3d_transform",
        "X3D.DIM_C5": 64,
        "DATA.TRAIN_JITTER_SCALES": [40, 48],
        "DATA.TEST_CROP_SIZE": 40,
        "TRAIN.EVAL_PERIOD": 1000,
    }
    tiny.done(tiny.run_net(data, tmp_path, x3d))
    assert np.isfinite(tiny.losses(tmp_path)).all()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["num_videos"] == results["num_expected"] == tiny.NUM_TEST
    with np.load(tmp_path / "predictions.npz") as predictions:
        np.testing.assert_allclose(predictions["scores"].sum(1), results["num_views"], rtol=1e-5)
    state = torch.load(next((tmp_path / "checkpoints").iterdir()), weights_only=True)["model_state"]
    assert state["blocks.0.norm.num_batches_tracked"] == tiny.NUM_TRAIN // 4
