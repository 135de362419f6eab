"""Reversible Vision Transformers for images (Mangalam et al. 2022, section 3.2): Rev-MViT without transitions."""

from revvideo.models.assemble import assemble
from revvideo.models.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from revvideo.models.registry import register_model
from revvideo.models.rev_mvit import RevMViT
from revvideo.models.video_transformer import PatchSpec

_IMAGE = {
    "input_spec": InputSpec(frames=1, stride=1, mean=IMAGENET_MEAN, std=IMAGENET_STD, image=True),
    "patch": PatchSpec((16, 16), (16, 16), (0, 0)),
    "positions": "joint",
    "separate_qkv": True,
    "transitions": (),
    "num_classes": 1000,
}


@register_model
def rev_vit_s(**overrides) -> RevMViT:
    """Rev-ViT-S/16: 22.43 M parameters, 4.6 GFLOPs (PySlowFast ImageNet/REV_VIT_S)."""
    network = {"depth": 12, "embed_dim": 384, "num_heads": 6, "drop_path": 0.1}
    return assemble(RevMViT, _IMAGE | network, overrides)


@register_model
def rev_vit_b(**overrides) -> RevMViT:
    """Rev-ViT-B/16: 87.34 M parameters, 17.5 GFLOPs (PySlowFast ImageNet/REV_VIT_B)."""
    network = {"depth": 12, "embed_dim": 768, "num_heads": 12, "drop_path": 0.2}
    return assemble(RevMViT, _IMAGE | network, overrides)


@register_model
def rev_vit_l(**overrides) -> RevMViT:
    """Rev-ViT-L/16: 305.35 M parameters, 61.3 GFLOPs (305 M and 61.6 in table 1; there is no official config).

    The drop-path rate is ours: the paper does not tell it.
    """
    network = {"depth": 24, "embed_dim": 1024, "num_heads": 16, "drop_path": 0.3}
    return assemble(RevMViT, _IMAGE | network, overrides)
