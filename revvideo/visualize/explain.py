"""Grad-CAM of video and picture files: the evaluator's clips in, a clip file and a contact sheet out."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from revvideo import build
from revvideo.data.dataset import EvalClips
from revvideo.data.lists.class_names import plain_name
from revvideo.data.manifest import Manifest
from revvideo.engine.metrics import VideoScores
from revvideo.errors import InputError
from revvideo.paths import replace_file
from revvideo.predict.model_source import LoadedModel
from revvideo.predict.read_views import open_source, read_views
from revvideo.predict.sources import Source
from revvideo.visualize.contact_sheet import contact_sheet
from revvideo.visualize.grad_cam import grad_cam
from revvideo.visualize.overlay import overlay, relative_heat, write_clip


@dataclass(frozen=True)
class Explained:
    """The maps of one video or picture for one class.

    Attributes:
        path: of the file.
        frames: uint8 `(V, T, H, W, 3)`, RGB: what the model was shown, view by view; one frame of a picture.
        heat: float32 `(V, T, H, W)`, 0 to 1: the maps over the highest value of all views.
        seconds: float64 `(V, T)`, time of each frame since the first one of the video; None for a picture.
        label: number of the class.
        class_name: its name.
        probability: of the class, over the views together as in evaluation.
        block: name of the block.
    """

    path: str
    frames: np.ndarray
    heat: np.ndarray
    seconds: np.ndarray | None
    label: int
    class_name: str
    probability: float
    block: str

    @property
    def title(self) -> str:
        """File, class, probability and block in one line."""
        name = os.path.basename(self.path)
        return f"{name}   {self.class_name}  {100 * self.probability:.1f} %   block {self.block}"


class Explainer:
    """A model that shows where in files it finds the evidence for a class.

    Args:
        loaded: the model.
        views: temporal views; 1: the clip in the middle of the video. A picture has one. More views are the
            evaluator's, with the centre crop.
        block: see `choose_block`.

    Raises:
        InputError: no such block, or less than one view.
    """

    def __init__(self, loaded: LoadedModel, *, views: int = 1, block: int | str | None = None):
        if views < 1:
            raise InputError(f"{views} views are asked for; expected at least 1 (--views)")
        self.loaded, self.block = loaded, block
        cfg = loaded.cfg.clone()
        cfg.defrost()
        cfg.TEST.NUM_SPATIAL_CROPS = 1
        cfg.freeze()
        kind = "image" if loaded.is_image else "video"
        num_views = 1 if loaded.is_image else views
        self._cfg = cfg
        self._data = build.build_test_dataset(cfg, num_views, Manifest((), (), "visualize", kind=kind))
        if num_views == 1 and isinstance(self._data, EvalClips):
            self._data.centre = True
        self._prepare = build.build_eval_input(cfg, loaded.device)

    def class_number(self, target: str) -> int:
        """The number of a class by its number or name; case, quotes and underscores make no difference.

        Raises:
            InputError: there is no such class, or several of the name.
        """
        count = getattr(self.loaded.model, "num_classes", None)
        if target.isdecimal():
            if count is not None and int(target) >= count:
                raise InputError(f"class {target} is asked for; the model has the classes 0 to {count - 1} (--target)")
            return int(target)
        wanted = plain_name(target).casefold()
        found = [i for i, name in enumerate(self.loaded.class_names) if plain_name(name).casefold() == wanted]
        if len(found) == 1:
            return found[0]
        if not self.loaded.class_names:
            raise InputError(f"class {target!r} is asked for, but no names are known; give --classes, or a number")
        raise InputError(f"{len(found)} classes are called {target!r}; expected one (--target)")

    def __call__(self, source: Source, label: int | None = None) -> Explained:
        """Explain one file.

        Args:
            source: a file, a folder of frames or an array, see `find_sources`.
            label: the class; None: the one that the model gives the views together.

        Raises:
            VideoError: it cannot be read.
        """
        views, seconds = self._views(source)  # uint8 (V, T, C, H, W)
        scores = self._scores(views, source.path)
        chosen = int(scores.argmax()) if label is None else label
        maps = []
        for view in views:  # one at a time: a graph takes the memory of training
            cam = grad_cam(self.loaded.model, self._prepare(view[None]), chosen, block=self.block)
            maps.append(cam.upsample()[0].cpu().numpy())
        frames = views.permute(0, 1, 3, 4, 2).contiguous().numpy()
        return Explained(
            source.path,
            frames,
            relative_heat(np.stack(maps)),
            seconds,
            chosen,
            self.loaded.class_name(chosen),
            float(scores[chosen]),
            cam.block,
        )

    def _views(self, source: Source) -> tuple[torch.Tensor, np.ndarray | None]:
        data, fps = self._data, self._cfg.DATA.TARGET_FPS
        if not isinstance(data, EvalClips):
            return read_views(data, source, fps), None
        with open_source(data, source, fps) as video:
            indices = np.stack([data.view_indices(video, view) for view in range(data.num_views)])
            return data.views(video), video.pts[indices] - video.pts[0]

    @torch.inference_mode()
    def _scores(self, views: torch.Tensor, path: str) -> np.ndarray:
        """float32 (K,): mean of the views' probabilities."""
        together = VideoScores(len(views), method="mean", activation=self._cfg.MODEL.HEAD_ACT)
        for number, view in enumerate(views):
            logits = self.loaded.model(self._prepare(view[None])).float().cpu()
            together.add(0, [number], logits, label=0, path=path)
        return together.arrays()["scores"][0]


def write_explained(explained: Explained, folder: Path, name: str) -> list[Path]:
    """Write NAME.png, the contact sheet, and of a video NAME.mp4, its views one after the other under their maps.

    Args:
        explained: what is shown.
        folder: where to; made if it is missing.
        name: of the files, without suffix.

    Returns:
        the files.

    Raises:
        InputError: a file cannot be written.
    """
    overlays = [overlay(frames, heat) for frames, heat in zip(explained.frames, explained.heat)]
    seconds = [None] * len(overlays) if explained.seconds is None else list(explained.seconds)
    sheet = contact_sheet(explained.title, list(explained.frames), overlays, seconds)
    written = [folder / f"{name}.png"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(written[0], lambda path: sheet.save(path, format="PNG"))
        if explained.seconds is not None:
            written.append(folder / f"{name}.mp4")
            write_clip(written[1], np.concatenate(overlays), frames_per_second(explained.seconds))
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return written


def frames_per_second(seconds: Sequence[np.ndarray] | np.ndarray) -> float:
    """The rate at which clips show the speed of their video: 1 over the usual time between two of their frames.

    Args:
        seconds: of each view the times of its frames; times that repeat (a video shorter than the clip) do not count.
    """
    gaps = np.diff(np.stack(list(seconds)), axis=1)
    gaps = gaps[gaps > 0]
    return float(1.0 / np.median(gaps)) if gaps.size else 1.0
