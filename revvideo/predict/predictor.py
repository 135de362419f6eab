"""`Predictor`: videos or pictures in, classes out, read, cropped and put together as the evaluator does it."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from revvideo import build
from revvideo.config.loader import Overrides
from revvideo.data.dataset import EvalClips
from revvideo.data.manifest import Manifest
from revvideo.data.video_reader import VideoError, VideoReader
from revvideo.engine.metrics import VideoScores
from revvideo.engine.video_batches import VideoBatches
from revvideo.errors import InputError
from revvideo.predict.model_source import LoadedModel, ModelOrName, load_predictor_model
from revvideo.predict.read_views import open_source, read_picture
from revvideo.predict.sources import Source, find_sources

MAX_CLIPS = 10  # that go through the model at a time where `batch_clips` does not say


@dataclass(frozen=True)
class Prediction:
    """What a model says of one video, picture or window.

    Attributes:
        path: as it was asked for; "<array>" for frames in memory.
        scores: float32 (K,), the evaluator's: sum, max or mean of the views' softmax (DATA.ENSEMBLE_METHOD); empty
            where there is an error.
        probabilities: float32 (K,), `scores` on the scale of one view: 0 to 1 for softmax.
        class_names: K names.
        error: why there are no scores; None: there are.
        damage: what is wrong with the file, although the frames that the model was shown are sound; None: nothing.
        start_seconds, end_seconds: of a window in its video, counted from the first frame; None: the whole video.
    """

    path: str
    scores: np.ndarray
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    error: str | None = None
    damage: str | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None

    @classmethod
    def failed(cls, path: str, reason: str) -> "Prediction":
        """Of what cannot be read."""
        nothing = np.zeros(0, np.float32)
        return cls(path, nothing, nothing, (), error=reason)

    @property
    def label(self) -> int:
        """Number of the class with the highest score."""
        return self.top(1)[0][0]

    @property
    def class_name(self) -> str:
        """Name of that class."""
        return self.class_names[self.label]

    @property
    def probability(self) -> float:
        """Its probability."""
        return float(self.probabilities[self.label])

    def top(self, count: int = 5) -> list[tuple[int, str, float]]:
        """(class number, name, probability) of the `count` highest scores; of equal ones the lower number first.

        Raises:
            ValueError: there are no scores, or no class is asked for.
        """
        if self.error is not None:
            raise ValueError(f"{self.path} has no scores: {self.error}")
        if count < 1:
            raise ValueError(f"the {count} highest scores are asked for; expected at least 1")
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(int(i), self.class_names[i], float(self.probabilities[i])) for i in order]


class Predictor:
    """A model that takes files, folders and arrays.

        predict = revvideo.Predictor("rev_mvit_b_16x4", "k400.pyth", classes="kinetics400.txt")
        predict("clip.mp4").class_name

    Frames, views, crops, normalisation and the sum over views are those of the evaluator (`run_net` with
    TRAIN.ENABLE False): the same code with the same config, which the checkpoint carries.

    Args:
        model: a name, a config, a module or None; this and `checkpoint`, `classes`, `overrides`, `device` and
            `averaged` as `load_predictor_model` says. A `LoadedModel` is taken as it is.
        views: (temporal views, spatial crops: 1 or 3) of a video; a picture has one.
        batch_clips: None: the views of one video at a time. A number: the evaluator's batches under a TEST.BATCH_SIZE
            of that number. For its whole list in its order the scores are then the evaluator's to the last bit; other
            shapes round differently, by 1e-7 or so.
        strict: refuse a video with any damage that can be seen, as the evaluator does. False: predict it where the
            frames that the views need are sound, and tell (`Prediction.damage`).

    Attributes:
        loaded: the model and its config, see `LoadedModel`.
        num_views: temporal views x spatial crops.

    Raises:
        InputError: see `load_predictor_model`; views that cannot be.
    """

    def __init__(
        self,
        model: ModelOrName | LoadedModel | None = None,
        checkpoint: str | os.PathLike | None = None,
        *,
        classes: Sequence[str] | str | os.PathLike | None = None,
        views: tuple[int, int] = (5, 1),
        batch_clips: int | None = None,
        strict: bool = True,
        overrides: Overrides = (),
        device: str | torch.device | None = None,
        averaged: bool = False,
    ):
        if not isinstance(model, LoadedModel):
            model = load_predictor_model(
                model, checkpoint, classes=classes, overrides=overrides, device=device, averaged=averaged
            )
        if batch_clips is not None and batch_clips < 1:
            raise InputError(f"batch_clips is {batch_clips}; expected at least 1, or None")
        self.loaded, self.batch_clips, self.strict = model, batch_clips, strict
        temporal, crops = (1, 1) if model.is_image else views
        cfg = model.cfg.clone()
        cfg.defrost()
        cfg.TEST.NUM_SPATIAL_CROPS = crops
        cfg.freeze()
        kind = "image" if model.is_image else "video"
        self._data = build.build_test_dataset(cfg, temporal, Manifest((), (), "prediction", kind=kind))
        self._cfg = cfg
        self._prepare = build.build_eval_input(cfg, model.device)
        self.num_views = temporal * crops

    def __call__(self, source: object, *, fps: float | None = None) -> "Prediction | list[Prediction]":
        """Predict one thing or many.

        Args:
            source: a video file (an image model: a picture file), a folder of them, a folder of pictures that are the
                frames of one video, an array, or a list of all these. Arrays are uint8 RGB: (T, H, W, 3), of an image
                model (H, W, 3).
            fps: frames per second of arrays; default DATA.TARGET_FPS.

        Returns:
            a `Prediction` for one file, frame folder or array, else a list of them in order.

        Raises:
            VideoError: the one file cannot be read. In a list it has a `Prediction` with an `error` instead.
            InputError: a source that is none of these; CheckFailed: scores that are not finite.
        """
        if isinstance(source, list | tuple):
            return list(self.predict_all(source, fps=fps))
        found = find_sources([source], images=self.loaded.is_image)
        if len(found) > 1 or found[0].in_folder:
            return list(self.predict_all(found, fps=fps))
        return self.predict_one(found[0], fps=fps)

    def predict_one(self, source: object, *, fps: float | None = None) -> Prediction:
        """The prediction of one file, frame folder or array; see `__call__`.

        Raises:
            VideoError: it cannot be read.
            InputError: it is none, or several.
        """
        only = self._only(source)
        return self._predictions([only.path], [self._read(only, fps)])[0]

    def predict_all(self, sources: Iterable[object], *, fps: float | None = None) -> Iterator[Prediction]:
        """Predict many sources, in order, each as soon as it is done; those that cannot be read have an `error`.

        Args:
            sources: as in `__call__`; folders are looked into first.
            fps: as in `__call__`.
        """
        found = find_sources(sources, images=self.loaded.is_image)
        batches = self._batches(1 if self.batch_clips is None else len(found))
        for first in range(0, len(found), batches.videos_per_batch):
            group = found[first : first + batches.videos_per_batch]
            shown: list[_Shown] = []
            for source in group:
                try:
                    shown.append(self._read(source, fps))
                except VideoError as error:
                    shown.append(_Shown(None, error.reason))
            yield from self._predictions([source.path for source in group], shown, batches)

    def predict_video(self, video: VideoReader) -> Prediction:
        """The prediction of an open video, such as a `VideoPart`.

        Raises:
            VideoError: it cannot be read, or frames that the views need are damaged.
        """
        return self._predictions([video.path], [_show(self._data, video)])[0]

    def views(self, source: object, *, fps: float | None = None) -> Tensor:
        """What the model is shown of one source: uint8 (V, T, C, H, W), temporal index outermost.

        Raises:
            VideoError: it cannot be read.
            InputError: it is none, or several.
        """
        return self._read(self._only(source), fps).views

    def open(self, source: object, *, fps: float | None = None, strict: bool | None = None) -> VideoReader:
        """The open video of one source, with the evaluator's backend.

        Args:
            source, fps: as in `__call__`.
            strict: of the reader, see `open_video`; None: yes, but for a damaged video where this predictor is not.

        Raises:
            VideoError: it cannot be read.
            InputError: it is none, or several, or the model takes pictures.
        """
        if self.loaded.is_image:
            raise InputError("the model takes pictures; expected one of videos")
        only, fps = self._only(source), fps or self._cfg.DATA.TARGET_FPS
        if strict is not None:
            return open_source(self._data, only, fps, strict=strict)
        try:
            return open_source(self._data, only, fps)
        except VideoError:
            if self.strict:
                raise
            return open_source(self._data, only, fps, strict=False)

    @property
    def clip_seconds(self) -> float:
        """What a clip spans; 0 where its frames are drawn from the whole video."""
        clip = self._data.clip
        return 0.0 if clip.segments else clip.num_frames * clip.sampling_rate / clip.target_fps

    def _only(self, source: object) -> Source:
        found = find_sources([source], images=self.loaded.is_image)
        if len(found) != 1:
            raise InputError(f"{source!r} holds {len(found)} files; expected one")
        return found[0]

    def _read(self, source: Source, fps: float | None) -> "_Shown":
        if self.loaded.is_image:
            return _Shown(read_picture(self._data, source))
        with self.open(source, fps=fps) as video:
            return _show(self._data, video)

    def _batches(self, num_videos: int) -> VideoBatches:
        return VideoBatches(num_videos, self.num_views, self.batch_clips or MAX_CLIPS)

    def _predictions(
        self, paths: Sequence[str], shown: Sequence["_Shown"], batches: VideoBatches | None = None
    ) -> list[Prediction]:
        """Of the videos of one batch."""
        batches = batches or self._batches(1)
        cfg = self._cfg
        together = VideoScores(self.num_views, method=cfg.DATA.ENSEMBLE_METHOD, activation=cfg.MODEL.HEAD_ACT)
        readable = {place: each.views for place, each in enumerate(shown) if each.views is not None}
        if readable:
            logits = self._logits(readable, batches)
            for place in readable:
                together.add(place, range(self.num_views), logits[place], label=0, path=paths[place])
        rows = dict(zip(readable, together.arrays()["scores"]))
        return [self._prediction(path, rows.get(place), shown[place].reason) for place, path in enumerate(paths)]

    def _prediction(self, path: str, scores: np.ndarray | None, reason: str) -> Prediction:
        if scores is None:
            return Prediction.failed(path, reason)
        summed = self._cfg.DATA.ENSEMBLE_METHOD == "sum"
        probabilities = scores / np.float32(self.num_views) if summed else scores
        names = tuple(map(self.loaded.class_name, range(len(scores))))
        return Prediction(path, scores, probabilities, names, damage=reason or None)

    @torch.inference_mode()
    def _logits(self, videos: Mapping[int, Tensor], batches: VideoBatches) -> Tensor:
        """`(k, V, K)` float32 of a batch of k videos, from the uint8 views of those that are there, by their places.

        The others are zeros and their logits mean nothing: all forward passes have one shape, as in the evaluation.
        """
        size, shape = batches.clips_per_forward, next(iter(videos.values())).shape
        num_clips = batches.videos_per_batch * self.num_views
        clips = torch.zeros((-(-num_clips // size) * size, *shape[1:]), dtype=torch.uint8)
        for place, views in videos.items():
            clips[place * self.num_views : (place + 1) * self.num_views] = views
        amp_dtype = build.eval_amp_dtype(self._cfg)
        rows = []
        for part in clips.split(size):
            with torch.autocast(self.loaded.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                rows.append(self.loaded.model(self._prepare(part)).float().cpu())
        return torch.cat(rows)[:num_clips].unflatten(0, (-1, self.num_views))


@dataclass(frozen=True)
class _Shown:
    """What the model is shown of a source: uint8 (V, T, C, H, W), and its damage; or None, and why."""

    views: Tensor | None
    reason: str = ""


def _show(data: EvalClips, video: VideoReader) -> _Shown:
    views, words = data.views(video), "; ".join(dict.fromkeys(video.warnings))
    if video.num_bad_frames:
        raise VideoError(video.path, video.backend, words)
    return _Shown(views, words)
