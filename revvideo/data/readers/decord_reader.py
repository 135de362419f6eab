"""The decord reader: `get_batch` with one decoding thread.

decord hands out arrays of whatever library its "bridge" is set to, and `import pytorchvideo` sets the bridge of the
whole process to torch. The arrays are turned into numpy's whatever they are, and the bridge is left alone.
"""

import importlib
from types import ModuleType

import numpy as np

from revvideo.data.readers.library_reader import LibraryReader, one_line
from revvideo.errors import InputError


class DecordReader(LibraryReader):
    """`VideoReader` over decord.

    Known misreads (decord 0.6, measured on 57 odd and real clips):
        AV1, MPEG-TS and raw H.264: refused.
        Frames that an edit list hides are counted, so that the others are off by as many where the cut is not at a key
        frame; seen by the count, so `strict` refuses.
        Open GOPs: frames off by up to three, in silence.
        H.264 without key frames (intra refresh): frames off by up to nine, in silence.
        MPEG-4 with B-frames in AVI: frames off, and times without sense, so `strict` refuses even where they are right.
        A stream that changes its picture size in MPEG-TS: garbage; seen by the times.
    """

    backend = "decord"

    def _import_library(self) -> ModuleType:
        try:
            return importlib.import_module("decord")
        except (ImportError, OSError, RuntimeError) as error:  # the last two: its shared library does not load
            raise InputError(
                "the video decoding backend 'decord' cannot be imported (pip install decord; there are wheels for "
                f"Linux on x86-64 only); choose another DATA.DECODING_BACKEND. The reason: {one_line(error)}"
            ) from error

    def _open(self) -> int:
        self._decoder = self._library.VideoReader(
            self.local_path,
            num_threads=1,
            fault_tol=1e-4 if self.strict else -1,  # the share of frames that may silently repeat a neighbour; -1: any
        )
        return len(self._decoder)

    def _decode(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        batch = self._decoder.get_batch(indices.tolist())
        images = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
        seconds = self._decoder.get_frame_timestamp([0, *indices.tolist()])[:, 0].astype(np.float64)
        return images, seconds[1:] - seconds[0] + self.pts[0]  # decord's times start at 0 whatever the file says

    def _release(self) -> None:
        self._decoder = None
