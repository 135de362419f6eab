"""What a model is shown of one source: the evaluator's views of a file, a frame folder, a picture or an array."""

import os

import numpy as np
import torch
from torch import Tensor

from revvideo.data.dataset import EvalClips
from revvideo.data.image_dataset import EvalImages, open_picture
from revvideo.data.lists.folders import is_picture, is_video
from revvideo.data.video_reader import VideoError, VideoReader, open_video
from revvideo.errors import InputError
from revvideo.predict.open_videos import ArrayVideo
from revvideo.predict.sources import Source


def read_views(data: EvalClips | EvalImages, source: Source, fps: float) -> Tensor:
    """The views that the evaluation scores: uint8 (V, T, C, H, W), temporal index outermost.

    Args:
        data: what `build_test_dataset` made, of any list.
        source: what to read.
        fps: frames per second of an array.

    Raises:
        VideoError: it cannot be read.
        InputError: an array of another shape or dtype.
    """
    if isinstance(data, EvalImages):
        return read_picture(data, source)
    with open_source(data, source, fps) as video:
        return data.views(video)


def open_source(data: EvalClips, source: Source, fps: float, *, strict: bool = True) -> VideoReader:
    """The open video of a source, with the backend of the evaluation, which is strict (`open_video`).

    Raises:
        VideoError, InputError: see `read_views`.
    """
    if source.array is not None:
        return ArrayVideo(_on_cpu(source.array), fps)
    try:
        return open_video(source.path, "frames" if source.kind == "frames" else data.backend, strict=strict)
    except VideoError as error:
        if not (is_picture(source.path) and os.path.isfile(source.path)):
            raise
        raise VideoError(source.path, error.backend, "a picture, but the model takes videos") from error


def read_picture(data: EvalImages, source: Source) -> Tensor:
    """The crop of a picture that the evaluation scores: uint8 (1, 1, C, H, W).

    Raises:
        VideoError, InputError: see `read_views`.
    """
    if source.array is None:
        try:
            return data.transform(open_picture(source.path))[None]
        except VideoError as error:
            if not is_video(source.path):
                raise
            raise VideoError(source.path, error.backend, "a video, but the model takes pictures") from error
    from PIL import Image

    array = np.asarray(_on_cpu(source.array))
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise InputError(
            f"the picture is an array of {array.dtype} {array.shape}; this model takes pictures: uint8 (H, W, 3), RGB, "
            "0 to 255"
        )
    return data.transform(Image.fromarray(array))[None]


def _on_cpu(array: object) -> object:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array
