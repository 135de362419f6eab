"""Features of whole lists of videos or pictures, as the evaluation reads them: what to compute, and the loop.

A run that was killed goes on where it was. The videos go through the model in the batches of `VideoBatches`, so what
comes of a list has the same bits after any number of kills.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from revvideo import build
from revvideo.build.data import clips_per_forward
from revvideo.data.manifest import Manifest
from revvideo.engine.progress import Progress
from revvideo.engine.video_batches import VideoBatches
from revvideo.errors import CheckFailed, InputError
from revvideo.jobs.evaluation_identity import evaluation_identity
from revvideo.predict.model_source import LoadedModel
from revvideo.visualize.block_output import block_names, choose_block, run_to_block
from revvideo.visualize.feature_files import FeatureFolder

logger = logging.getLogger(__name__)

KINDS = ("pooled", "tokens")
# Where lists and videos lie: the features of a video do not depend on it.
_PLACES = ("DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX", "LOADER.VIDEO_FOLDER", "LOADER.CLASS_FILE")


@dataclass(frozen=True)
class FeatureSpec:
    """Which features.

    Attributes:
        kind: "pooled": one vector a view: what the head reads or, with `block`, the mean over its cells. "tokens": the
            volume of cells of a block, `(T', H', W', C')`.
        block: see `choose_block`; None: the head's features, or the tokens of the last block.
        views, crops: temporal views and spatial crops of a video (1 or 3); a picture has one of each.
        half: store float16 instead of float32.

    Raises:
        InputError: another kind, or less than one view.
    """

    kind: str = "pooled"
    block: int | str | None = None
    views: int = 1
    crops: int = 1
    half: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"--kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self.views < 1:
            raise InputError(f"{self.views} views are asked for; expected at least 1 (--views)")


class FeatureExtractor:
    """A model that gives features instead of scores.

    Args:
        loaded: the model.
        spec: which features.

    Attributes:
        block: name of the block; "" for what the head reads.
        num_views: temporal views x spatial crops.

    Raises:
        InputError: no such block, or a model that has no features of this kind.
    """

    def __init__(self, loaded: LoadedModel, spec: FeatureSpec):
        self.loaded, self.spec = loaded, spec
        self._temporal, self._crops = (1, 1) if loaded.is_image else (spec.views, spec.crops)
        self.num_views = self._temporal * self._crops
        wanted = spec.block
        if wanted is None and spec.kind == "tokens":
            wanted = (block_names(loaded.model) or [None])[-1]
        self.block = "" if wanted is None and spec.kind == "pooled" else choose_block(loaded.model, wanted)
        if not self.block and not hasattr(loaded.model, "forward_features"):
            raise InputError(f"the {type(loaded.model).__name__} has no forward_features; name a block (--block)")
        self.cfg = _with(loaded.cfg, {"TEST.NUM_SPATIAL_CROPS": self._crops})
        self._prepare = build.build_eval_input(self.cfg, loaded.device)

    def identity(self) -> dict[str, str]:
        """What decides the features: two runs with the same answer may share a folder."""
        cfg = _with(self.cfg, dict.fromkeys(_PLACES, "") | {"TEST.NUM_SPATIAL_CROPS": 1})
        nothing = Manifest((), (), "features")
        return {
            "model and input": evaluation_identity(cfg, self.loaded.model, nothing, 1, self.loaded.device),
            "views": f"{self._temporal}x{self._crops}",
            "kind": self.spec.kind,
            "block": self.block,
            "dtype": "float16" if self.spec.half else "float32",
        }

    def describe(self) -> dict[str, object]:
        """The protocol in words and numbers, for the folder."""
        spec = self.loaded.input_spec
        return {
            "checkpoint": self.loaded.checkpoint,
            "num_views": self._temporal,
            "num_crops": self._crops,
            "frames": spec.frames,
            "sampling_rate": spec.stride,
            "crop_pixels": self.cfg.DATA.TEST_CROP_SIZE,
            "class_names": list(self.loaded.class_names),
        }

    @torch.inference_mode()
    def features(self, clips: Tensor) -> np.ndarray:
        """Features of uint8 clips `(B, T, C, H, W)`: `(B, D)`, or `(B, T', H', W', C')` for tokens.

        Raises:
            CheckFailed: one is not finite (in float16: or too large for it).
        """
        amp_dtype, device = build.eval_amp_dtype(self.cfg), self.loaded.device
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            floats = self._prepare(clips)
            if not self.block:
                found = self.loaded.model.forward_features(floats)  # (B, D)
            else:
                volume = run_to_block(self.loaded.model, floats, self.block).volume()  # (B, C', T', H', W')
                tokens = self.spec.kind == "tokens"
                found = volume.permute(0, 2, 3, 4, 1) if tokens else volume.mean((2, 3, 4))
        found = found.to(torch.float16 if self.spec.half else torch.float32).cpu().contiguous()
        if not torch.isfinite(found).all():
            hint = "; float32 may hold them (without --half)" if self.spec.half else ""
            raise CheckFailed(f"the features of {self.block or 'the head'} are not finite{hint}")
        return found.numpy()

    def extract(self, manifest: Manifest, folder: FeatureFolder) -> None:
        """Features of all videos of a list that the folder does not hold yet, written video by video.

        Args:
            manifest: each path once.
            folder: takes features and failures.

        Raises:
            CheckFailed: see `features`.
            InputError: the folder cannot be written.
        """
        batches = VideoBatches(len(manifest), self.num_views, clips_per_forward(self.cfg))
        done = {i for i, path in enumerate(manifest.paths) if folder.has(path)}
        videos = batches.share(0, 1, done)
        if done:
            logger.info("%d of %d videos are in %s already", len(done), len(manifest), folder.path)
        if not videos:
            return
        loader = build.build_test_loader(self.cfg, self._temporal, manifest=manifest, videos=videos)
        period = max(10, len(videos) // 50)
        progress = Progress(len(videos), "extract_features", log_period=period, logger=logger)
        with progress, loader.failures_named():
            for items in _grouped(loader, batches):
                self._add_batch(items, batches, manifest, folder)
                progress.update(len(items))

    def _add_batch(self, items: list[dict], batches: VideoBatches, manifest: Manifest, folder: FeatureFolder) -> None:
        readable = [item for item in items if item["video"] is not None]
        found = dict(zip((item["index"] for item in readable), self._of_batch(readable, batches)))
        for item in items:
            path = manifest.paths[item["index"]]
            label = item["label"] if manifest.labelled else None
            if item["index"] in found:
                folder.add(path, label, found[item["index"]])
            else:
                logger.warning("%s: %s", path, item["error"])
                folder.add_failure(path, label, item["error"])

    def _of_batch(self, items: list[dict], batches: VideoBatches) -> list[np.ndarray]:
        """Features `(V, ...)` of each item; videos that are missing leave zeros, so that all passes have one shape."""
        if not items:
            return []
        size, num_clips = batches.clips_per_forward, batches.videos_per_batch * self.num_views
        shape = items[0]["video"].shape[1:]
        clips = torch.zeros((-(-num_clips // size) * size, *shape), dtype=torch.uint8)
        places = [item["index"] % batches.videos_per_batch * self.num_views for item in items]
        for place, item in zip(places, items):
            clips[place : place + self.num_views] = item["video"]
        found = np.concatenate([self.features(part) for part in clips.split(size)])
        return [found[place : place + self.num_views] for place in places]


def _grouped(loader, batches: VideoBatches) -> Iterator[list[dict]]:
    """The items of each batch together."""
    group: list[dict] = []
    for item in loader:
        if group and batches.batch_of(item["index"]) != batches.batch_of(group[0]["index"]):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _with(cfg: CfgNode, values: dict[str, object]) -> CfgNode:
    """A config with other values of some keys."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([word for pair in values.items() for word in pair])
    cfg.freeze()
    return cfg
