"""The pytorchvideo reader: `EncodedVideoPyAV.get_clip`, which decodes every frame of a time span to float. To compare.

pytorchvideo addresses frames by seconds and tells no times with them, so the frames of a span are recognised by
counting: a span that does not come back complete is a `VideoError`. Importing it sets decord's "bridge" to torch.
"""

import importlib
import io
from contextlib import ExitStack
from types import ModuleType

import av
import numpy as np

from revvideo.data.readers.library_reader import LibraryReader, one_line
from revvideo.data.readers.pyav import quarter_turns
from revvideo.errors import InputError

SPAN_FRAMES = 128  # decoded at once: as float32 256 x 340 pixels that is 134 MB


class PyTorchVideoReader(LibraryReader):
    """`VideoReader` over pytorchvideo's PyAV path. The display rotation, which the library ignores, is applied here.

    Known misreads (pytorchvideo 0.1.5 with PyAV 18, measured on 57 odd and real clips):
        MPEG-TS, raw H.264, MPEG-4 with B-frames in AVI: refused, since not all frames of a span come back.
        Several video streams: it takes the first one, not the largest; refused where their pictures differ in size.
        A stream that changes its picture size: refused.
        Decoding errors are swallowed: the frames are missing, so the span is refused.
    """

    backend = "pytorchvideo"

    def _import_library(self) -> ModuleType:
        try:
            return importlib.import_module("pytorchvideo.data.encoded_video_pyav")
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(
                "the video decoding backend 'pytorchvideo' cannot be imported (pip install pytorchvideo); choose "
                f"another DATA.DECODING_BACKEND. The reason: {one_line(error)}"
            ) from error

    def _open(self) -> int:
        self._resources = ExitStack()
        file = self._resources.enter_context(io.FileIO(self.local_path))
        self._video = self._library.EncodedVideoPyAV(file, self.path, decode_audio=False)
        self._resources.callback(self._video.close)
        self._turns = self._first_stream_turns()
        return self.num_frames  # it has no count of its own

    def _first_stream_turns(self) -> int:
        """Quarter turns counter-clockwise of the stream that pytorchvideo takes."""
        with av.open(f"file:{self.local_path}") as container:
            for frame in container.decode(video=0):
                return quarter_turns(frame.rotation)
        return 0

    def _decode(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        spans: list[list[int]] = []
        for index in indices.tolist():
            if spans and index - spans[-1][0] < SPAN_FRAMES:
                spans[-1].append(index)
            else:
                spans.append([index])
        return np.concatenate([self._decode_span(span) for span in spans]), None

    def _decode_span(self, wanted: list[int]) -> np.ndarray:
        """uint8 (len(wanted), H, W, 3) of ascending indices, by one clip that holds them all."""
        first, last = wanted[0], wanted[-1]
        # Half a tick early and late at most, so that rounding decides nothing; time 0 is the first frame.
        margin = min(1e-4, self._time_tolerance)
        begin, end = self.pts[first] - self.pts[0] - margin, self.pts[last] - self.pts[0] + margin
        clip = self._video.get_clip(begin, end)["video"]  # (3, T, H, W) float32, 0..255
        if clip is None or clip.shape[1] != last - first + 1:
            found = 0 if clip is None else clip.shape[1]
            raise self._error(f"pytorchvideo gives {found} frames where {last - first + 1} are (frames {first}-{last})")
        frames = clip[:, [index - first for index in wanted]].byte().permute(1, 2, 3, 0).numpy()  # (T, H, W, 3)
        return np.ascontiguousarray(np.rot90(frames, self._turns, axes=(1, 2)))

    def _release(self) -> None:
        self._resources.close()
