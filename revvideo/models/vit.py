"""Plain Vision Transformers (Dosovitskiy et al. 2021) for images and video: MViT without pooling.

As the MAE (Feichtenhofer et al. 2022) and MaskFeat (Wei et al. 2022) fine-tuning configs build them: the head reads the
norm of the mean of the tokens.
"""

from revvideo.models.assemble import assemble
from revvideo.models.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from revvideo.models.mvit import MViT
from revvideo.models.registry import register_model
from revvideo.models.video_transformer import PatchSpec

_BASE = {"depth": 12, "embed_dim": 768, "num_heads": 12}
_LARGE = {"depth": 24, "embed_dim": 1024, "num_heads": 16}
_FINE_TUNING = {"class_token": True, "mean_pooling": True, "head_init_scale": 0.001}
_VIDEO = _FINE_TUNING | {
    "input_spec": InputSpec(16, 4),
    "patch": PatchSpec((2, 16, 16), (2, 16, 16), (0, 0, 0)),
    "positions": "separable",
    "head_dropout": 0.3,
    "num_classes": 400,
}


@register_model
def vit_b(**overrides) -> MViT:
    """ViT-B/16 of ImageNet-1K: 86.57 M parameters, 17.6 GFLOPs (PySlowFast in1k_VIT_B_MaskFeat_FT)."""
    image = {
        "input_spec": InputSpec(frames=1, stride=1, mean=IMAGENET_MEAN, std=IMAGENET_STD, image=True),
        "patch": PatchSpec((16, 16), (16, 16), (0, 0)),
        "positions": "joint",
        "drop_path": 0.1,
        "num_classes": 1000,
    }
    return assemble(MViT, _BASE | _FINE_TUNING | image, overrides)


@register_model
def vit_b_16x4(**overrides) -> MViT:
    """ViT-B 16x4 of Kinetics-400: 86.70 M parameters, 181 GFLOPs (PySlowFast k400_VIT_B_16x4_FT)."""
    return assemble(MViT, _BASE | _VIDEO | {"drop_path": 0.1}, overrides)


@register_model
def vit_l_16x4(**overrides) -> MViT:
    """ViT-L 16x4 of Kinetics-400: 304.51 M parameters, 598 GFLOPs (PySlowFast k400_VIT_L_16x4_FT)."""
    return assemble(MViT, _LARGE | _VIDEO | {"drop_path": 0.2}, overrides)
