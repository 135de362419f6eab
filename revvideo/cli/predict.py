"""`revvideo predict`: what a trained model sees in videos or pictures."""

import argparse
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from revvideo.cli.argument_types import positive, views
from revvideo.cli.model_arguments import add_model_arguments, model_from_arguments

if TYPE_CHECKING:
    from revvideo.predict.predictor import Prediction, Predictor
    from revvideo.predict.sources import Source

DESCRIPTION = "Predict the classes of videos or pictures with a trained model."

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="file, folder of files, or folder of frames")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="classes to name (5)")
    parser.add_argument(
        "--views", type=views, default=(5, 1), metavar="VxC", help="temporal views x crops, 1 or 3 (5x1)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line and video")
    parser.add_argument(
        "--save-video",
        metavar="OUT.mp4",
        help="write the video with its labels; of several videos OUT is a folder",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit code 3 if a video is damaged or cannot be predicted"
    )
    windows = parser.add_argument_group("long videos")
    windows.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="predict windows of that length (10, where a video is longer than 30); 0: the whole video at once",
    )
    windows.add_argument("--step", type=float, metavar="SECONDS", help="from window to window (half a window)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from revvideo.errors import CheckFailed, InputError
    from revvideo.predict.predictor import Predictor
    from revvideo.predict.sources import find_sources

    predictor = Predictor(model_from_arguments(args), views=args.views, strict=args.strict)
    sources = find_sources(args.videos, images=predictor.loaded.is_image)
    targets = _targets(args, sources, images=predictor.loaded.is_image)
    num_failed = 0
    for source, target in zip(sources, targets):
        whole, windows = _predict(args, predictor, source, target)
        num_failed += whole.error is not None
        print(_json(whole, windows, args.top) if args.json else _text(whole, windows, args.top), end="", flush=True)
    if not num_failed:
        return 0
    summary = f"{num_failed} of {len(sources)} could not be predicted"
    if args.strict:
        raise CheckFailed(summary)
    if num_failed == len(sources):
        raise InputError(f"{summary}; see the reasons above")
    logger.warning(summary)
    return 0


def _targets(args: argparse.Namespace, sources: list["Source"], *, images: bool) -> list[Path | None]:
    """Where the labelled video of each source goes; two of one name are numbered."""
    from revvideo.errors import InputError

    if not args.save_video:
        return [None] * len(sources)
    if images:
        raise InputError("--save-video is for videos, but the model takes pictures")
    out = Path(args.save_video)
    if len(sources) == 1 and not sources[0].in_folder and not out.is_dir():
        if out.suffix.lower() != ".mp4":
            raise InputError(f"--save-video is {args.save_video!r}; expected a file with the suffix .mp4")
        targets = [out]
    else:
        if out.is_file() or (out.suffix and not out.is_dir()):
            raise InputError(f"--save-video is {args.save_video!r}; of several videos expected a folder")
        targets = []
        for source in sources:
            stem = Path(source.path).stem
            names = (stem, *(f"{stem}_{number}" for number in range(len(targets), 2 * len(targets) + 1)))
            targets.append(next(path for name in names if (path := out / f"{name}.mp4") not in targets))
    originals = {os.path.realpath(source.path): source.path for source in sources}
    for target in targets:
        if (original := originals.get(os.path.realpath(target))) is not None:
            raise InputError(f"--save-video would write over {original}; choose another name")
    return targets


def _predict(
    args: argparse.Namespace, predictor: "Predictor", source: "Source", target: Path | None
) -> tuple["Prediction", list["Prediction"]]:
    """The prediction of one source, and those of its windows, if it is long; a labelled video goes to `target`."""
    from revvideo.data.video_reader import VideoError
    from revvideo.predict.predictor import Prediction
    from revvideo.predict.sliding import predict_windows, whole_video

    windows: list[Prediction] = []
    try:
        if predictor.loaded.is_image:
            return predictor.predict_one(source), windows
        with predictor.open(source) as video:
            seconds = _window_seconds(args.window, video.duration_seconds)
            if seconds:
                windows = list(predict_windows(predictor, video, window_seconds=seconds, step_seconds=args.step))
            bad = next((window.error for window in windows if window.error is not None), None)
            if args.strict and bad is not None:
                return Prediction.failed(source.path, bad), []
            whole = whole_video(windows) if windows else predictor.predict_video(video)
        if target is not None and whole.error is None:
            _save(predictor, source, target, windows or [whole], args.top)
        return whole, windows
    except VideoError as error:
        return Prediction.failed(source.path, error.reason), []


def _window_seconds(wanted: float | None, duration_seconds: float) -> float:
    """The length of the windows; 0: none."""
    from revvideo.predict.sliding import LONG_SECONDS, WINDOW_SECONDS

    if wanted is None:
        return WINDOW_SECONDS if duration_seconds > LONG_SECONDS else 0.0
    return wanted if wanted < 0 or duration_seconds > wanted else 0.0


def _save(predictor: "Predictor", source: "Source", target: Path, predictions: list["Prediction"], top: int) -> None:
    from revvideo.predict.draw import save_labelled_video

    with predictor.open(source, strict=False) as video:  # frames that no view shows may be damaged
        save_labelled_video(video, target, predictions, top)
    logger.info("%s: written", target)


# What is printed


def _text(whole: "Prediction", windows: list["Prediction"], top: int) -> str:
    from revvideo.predict.draw import clock

    if whole.error is not None:
        return f"{whole.path}: not predicted: {whole.error}\n"
    span = ""
    if windows:
        span = f" ({clock(windows[-1].end_seconds)}, mean of {len(windows)} window{'s' * (len(windows) > 1)})"
    lines = [f"{whole.path}{span}"]
    if whole.damage is not None:
        lines.append(f"  damaged, but not in the frames that the model has seen: {whole.damage}")
    lines += [f"  {100 * p:5.1f} %  {name}" for _, name, p in whole.top(top)]
    for window in windows:
        times = f"{clock(window.start_seconds)} - {clock(window.end_seconds)}"
        lines.append(f"  {times:>21}  {_one_line(window)}")
    return "\n".join(lines) + "\n"


def _one_line(window: "Prediction") -> str:
    if window.error is not None:
        return f"not predicted: {window.error}"
    return ", ".join(f"{name} {100 * probability:.1f} %" for _, name, probability in window.top(2))


def _json(whole: "Prediction", windows: list["Prediction"], top: int) -> str:
    content = {"path": whole.path, **_found(whole, top)}
    if windows:
        content["windows"] = [
            {"start_seconds": round(window.start_seconds, 3), "end_seconds": round(window.end_seconds, 3)}
            | _found(window, top)
            for window in windows
        ]
    return json.dumps(content, ensure_ascii=False) + "\n"


def _found(prediction: "Prediction", top: int) -> dict:
    found = [] if prediction.error is not None else prediction.top(top)
    classes = [{"label": label, "name": name, "score": round(score, 6)} for label, name, score in found]
    return {"error": prediction.error, "damage": prediction.damage, "classes": classes}
