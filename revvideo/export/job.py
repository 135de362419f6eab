"""The export: trace once, write each file, run it on real clips, and keep it only if its logits are the model's."""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from revvideo import build
from revvideo.data.video_reader import VideoError
from revvideo.errors import CheckFailed, InputError
from revvideo.export.contract import describe
from revvideo.export.formats import format_of
from revvideo.export.parity import Parity, batches, compare, logits
from revvideo.export.program import trace
from revvideo.predict.model_source import LoadedModel
from revvideo.predict.predictor import Predictor
from revvideo.predict.sources import find_sources

logger = logging.getLogger(__name__)

VIEWS = 2  # of each video: two clips, from its start and its end


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written and has passed the check.

    Attributes:
        path: where it lies.
        format: "torch.export" or "ONNX".
        num_bytes: its size.
        batch_size: that it is bound to; None: it takes any.
        parity: how far its logits are from the model's.
    """

    path: Path
    format: str
    num_bytes: int
    batch_size: int | None
    parity: Parity


def export_model(
    loaded: LoadedModel, files: Sequence[Path], videos: Sequence[object], *, batch_size: int | None = None
) -> Iterator[ExportedFile]:
    """Write a model to files that run without revvideo, each checked against the model in float32 on real clips.

    Args:
        loaded: the model, on the CPU.
        files: to write, .pt2 (torch.export) or .onnx; each appears under its name when it has passed the check.
        videos: to check with: files, folders, arrays (an image model: pictures), see `Predictor`. Two clips of each,
            with the evaluator's frames and crop. Those that cannot be read are left out, and logged.
        batch_size: clips that the files take at a time; None: any number, where the model allows it.

    Yields:
        what was written, one after the other.

    Raises:
        InputError: a suffix without a format, a missing package, no video that can be read, or a model that cannot be
            exported: it calls operators that are not supported (they are named).
        CheckFailed: the logits differ by more than `parity.LIMIT` x the largest one; nothing is left of that file.
    """
    formats = [format_of(file) for file in files]
    if loaded.device.type != "cpu":
        raise InputError(f"the model is on {loaded.device}; export takes it on the CPU (device='cpu')")
    clips = read_clips(loaded, videos)
    program, bound = trace(loaded.model, clips.shape[1:], batch_size=batch_size)
    parts = batches(len(clips), bound)
    with torch.no_grad():
        expected = logits(loaded.model, clips, parts, bound)
    contract = describe(loaded, clips[0], num_classes=expected.shape[1], batch_size=bound)
    for file, form in zip(files, formats, strict=True):
        with _workplace(file) as part:
            form.write(program, contract, part)
            parity = compare(logits(form.open(part).run, clips, parts, bound), expected)
            if not parity.holds:
                raise CheckFailed(f"{file} would not give the model's logits, so it was not written: {parity}")
            os.replace(part, file)
        yield ExportedFile(file, form.name, file.stat().st_size, bound, parity)


def read_clips(loaded: LoadedModel, videos: Sequence[object]) -> Tensor:
    """Normalised clips of videos (pictures for an image model) as the evaluator feeds them to the model.

    Returns:
        float32 `(N, C, T, H, W)`, or `(N, C, H, W)` of pictures.

    Raises:
        InputError: none can be read.
    """
    predictor = Predictor(loaded, views=(VIEWS, 1))
    prepare = build.build_eval_input(loaded.cfg, torch.device("cpu"))
    found, reasons = [], []
    for source in find_sources(videos, images=loaded.is_image):
        try:
            found.append(prepare(predictor.views(source)))  # (V, C, T, H, W)
        except VideoError as error:
            reasons.append(f"{source.path}: {error.reason}")
            logger.warning("left out of the check: %s", reasons[-1])
    if not found:
        raise InputError(f"none of the {len(reasons)} videos to check with can be read: {'; '.join(reasons)}")
    clips = torch.cat(found)
    takes_pictures = getattr(loaded.model, "input_spec", loaded.input_spec).image
    return clips.squeeze(2) if takes_pictures else clips


@contextmanager
def _workplace(file: Path) -> Iterator[Path]:
    """A path of the same name in a folder beside `file` that is gone afterwards: nothing half written is ever seen."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error}") from error
    with folder as name:
        yield Path(name) / file.name
