"""What the network of a config takes."""

from fvcore.common.config import CfgNode

from revvideo.models.input_spec import InputSpec


def input_spec(cfg: CfgNode) -> InputSpec:
    """Frames, stride, size and normalisation of DATA; one frame for an image model (MVIT.PATCH_2D)."""
    data = cfg.DATA
    image = cfg.MODEL.MODEL_NAME in ("MViT", "PTVMViT") and cfg.MVIT.PATCH_2D
    return InputSpec(
        frames=1 if image else data.NUM_FRAMES,
        stride=1 if image else data.SAMPLING_RATE,
        size=(data.TRAIN_CROP_SIZE, data.TRAIN_CROP_SIZE),
        mean=tuple(data.MEAN),
        std=tuple(data.STD),
        image=image,
    )
