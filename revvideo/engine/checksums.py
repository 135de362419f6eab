"""Checksums beside checkpoints, in sha256sum's format: `checkpoint_epoch_00010.pyth` has `epoch_00010.pyth.sha256`.

PySlowFast resumes from the alphabetically last name that begins with "checkpoint", and looks for one if any name
contains that word: the names of the checksums do not. `sha256sum -c *.sha256` in the folder checks all of it.
"""

import hashlib
import os
import re
from pathlib import Path

from revvideo.paths import replace_file

SUFFIX = ".sha256"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_BLOCK_BYTES = 2**20


def name_without_checkpoint(path: Path) -> str:
    """The file name without the word that PySlowFast looks for: `epoch_00010.pyth` of `checkpoint_epoch_00010.pyth`."""
    return path.name.removeprefix("checkpoint_")


def checksum_path(path: Path) -> Path:
    """Where the checksum of a checkpoint stands."""
    return path.with_name(f"{name_without_checkpoint(path)}{SUFFIX}")


def write_checksums(path: Path, sums: list[str]) -> None:
    """Write the checksum file of the checkpoint `path` and force it to the disk.

    Args:
        path: the checkpoint.
        sums: SHA-256 in hexadecimal; two while one content takes the place of the other, each of them right.

    Raises:
        OSError: the file cannot be written; it is as it was.
    """
    text = "".join(f"{each}  {path.name}\n" for each in sums)
    replace_file(checksum_path(path), lambda temporary: temporary.write_text(text, "utf-8"), durable=True)


def read_checksums(path: Path) -> list[str]:
    """The sums that the checkpoint `path` may have; none where there is no checksum file, or one without its name.

    Raises:
        OSError: there is a checksum file and it cannot be read.
    """
    file = checksum_path(path)
    if not os.path.lexists(file):
        return []
    matches = [_LINE.fullmatch(line) for line in file.read_text("utf-8", errors="replace").splitlines()]
    return [match[1] for match in matches if match and match[2] == path.name]


def checksum(path: Path) -> str:
    """SHA-256 of a local file in hexadecimal, about 0.4 GB/s on one slow core.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
