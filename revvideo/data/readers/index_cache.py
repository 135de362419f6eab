"""What the first opening of a video learnt about its packets, kept so that the next one need not read them again.

In memory for the life of a process (a worker that stays), or also in a folder for all processes and later runs. An
entry counts only as long as the file has the size and the modification time that it had. Nothing here may ever break
reading: a folder that is full, read-only or damaged makes the cache forget, no more.
"""

import hashlib
import json
import os
import struct
import zlib
from collections import OrderedDict
from pathlib import Path

import av
import numpy as np

from revvideo.data.readers.packet_index import PacketIndex

MAGIC = b"revvideo packets 2\n"
_ARRAYS = {"seconds": "<f8", "ticks": "<i8", "packet_ticks": "<i8", "key_ticks": "<i8"}

FileKey = tuple[str, int, int]


class IndexCache:
    """Packet indices by file. Pickles without its memory: a worker starts empty and finds the folder, if there is one.

    Args:
        folder: also keep each index in a small file here (made when the first one is written). None: memory only.
        max_bytes: what the memory may hold; the index that was not used for the longest time goes first.
    """

    def __init__(self, folder: str | None = None, max_bytes: int = 256 * 2**20):
        self.folder = folder
        self.max_bytes = max_bytes
        self._memory: OrderedDict[FileKey, PacketIndex] = OrderedDict()
        self._held_bytes = 0

    def get(self, local_path: str) -> PacketIndex | None:
        """The index of the file as it is now, or None."""
        key = file_key(local_path)
        if key is None:
            return None
        index = self._memory.get(key)
        if index is not None:
            self._memory.move_to_end(key)
        elif self.folder is not None:
            index = self._load(key)
            if index is not None:
                self._hold(key, index)
        return index

    def put(self, local_path: str, index: PacketIndex, opened: FileKey | None = None) -> None:
        """Keep the index of the file as it is now, in place of what was kept of it before.

        Args:
            local_path: the file.
            index: of its packets.
            opened: `file_key` of the file before it was opened: nothing is kept if another file has taken its place
                since, which the index does not describe.
        """
        key = file_key(local_path)
        if key is None or opened not in (None, key):
            return
        self._hold(key, index)
        if self.folder is not None:
            self._store(key, index)

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "max_bytes": self.max_bytes}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def _hold(self, key: FileKey, index: PacketIndex) -> None:
        before = self._memory.pop(key, None)
        self._held_bytes += index.num_bytes - (before.num_bytes if before is not None else 0)
        self._memory[key] = index
        while self._held_bytes > self.max_bytes:
            _, oldest = self._memory.popitem(last=False)
            self._held_bytes -= oldest.num_bytes

    def _file(self, key: FileKey) -> Path:
        return Path(self.folder) / f"{hashlib.sha256(os.fsencode(key[0])).hexdigest()[:32]}.packets"

    def _store(self, key: FileKey, index: PacketIndex) -> None:
        file = self._file(key)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")  # several workers may write the same index at once
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(_to_bytes(key, index))
                os.replace(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError:
            return  # a full or read-only disk costs the time that the cache would have saved

    def _load(self, key: FileKey) -> PacketIndex | None:
        try:
            return _from_bytes(key, self._file(key).read_bytes())
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None  # not there, of another version, or damaged: the video is scanned again


def file_key(local_path: str) -> FileKey | None:
    """What an entry belongs to: real path, bytes, time of change in nanoseconds. None where there is no file."""
    try:
        status = os.stat(local_path)
        return os.path.realpath(local_path), status.st_size, status.st_mtime_ns
    except OSError:
        return None


def _to_bytes(key: FileKey, index: PacketIndex) -> bytes:
    """MAGIC, checksum and length of the head, the head in json, the arrays one after the other."""
    arrays = {name: np.ascontiguousarray(getattr(index, name), kind) for name, kind in _ARRAYS.items()}
    head = {
        "key": list(key),
        "av": av.__version__,  # another FFmpeg may number hidden frames in another way
        "fps": index.fps,
        "seekable": index.seekable,
        "problems": index.problems,
        "geometry": index.geometry,
        "lengths": {name: len(array) for name, array in arrays.items()},
    }
    text = json.dumps(head).encode()
    body = text + b"".join(array.tobytes() for array in arrays.values())
    return MAGIC + struct.pack("<II", zlib.crc32(body), len(text)) + body


def _from_bytes(key: FileKey, content: bytes) -> PacketIndex:
    """
    Raises:
        ValueError, KeyError, TypeError, struct.error: not what `_to_bytes` wrote for this key.
    """
    start = len(MAGIC) + 8
    checksum, length = struct.unpack("<II", content[len(MAGIC) : start])
    if content[: len(MAGIC)] != MAGIC or zlib.crc32(content[start:]) != checksum:
        raise ValueError("not a packet index, or a damaged one")
    head = json.loads(content[start : start + length])
    if tuple(head["key"]) != key or head["av"] != av.__version__:
        raise ValueError("the index of another file, or of another version of PyAV")
    arrays, offset = {}, start + length
    for name, kind in _ARRAYS.items():
        arrays[name] = np.frombuffer(content, kind, head["lengths"][name], offset)
        offset += arrays[name].nbytes
    geometry = tuple(head["geometry"]) if head["geometry"] else None
    return PacketIndex(
        fps=head["fps"], seekable=head["seekable"], problems=head["problems"], geometry=geometry, **arrays
    )
