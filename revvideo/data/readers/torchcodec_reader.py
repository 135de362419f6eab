"""The torchcodec reader: `VideoDecoder` in its exact mode, one FFmpeg thread.

torchcodec loads FFmpeg's shared libraries of the system; where there are none, or of a version that it does not know,
its import fails and the backend is refused.
"""

import importlib
from types import ModuleType

import numpy as np

from revvideo.data.readers.library_reader import LibraryReader, one_line
from revvideo.errors import InputError


class TorchcodecReader(LibraryReader):
    """`VideoReader` over torchcodec.

    Known misreads (torchcodec 0.17 with FFmpeg 5.1, measured on 57 odd and real clips):
        MPEG-TS and raw H.264: refused.
        MPEG-4 with B-frames in AVI: most frames off by one or two; seen by their times, so `strict` refuses.
        H.264 without key frames (intra refresh): single frames wrong; seen by their times, so `strict` refuses.
        A stream that changes its picture size: refused when frames of both sizes are wanted at once.
    """

    backend = "torchcodec"

    def _import_library(self) -> ModuleType:
        try:
            return importlib.import_module("torchcodec.decoders")
        except (ImportError, RuntimeError, OSError) as error:  # the last two: FFmpeg's libraries do not load
            raise InputError(
                "the video decoding backend 'torchcodec' cannot be imported; it needs the extra "
                "(pip install 'revvideo[torchcodec]') and FFmpeg's shared libraries on the system; choose another "
                f"DATA.DECODING_BACKEND if they cannot be had. The reason: {one_line(error)}"
            ) from error

    def _open(self) -> int:
        self._decoder = self._library.VideoDecoder(
            self.local_path,
            stream_index=self._stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
        )
        return len(self._decoder)

    def _decode(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        batch = self._decoder.get_frames_at(indices.tolist())
        return batch.data.numpy(), batch.pts_seconds.numpy()

    def _release(self) -> None:
        self._decoder = None
