"""Long videos: windows that slide over them, each predicted like a video of its own, with its times."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from revvideo.data.video_reader import VideoError, VideoReader
from revvideo.errors import InputError
from revvideo.predict.open_videos import VideoPart
from revvideo.predict.predictor import Prediction, Predictor

LONG_SECONDS = 30.0  # a video longer than that holds more than one thing
WINDOW_SECONDS = 10.0  # the length of Kinetics' videos
MAX_OVERLAP = 100  # windows that hold the same frame
_SLACK_SECONDS = 1e-4  # time stamps are rounded to the ticks of their file


def window_frames(
    pts: np.ndarray, duration_seconds: float, window_seconds: float, step_seconds: float
) -> list[tuple[float, float, int, int]]:
    """The windows of a video, so that every frame is in at least one where the step is no longer than a window.

    Windows start every `step_seconds` from the first frame on; a last one that ends with the video covers what they
    leave. A video that is not longer than a window is one window. Windows without a frame (a gap of a variable frame
    rate) are left out.

    Args:
        pts: float64 (num_frames,), seconds, rising, as `VideoReader.pts`.
        duration_seconds: from the first frame's time to the end of the last frame.

    Returns:
        (start, end) in seconds from the first frame's time, and the first and last frame, both of the window.
    """
    times = pts - pts[0]
    last_start = max(0.0, duration_seconds - window_seconds)
    # Only where there are frames: the duration that a broken file claims may be years.
    per_frame = np.arange(math.ceil(window_seconds / step_seconds) + 1)
    numbers = np.unique(np.floor((times + _SLACK_SECONDS) / step_seconds)[:, None] - per_frame)
    starts = [float(number) * step_seconds for number in numbers if number >= 0]
    starts = [start for start in starts if start <= last_start + _SLACK_SECONDS]
    if not starts or starts[-1] < last_start - _SLACK_SECONDS:
        starts.append(last_start)
    found = []
    for start in starts:
        end = min(start + window_seconds, duration_seconds)
        first, beyond = (int(np.searchsorted(times, edge - _SLACK_SECONDS)) for edge in (start, end))
        if beyond > first:
            found.append((start, end, first, beyond - 1))
    return found


def predict_windows(
    predictor: Predictor,
    video: VideoReader,
    *,
    window_seconds: float = WINDOW_SECONDS,
    step_seconds: float | None = None,
) -> Iterator[Prediction]:
    """Predict each window of an open video.

    Args:
        predictor: its views are taken in each window.
        video: an open video, see `Predictor.open`.
        window_seconds: length of a window.
        step_seconds: from the start of one to that of the next; None: half a window.

    Yields:
        one prediction a window, with its times, in order; one that cannot be decoded has an `error`.

    Raises:
        InputError: a window shorter than the clip of the model, or a step that is far shorter.
    """
    step_seconds = window_seconds / 2 if step_seconds is None else step_seconds
    if not predictor.clip_seconds <= window_seconds < float("inf") or not window_seconds:
        raise InputError(
            f"the window is {window_seconds:g} s; expected at least the clip of the model, "
            f"{predictor.clip_seconds:.2f} s"
        )
    if not window_seconds / MAX_OVERLAP <= step_seconds < float("inf"):
        raise InputError(
            f"the step of the windows is {step_seconds:g} s; expected at least {window_seconds / MAX_OVERLAP:g} s, a "
            f"{MAX_OVERLAP}th of the window"
        )
    for start, end, first, last in window_frames(video.pts, video.duration_seconds, window_seconds, step_seconds):
        try:
            found = predictor.predict_video(VideoPart(video, first, last))
        except VideoError as error:
            found = Prediction.failed(video.path, error.reason)
        yield dataclasses.replace(found, start_seconds=start, end_seconds=end)


def whole_video(windows: Sequence[Prediction]) -> Prediction:
    """One prediction for the video: the mean over its windows, of those without an error; else the first error.

    Args:
        windows: all windows of one video, at least one.
    """
    good = [window for window in windows if window.error is None]
    if not good:
        return dataclasses.replace(windows[0], start_seconds=None, end_seconds=None)
    means = {
        name: np.mean([getattr(window, name) for window in good], axis=0, dtype=np.float32)
        for name in ("scores", "probabilities")
    }
    return dataclasses.replace(good[0], **means, start_seconds=None, end_seconds=None)
