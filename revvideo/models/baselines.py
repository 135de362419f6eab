"""pytorchvideo's networks as baselines: Slow, C2D, I3D, CSN, R(2+1)D, X3D and MViT, by name and by plain arguments.

pytorchvideo builds them; `baseline_networks` gives them the interface of the other models. It is imported when a
network is built, never with this module.

Two differences from pytorchvideo's hub: the head has no softmax, and it pools the whole grid of the input that the
network is built for, where the hub's kernels are for one size. At the hub's own sizes the logits are the same.

Sources: He et al. 2016 and Feichtenhofer et al. 2019 (Slow), Carreira and Zisserman 2017 (I3D), Tran et al. 2018
(R(2+1)D) and 2019 (CSN), Feichtenhofer 2020 (X3D), Fan et al. 2021 (MViT, and pytorchvideo).
"""

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from revvideo.models.baseline_networks import Baseline, ConvBaseline, MViTBaseline
from revvideo.models.input_spec import InputSpec
from revvideo.models.option_checks import check_options
from revvideo.models.registry import register_model

RESNET_DEPTHS = (50, 101, 152)

# Temporal kernels of the stem and of the four stages (a list: by turns), and frames that are pooled after the first.
_RESNETS = {
    "c2d": (1, (1, 1, 1, 1), 2),
    "slow": (1, (1, 1, 3, 3), 1),
    "i3d": (5, (3, [3, 1], [3, 1], [1, 3]), 2),
}


# Cells that the head pools, as (frames, rows, columns) of the input to a cell; and what only this kind takes.
_FACTORISED = {
    "csn": ((8, 32, 32), {"stem_pool": nn.MaxPool3d}),
    "r2plus1d": ((4, 32, 32), {"head_activation": None}),
}


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    """pytorchvideo's assertions about its arguments as errors for users."""
    try:
        yield
    except AssertionError as error:
        raise ValueError(f"pytorchvideo does not build such a network: {error}") from error


