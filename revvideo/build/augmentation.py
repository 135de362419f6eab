"""What AUG and the crop keys of DATA ask for: the transforms of clips and pictures, and random erasing."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from revvideo.data.colour_jitter import ColourJitter
from revvideo.data.image_dataset import PictureAsClip
from revvideo.data.image_transforms import ImageEvalTransform, ImageTrainTransform, mean_colour
from revvideo.data.rand_augment import RandAugment, parse_policy
from revvideo.data.random_erasing import RandomErasing
from revvideo.data.transforms import EvalTransform, TrainTransform
from revvideo.errors import InputError

_GREY = (128, 128, 128)  # what RandAugment fills clips with, as in PySlowFast


def train_transform(cfg: CfgNode) -> TrainTransform:
    """Crop, RandAugment (AUG.AA_TYPE) and flip of training clips.

    Raises:
        InputError: sizes that do not fit, or a policy that is none.
    """
    data = cfg.DATA
    return TrainTransform(
        crop_size=data.TRAIN_CROP_SIZE,
        short_side_range=tuple(data.TRAIN_JITTER_SCALES),
        relative_scales=tuple(data.TRAIN_JITTER_SCALES_RELATIVE),
        relative_aspects=tuple(data.TRAIN_JITTER_ASPECT_RELATIVE),
        flip=data.RANDOM_FLIP,
        inverse_uniform=data.INV_UNIFORM_SAMPLE,
        augment=_rand_augment(cfg, _GREY),
        augment_first=cfg.LOADER.AUGMENT_ORDER == "pyslowfast",
    )


def image_train_transform(cfg: CfgNode) -> ImageTrainTransform:
    """Random resized crop, flip and RandAugment or colour jitter of training pictures.

    Without DATA.TRAIN_JITTER_SCALES_RELATIVE the boxes are those of ImageNet training, 0.08 to 1 of the area.

    Raises:
        InputError: a policy that is none.
    """
    data, aug = cfg.DATA, cfg.AUG
    boxes = {}
    if data.TRAIN_JITTER_SCALES_RELATIVE:
        boxes["relative_scales"] = tuple(data.TRAIN_JITTER_SCALES_RELATIVE)
        boxes["relative_aspects"] = tuple(data.TRAIN_JITTER_ASPECT_RELATIVE)
    augment = _rand_augment(cfg, mean_colour(data.MEAN))
    if aug.ENABLE and augment is None and aug.COLOR_JITTER:
        augment = ColourJitter(aug.COLOR_JITTER, aug.COLOR_JITTER, aug.COLOR_JITTER)
    return ImageTrainTransform(
        data.TRAIN_CROP_SIZE,
        interpolation=aug.INTERPOLATION if aug.ENABLE else "bilinear",
        flip=data.RANDOM_FLIP,
        augment=augment,
        **boxes,
    )


def image_eval_transform(cfg: CfgNode) -> ImageEvalTransform | PictureAsClip:
    """Resize and centre crop of pictures: PIL's with AUG.ENABLE, else that of videos, as in PySlowFast.

    Without AUG.ENABLE the short side becomes DATA.TRAIN_CROP_SIZE and DATA.IN_VAL_CROP_RATIO has no effect.

    Raises:
        InputError: DATA.TEST_CROP_SIZE does not fit.
    """
    if not cfg.AUG.ENABLE:
        if cfg.DATA.TEST_CROP_SIZE > cfg.DATA.TRAIN_CROP_SIZE:
            raise InputError(
                f"DATA.TEST_CROP_SIZE is {cfg.DATA.TEST_CROP_SIZE}; expected at most DATA.TRAIN_CROP_SIZE "
                f"({cfg.DATA.TRAIN_CROP_SIZE}), the short side of pictures without AUG.ENABLE"
            )
        return PictureAsClip(EvalTransform(cfg.DATA.TEST_CROP_SIZE, short_side=cfg.DATA.TRAIN_CROP_SIZE))
    return ImageEvalTransform(cfg.DATA.TEST_CROP_SIZE, crop_ratio=cfg.DATA.IN_VAL_CROP_RATIO)


def _rand_augment(cfg: CfgNode, fill: Sequence[int]) -> RandAugment | None:
    if not cfg.AUG.ENABLE or not cfg.AUG.AA_TYPE:
        return None
    return RandAugment(parse_policy(cfg.AUG.AA_TYPE), fill=fill, interpolation=cfg.AUG.INTERPOLATION)


def build_erasing(cfg: CfgNode) -> RandomErasing | None:
    """Random erasing of normalised clips, or None where AUG asks for none."""
    aug = cfg.AUG
    if not aug.ENABLE or aug.RE_PROB == 0:
        return None
    return RandomErasing(aug.RE_PROB, mode=aug.RE_MODE, count=aug.RE_COUNT)
