"""Are the lists of a config there, and the videos that they name? A sample answers in a moment, also for Kinetics."""

import random
from collections.abc import Iterator

from fvcore.common.config import CfgNode

from revvideo.config.datasets import check_list_kind, list_arguments, needed_splits
from revvideo.data.manifest import Manifest, read_split
from revvideo.errors import InputError
from revvideo.paths import path_manager

SAMPLE = 20  # videos of each list
_SEED = 0
_PLURAL = {"video": "videos", "frames": "frame folders", "image": "pictures"}


def list_lines(cfgs: list[CfgNode]) -> Iterator[str]:
    """A line for each list that the configs need, each list once.

    Raises:
        InputError: a list is missing or wrong, or nothing of a sample of its videos exists.
    """
    seen = []
    for cfg in cfgs:
        for split in needed_splits(cfg):
            arguments = list_arguments(cfg, split)
            if arguments in seen:
                continue
            seen.append(arguments)
            manifest = read_split(**arguments)
            check_list_kind(cfg, split, manifest.kind, manifest.source)
            yield _sample_line(manifest, split)


def _sample_line(manifest: Manifest, split: str) -> str:
    """What a sample of the list says of all its videos.

    Raises:
        InputError: nothing of it exists.
    """
    # Of the same list the same sample: who mends what is missing wants to see it gone.
    rows = sorted(random.Random(_SEED).sample(range(len(manifest)), min(SAMPLE, len(manifest))))
    missing = [manifest.paths[row] for row in rows if not path_manager.exists(manifest.paths[row])]
    plural = _PLURAL[manifest.kind]
    listed = f"{split}: {len(manifest)} {plural} in {manifest.source}"
    if not missing:
        return f"{listed}; {len(rows)} of them looked for, all found"
    if len(missing) == len(rows):
        raise InputError(
            f"{manifest.source} lists {len(manifest)} {plural}, but none of the {len(rows)} that were looked for "
            f"exists; the first is {missing[0]!r}. Set DATA.PATH_PREFIX to the folder that the paths of the list are "
            "relative to (LOADER.VIDEO_FOLDER for official lists); --no-check submits without looking"
        )
    return (
        f"{listed}; WARNING: {len(missing)} of {len(rows)} that were looked for do not exist, the first is "
        f"{missing[0]} (`revvideo check_data` finds all)"
    )
