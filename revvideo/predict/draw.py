"""A video with what was predicted written on it."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from revvideo.data.video_reader import VideoReader
from revvideo.errors import InputError
from revvideo.paths import replace_file
from revvideo.predict.predictor import Prediction

SMALLEST_SIDE = 256  # pixels of the short side: text on less cannot be read
_LINES_PER_HEIGHT = 20  # lines of text that a frame would hold
_DARK = 0.35  # of the frame's light under the text
_MAX_BYTES = 2**26  # of frames in memory
_TIME_BASE = Fraction(1, 90_000)

Drawing = Callable[[np.ndarray], np.ndarray]


def save_labelled_video(
    video: VideoReader, target: str | Path, predictions: Sequence[Prediction], top: int = 5
) -> None:
    """Write the video as H.264 (mp4), without sound, with the highest classes on each frame.

    A frame shows the window whose middle is nearest to its time. Times stay; a small video is enlarged so that the text
    can be read.

    Args:
        video: an open video; best not a strict one, since all of its frames are decoded.
        target: file to write, which appears when it is complete.
        predictions: of the whole video, or of its windows.
        top: classes to show.

    Raises:
        VideoError: the video cannot be read.
        InputError: the file cannot be written.
    """
    size = _even_size(video.height, video.width)
    middles = np.array([_middle(each) for each in predictions])
    drawings = [label_drawing(_lines(each, top), size) for each in predictions]

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(video.fps).limit_denominator(100_000))
            stream.height, stream.width = size
            stream.pix_fmt, stream.codec_context.time_base = "yuv420p", _TIME_BASE
            last = -1
            for seconds, frame in _timed_frames(video, size):
                drawn = drawings[int(np.abs(middles - seconds).argmin())](frame)
                picture = av.VideoFrame.from_ndarray(drawn, format="rgb24")
                last = max(last + 1, round(seconds / _TIME_BASE))  # equal times (broken files) are no times for mp4
                picture.pts, picture.time_base = last, _TIME_BASE
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, write)
    except OSError as error:  # FFmpeg's are among them
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error


def label_drawing(lines: Sequence[str], size: tuple[int, int]) -> Drawing:
    """A function that writes lines of text, white on a darkened corner, on uint8 (H, W, 3) frames of one size.

    Args:
        lines: of text; what is wider than the frame is cut off.
        size: (height, width) of the frames in pixels.

    Returns:
        frame -> a copy with the text.
    """
    height, width = size
    font = ImageFont.load_default(size=max(10, height // _LINES_PER_HEIGHT))
    margin = max(2, height // 80)
    canvas = ImageDraw.Draw(Image.new("L", (1, 1)))
    text = "\n".join(lines)
    _, _, right, bottom = canvas.multiline_textbbox((margin, margin), text, font=font, spacing=margin)
    box_width, box_height = min(width, int(right) + margin), min(height, int(bottom) + margin)
    picture = Image.new("L", (box_width, box_height))
    ImageDraw.Draw(picture).multiline_text((margin, margin), text, fill=255, font=font, spacing=margin)
    light = np.asarray(picture, np.float32)[..., None]  # (h, w, 1)
    under = _DARK * (1 - light / 255)

    def draw(frame: np.ndarray) -> np.ndarray:
        drawn = frame.copy()
        corner = drawn[:box_height, :box_width]
        corner[:] = (corner * under + light).astype(np.uint8)
        return drawn

    return draw


def _lines(prediction: Prediction, top: int) -> list[str]:
    if prediction.error is not None:
        return [f"not predicted: {prediction.error}"]
    lines = [f"{100 * probability:5.1f} %  {name}" for _, name, probability in prediction.top(top)]
    if prediction.start_seconds is None or prediction.end_seconds is None:
        return lines
    return [f"{clock(prediction.start_seconds)} - {clock(prediction.end_seconds)}", *lines]


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS.s, without the hours where there are none."""
    tenths = round(10 * seconds)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{tenths // 10:02d}.{tenths % 10}"


def _middle(prediction: Prediction) -> float:
    return ((prediction.start_seconds or 0.0) + (prediction.end_seconds or 0.0)) / 2


def _even_size(height: int, width: int) -> tuple[int, int]:
    scale = max(1.0, SMALLEST_SIDE / min(height, width))
    return 2 * round(scale * height / 2), 2 * round(scale * width / 2)


def _timed_frames(video: VideoReader, size: tuple[int, int]) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds from the first frame's time, frame of `size`) of all frames, few in memory at a time."""
    at_once = max(1, _MAX_BYTES // (3 * size[0] * size[1]))
    for first in range(0, video.num_frames, at_once):
        numbers = range(first, min(first + at_once, video.num_frames))
        for number, frame in zip(numbers, video.frames(numbers, size)):
            yield float(video.pts[number] - video.pts[0]), frame
