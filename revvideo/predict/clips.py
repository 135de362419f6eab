"""`load_clip`: one file to the float clips that a model takes."""

import dataclasses

import torch
from torch import Tensor, nn

from revvideo import build
from revvideo.config.loader import Overrides
from revvideo.data.manifest import Manifest
from revvideo.errors import InputError
from revvideo.models.input_spec import InputSpec
from revvideo.predict.input_config import override_pairs, spec_config
from revvideo.predict.read_views import read_views
from revvideo.predict.sources import find_sources


def load_clip(
    path: object,
    model: nn.Module | InputSpec | None = None,
    *,
    views: tuple[int, int] = (1, 1),
    frames: int | None = None,
    stride: int | None = None,
    size: int | None = None,
    fps: float | None = None,
    overrides: Overrides = (),
) -> Tensor:
    """The views of a video as a model takes them: `model(revvideo.load_clip("clip.mp4", model))` gives their logits.

    The clips are the evaluator's: frames by PySlowFast's formula, short side, crops, normalisation.

    Args:
        path: a video file, a folder of frames, or uint8 frames (T, H, W, 3); for an image model a picture.
        model: says what it takes (`input_spec`); None: 16 frames, stride 4, 224 pixels, Kinetics' normalisation.
        views: (temporal views, spatial crops: 1 or 3).
        frames, stride, size: T, frames between two of the clip at 30 per second, and pixels of a side, where they
            are to differ from the model's.
        fps: frames per second of an array; default 30.
        overrides: config keys, such as `["DATA.TRAIN_JITTER_SCALES", [320, 320]]` for another short side before the
            crop.

    Returns:
        float32 (V, C, T, H, W) on the CPU, temporal index outermost.

    Raises:
        VideoError: the file cannot be read.
        InputError: a model that does not say what it takes, or numbers that do not fit.
    """
    spec = InputSpec() if model is None else getattr(model, "input_spec", model)
    if not isinstance(spec, InputSpec):
        raise InputError(f"the {type(model).__name__} does not say what it takes; expected an attribute input_spec")
    changes = {"frames": frames, "stride": stride, "size": None if size is None else (size, size)}
    spec = dataclasses.replace(spec, **{name: value for name, value in changes.items() if value is not None})
    temporal, crops = (1, 1) if spec.image else views
    cfg = spec_config(spec, {"TEST.NUM_SPATIAL_CROPS": crops, **dict(override_pairs(overrides))})
    data = build.build_test_dataset(cfg, temporal, Manifest((), (), "clip", kind="image" if spec.image else "video"))
    found = find_sources([path], images=spec.image)
    if len(found) != 1 or found[0].in_folder:
        raise InputError(f"{path!r} is a folder; expected one file")
    return build.build_eval_input(cfg, torch.device("cpu"))(read_views(data, found[0], fps or cfg.DATA.TARGET_FPS))