def _grid(spec: InputSpec, strides: Sequence[int], *, pooled_frames: int = 1) -> tuple[int, int, int]:
    """Cells of the last volume: convolutions with a stride round up, the pooling of frames rounds down."""
    frames = math.ceil(spec.frames // pooled_frames / strides[0])
    if not frames:
        raise ValueError(
            f"clips of {spec.frames} frames are too short for this network, which pools {pooled_frames} frames into "
            "one (DATA.NUM_FRAMES)"
        )
    return (frames, *(math.ceil(pixels / stride) for pixels, stride in zip(spec.size, strides[1:], strict=True)))


def _check_depth(depth: int) -> None:
    if depth not in RESNET_DEPTHS:
        raise ValueError(f"the depth is {depth}; pytorchvideo builds {RESNET_DEPTHS} layers (RESNET.DEPTH)")


def _pytorchvideo(module: str, function: str) -> Callable[..., nn.Module]:
    """A function of pytorchvideo.models; its import uses what new versions of torch warn about."""
    # torch 2.6 cannot import its compiler, which torchvision does, where tensors have no memory.
    with warnings.catch_warnings(), torch.device("cpu"):
        warnings.simplefilter("ignore", FutureWarning)
        return getattr(import_module(f"pytorchvideo.models.{module}"), function)


def build_resnet(
    *,
    arch: str,
    input_spec: InputSpec,
    num_classes: int = 400,
    head_dropout: float = 0.5,
    eval_size: Sequence[int] | None = None,
    depth: int = 50,
    width: int = 64,
    groups: int = 1,
    spatial_strides: Sequence[int] = (1, 2, 2, 2),
    spatial_dilations: Sequence[int] = (1, 1, 1, 1),
    inplace_relu: bool = False,
) -> ConvBaseline:
    """Slow, C2D or I3D (``arch`` slow, c2d, i3d): a ResNet whose convolutions are inflated over frames in places.

    Args:
        depth: layers: 50, 101 or 152.
        width: channels of the stem.
        groups: of the 3 x 3 convolutions.
        spatial_strides: of the four stages.
        spatial_dilations: of the 3 x 3 convolutions of the four stages.
        inplace_relu: same numbers, less memory.
        input_spec, num_classes, head_dropout, eval_size: see `Baseline`.
    """
    create_resnet = _pytorchvideo("resnet", "create_resnet")

    _check_depth(depth)
    if arch not in _RESNETS:
        raise ValueError(f"the architecture is {arch!r}; expected one of {', '.join(_RESNETS)} (MODEL.ARCH)")
    stem, stages, pool = _RESNETS[arch]
    spatial = 4 * math.prod(spatial_strides)
    with _readable_errors():
        net = create_resnet(
            input_channel=input_spec.channels,
            model_depth=depth,
            model_num_class=num_classes,
            dropout_rate=head_dropout,
            activation=partial(nn.ReLU, inplace=inplace_relu),
            stem_dim_out=width,
            stem_conv_kernel_size=(stem, 7, 7),
            stage1_pool=nn.MaxPool3d if pool > 1 else None,
            stage1_pool_kernel_size=(pool, 1, 1),
            stage_conv_a_kernel_size=tuple(
                [(k, 1, 1) for k in stage] if isinstance(stage, list) else (stage, 1, 1) for stage in stages
            ),
            stage_conv_b_num_groups=(groups,) * 4,
            stage_conv_b_dilation=tuple((1, d, d) for d in spatial_dilations),
            stage_spatial_h_stride=tuple(spatial_strides),
            stage_spatial_w_stride=tuple(spatial_strides),
            head_pool_kernel_size=_grid(input_spec, (1, spatial, spatial), pooled_frames=pool),
        )
    return ConvBaseline(net, input_spec=input_spec, num_classes=num_classes, eval_size=eval_size)


def build_factorised(
    *,
    kind: str,
    input_spec: InputSpec,
    num_classes: int = 400,
    head_dropout: float = 0.5,
    eval_size: Sequence[int] | None = None,
    depth: int = 50,
    width: int = 64,
    inplace_relu: bool = False,
) -> ConvBaseline:
    """A ResNet whose convolutions are depthwise (``kind`` csn), or over space, then over frames (r2plus1d).

    Further arguments: see `build_resnet`.
    """
    native, options = _FACTORISED[kind]
    create = _pytorchvideo(kind, f"create_{kind}")
    _check_depth(depth)
    net = create(
        input_channel=input_spec.channels,
        model_depth=depth,
        model_num_class=num_classes,
        dropout_rate=head_dropout,
        activation=partial(nn.ReLU, inplace=inplace_relu),
        stem_dim_out=width,
        head_pool_kernel_size=_grid(input_spec, native),
        **options,
    )
    return ConvBaseline(net, input_spec=input_spec, num_classes=num_classes, eval_size=eval_size)


def build_x3d(
    *,
    input_spec: InputSpec,
    num_classes: int = 400,
    head_dropout: float = 0.5,
    eval_size: Sequence[int] | None = None,
    width_factor: float = 2.0,
    depth_factor: float = 2.2,
    bottleneck_factor: float = 2.25,
    stem_dim: int = 12,
    head_dim: int = 2048,
    head_norm: bool = False,
    inplace_relu: bool = False,
) -> ConvBaseline:
    """X3D: a narrow network of depthwise convolutions, grown along one axis after the other.

    Args:
        width_factor, depth_factor: of all channels, and of the blocks of each stage.
        bottleneck_factor: channels of the 3 x 3 x 3 convolutions over those of the block.
        stem_dim: channels of the stem, before `width_factor`.
        head_dim: D, the width that the classifier reads.
        head_norm: a batch norm before the classifier.
        inplace_relu: same numbers, less memory.
        input_spec, num_classes, head_dropout, eval_size: see `Baseline`; the input must be square.
    """
    create_x3d = _pytorchvideo("x3d", "create_x3d")

    height, width = input_spec.size
    if height != width or height < 32:
        raise ValueError(f"the input is {height} x {width} pixels; X3D takes squares of 32 pixels or more")
    relu = partial(nn.ReLU, inplace=inplace_relu)
    net = create_x3d(
        input_channel=input_spec.channels,
        input_clip_length=input_spec.frames,
        input_crop_size=height,
        model_num_class=num_classes,
        dropout_rate=head_dropout,
        width_factor=width_factor,
        depth_factor=depth_factor,
        activation=relu,
        stem_dim_in=stem_dim,
        bottleneck_factor=bottleneck_factor,
        head_dim_out=head_dim,
        head_pool_act=relu,
        head_bn_lin5_on=head_norm,
        head_activation=None,
    )
    return ConvBaseline(net, input_spec=input_spec, num_classes=num_classes, eval_size=eval_size)


_MVIT_B_POINTS = ([1, 2.0], [3, 2.0], [14, 2.0])  # where MViT-B doubles its width and heads
_MVIT_B_STRIDES = ([1, 1, 2, 2], [3, 1, 2, 2], [14, 1, 2, 2])


def build_mvit(
    *,
    input_spec: InputSpec,
    num_classes: int = 400,
    head_dropout: float = 0.5,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    depth: int = 16,
    embed_dim: int = 96,
    num_heads: int = 1,
    mlp_ratio: float = 4.0,
    qkv_bias: bool = True,
    class_token: bool = True,
    separable_positions: bool = True,
    norm_stem: bool = False,
    patch_kernel: Sequence[int] = (3, 7, 7),
    patch_stride: Sequence[int] = (2, 4, 4),
    patch_padding: Sequence[int] = (1, 3, 3),
    pool_mode: str = "conv",
    pool_first: bool = False,
    dim_mul: Sequence[Sequence[float]] = _MVIT_B_POINTS,
    head_mul: Sequence[Sequence[float]] = _MVIT_B_POINTS,
    pool_q_stride: Sequence[Sequence[int]] = _MVIT_B_STRIDES,
    pool_kv_stride: Sequence[Sequence[int]] = (),
    pool_kv_stride_adaptive: Sequence[int] | None = (1, 8, 8),
    pool_kvq_kernel: Sequence[int] | None = (3, 3, 3),
) -> MViTBaseline:
    """pytorchvideo's MViT; the defaults are MViT-B. Arguments: as those of `revvideo.models.mvit`."""
    create_multiscale_vision_transformers = _pytorchvideo(
        "vision_transformers", "create_multiscale_vision_transformers"
    )

    if min(input_spec.size) < patch_stride[-1]:
        raise ValueError(f"the input is {input_spec.size} pixels; expected at least one patch of {patch_stride[-1]}")
    for key, rows, last in (
        ("DIM_MUL", dim_mul, depth),
        ("HEAD_MUL", head_mul, depth),
        ("POOL_Q_STRIDE", pool_q_stride, depth - 1),
        ("POOL_KV_STRIDE", pool_kv_stride, depth - 1),
    ):
        if any(row[0] > last for row in rows):
            raise ValueError(f"{list(rows)} names a block above {last}, but the depth is {depth} (MVIT.{key})")
    with _readable_errors(), _NumbersOnCpu():
        net = create_multiscale_vision_transformers(
            spatial_size=input_spec.size,
            temporal_size=input_spec.frames,
            cls_embed_on=class_token,
            sep_pos_embed=separable_positions,
            depth=depth,
            input_channels=input_spec.channels,
            patch_embed_dim=embed_dim,
            conv_patch_embed_kernel=tuple(patch_kernel),
            conv_patch_embed_stride=tuple(patch_stride),
            conv_patch_embed_padding=tuple(patch_padding),
            enable_patch_embed_norm=norm_stem,
            use_2d_patch=input_spec.image,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            dropout_rate_block=dropout,
            droppath_rate_block=drop_path,
            pooling_mode=pool_mode,
            pool_first=pool_first,
            embed_dim_mul=dim_mul,
            atten_head_mul=head_mul,
            pool_q_stride_size=[list(row) for row in pool_q_stride],
            pool_kv_stride_size=None if pool_kv_stride_adaptive else [list(row) for row in pool_kv_stride],
            pool_kv_stride_adaptive=list(pool_kv_stride_adaptive) if pool_kv_stride_adaptive else None,
            pool_kvq_kernel=list(pool_kvq_kernel) if pool_kvq_kernel else None,
            head_dropout_rate=head_dropout,
            head_num_classes=num_classes,
        )
    return MViTBaseline(net, input_spec=input_spec, num_classes=num_classes)


class _NumbersOnCpu(TorchFunctionMode):
    """pytorchvideo plans the blocks of an MViT in small tensors and reads them: not possible on the meta device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.linspace, torch.ones):
            kwargs = {"device": "cpu", **kwargs}
        return function(*args, **kwargs)


# Names


def _register(name: str, build: Callable[..., Baseline], frames: int, stride: int, size: int, **fixed) -> None:
    """Make ``ptv/name`` a model: ``build`` with another default input and the arguments ``fixed``."""
    known = ["input_size", "in_channels", *inspect.signature(build).parameters]
    known = [option for option in known if option not in ("input_spec", *fixed)]

    @register_model(f"ptv/{name}")
    def builder(
        *, num_classes: int = 400, input_size: Sequence[int] | None = None, in_channels: int | None = None, **overrides
    ) -> Baseline:
        given = {"num_classes": num_classes, "input_size": input_size, "in_channels": in_channels, **overrides}
        check_options(f"ptv/{name}", {key: value for key, value in given.items() if value is not None}, known)
        spec = InputSpec(frames=frames, stride=stride, size=(size, size)).adapted(input_size, in_channels)
        return build(input_spec=spec, num_classes=num_classes, **fixed, **overrides)


_register("slow_r50", build_resnet, 8, 8, 224, arch="slow")
_register("c2d_r50", build_resnet, 8, 8, 224, arch="c2d")
_register("i3d_r50", build_resnet, 8, 8, 224, arch="i3d")
_register("csn_r101", partial(build_factorised, depth=101, head_dropout=0.0), 32, 2, 224, kind="csn")
_register("r2plus1d_r50", build_factorised, 16, 4, 224, kind="r2plus1d")
_register("x3d_xs", build_x3d, 4, 12, 160)
_register("x3d_s", build_x3d, 13, 6, 160)
_register("x3d_m", build_x3d, 16, 5, 224)
_register("x3d_l", partial(build_x3d, depth_factor=5.0), 16, 5, 312)
_register("mvit_b_16x4", build_mvit, 16, 4, 224)
_register("mvit_b_32x3", build_mvit, 32, 3, 224)
