"""What a file of a model says about itself: what goes in, what comes out, the names of the classes."""

from typing import Any

import torch
from torch import Tensor

from revvideo import __version__
from revvideo.config.datasets import dataset_kind
from revvideo.predict.model_source import LoadedModel

INPUT_NAME, OUTPUT_NAME = "clips", "logits"
METADATA_KEY = "revvideo.json"  # of the JSON text in the file


def describe(loaded: LoadedModel, clip: Tensor, *, num_classes: int, batch_size: int | None) -> dict[str, Any]:
    """The metadata of an exported model; docs/export.md explains the keys.

    Args:
        loaded: the model.
        clip: an example of the input, `(C, T, H, W)` or `(C, H, W)`.
        num_classes: K.
        batch_size: of the file; None: any.
    """
    data, spec = loaded.cfg.DATA, loaded.input_spec
    picture = clip.ndim == 3
    sampling = {
        "frames": spec.frames,
        "stride": spec.stride,
        "target_fps": data.TARGET_FPS,
        "choice": "segments" if dataset_kind(loaded.cfg, "test") == "ssv2" else "clip",
    }
    return {
        "format": 1,
        "revvideo": __version__,
        "torch": torch.__version__,
        "model": type(loaded.model).__name__,
        "checkpoint": loaded.checkpoint.rpartition("/")[2],
        "input": {
            "name": INPUT_NAME,
            "layout": "BCHW" if picture else "BCTHW",
            "shape": [batch_size, *clip.shape],
            "dtype": "float32",
            **({} if picture else sampling),
            "size": list(clip.shape[-2:]),
            "channels": "BGR" if data.REVERSE_INPUT_CHANNEL else "RGB",
            "scale": 1 / 255,
            "mean": list(spec.mean),
            "std": list(spec.std),
        },
        "output": {
            "name": OUTPUT_NAME,
            "layout": "BK",
            "num_classes": num_classes,
            "dtype": "float32",
            "activation": loaded.cfg.MODEL.HEAD_ACT,
        },
        "class_names": list(loaded.class_names),
    }
