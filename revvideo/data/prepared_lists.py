"""Lists of a data set, rewritten for the videos that `revvideo.data.prepare` has made of it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from revvideo.data.check import check_names, write_list
from revvideo.data.manifest import Manifest, read_manifest
from revvideo.data.prepare import MANIFEST, Job, Prepared
from revvideo.errors import InputError


@dataclass(frozen=True)
class RewrittenList:
    """A list beside the prepared videos: its path, and how many of its videos are new, still the old ones, left out."""

    path: str
    num_prepared: int
    num_kept: int
    num_dropped: int


def read_lists(paths: Sequence[str], jobs: Sequence[Job], *, separator: str, prefix: str) -> list[Manifest]:
    """The lists, read and checked before hours are spent on encoding.

    Raises:
        InputError: a list cannot be read, two have one name, not one of a list's videos is encoded, or a list cannot
            hold the name of one.
    """
    sources = {os.path.realpath(job.source) for job in jobs}
    names: dict[str, str] = {MANIFEST: "the manifest"}
    if paths:
        check_names((job.output for job in jobs), separator)
    lists = []
    for path in paths:
        name = os.path.basename(path)
        if name in names:
            raise InputError(f"the list {path} would be written over {names[name]} of the same name; rename one")
        names[name] = path
        manifest = read_manifest(path, separator=separator, prefix=prefix)
        if not any(os.path.realpath(video) in sources for video in manifest.paths):
            raise InputError(
                f"none of the {len(manifest)} videos of {path} is among the {len(jobs)} sources; the first is "
                f"{manifest.paths[0]!r}. --prefix names the folder that the paths of a list are relative to"
            )
        lists.append(manifest)
    return lists


def rewrite_list(
    manifest: Manifest, prepared: Mapping[str, Prepared], output: str, *, separator: str, drop_failed: bool
) -> RewrittenList:
    """Write a list into `output`, with paths relative to that folder and the labels of the old one.

    A video that was not encoded (it failed, or is no source) keeps the path that it had, so that evaluation counts it;
    `drop_failed` leaves it out.

    Args:
        manifest: the old list.
        prepared: real path of a source -> what became of it.
        output: the folder of the prepared videos.
        separator: between path and label.
        drop_failed: see above.

    Raises:
        InputError: it cannot be written.
    """
    rows: list[tuple[str, int | None]] = []
    num_prepared = num_kept = 0
    for path, label in zip(manifest.paths, manifest.labels):
        result = prepared.get(os.path.realpath(path))
        if result is not None and result.outcome != "failed":
            name, num_prepared = result.output, num_prepared + 1
        elif not drop_failed:
            name, num_kept = os.path.abspath(path), num_kept + 1
        else:
            continue
        rows.append((name, label if manifest.labelled else None))
    target = os.path.join(output, os.path.basename(manifest.source))
    write_list(target, rows, separator)
    return RewrittenList(target, num_prepared, num_kept, len(manifest) - len(rows))
