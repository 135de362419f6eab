"""`revvideo check_data`: which videos of a data set can be read, which are damaged, short or odd."""

import argparse
import contextlib
import logging
from dataclasses import dataclass

from revvideo.config.arguments import add_config_arguments, config_from_arguments

DESCRIPTION = (
    "Check the videos of a config, a list or a folder: unreadable, damaged, short, odd; resumable, in parallel."
)

logger = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
EXAMPLES = 5  # of each status, printed in full; the csv file has all
TIMEOUTS = {"first": 60.0, "sample": 60.0, "all": 600.0}  # seconds for one video


@dataclass(frozen=True)
class _Group:
    """Videos that belong together: a split, a list, or what the command line names."""

    name: str
    paths: tuple[str, ...]
    labels: tuple[int | None, ...]
    kind: str = "video"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        f"{parser.prog} [options] (--cfg FILE [KEY VALUE ...] | --list FILE ... | VIDEO_OR_FOLDER ...)\n"
        "Without --cfg the words that are no options are videos and folders."
    )
    parser.add_argument(
        "--list",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="lists as of PySlowFast, 'path label' a line",
    )
    parser.add_argument("--separator", help="between path and label in the lists (as the config says; else a blank)")
    parser.add_argument("--prefix", default="", metavar="FOLDER", help="that paths of --list are relative to")
    parser.add_argument("--split", metavar="train,val,test", help="lists of the config (those that exist)")
    parser.add_argument("--decode", choices=tuple(TIMEOUTS), default="sample", help="frames to decode (sample: 8)")
    parser.add_argument("--num-workers", type=int, metavar="N", help="processes (one a core)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for one video (60; with --decode all 600)")
    parser.add_argument("--csv", metavar="FILE", help="a row a video; a second run goes on where this one ended")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="keep the rows of --csv that are up to date (the default)")
    again.add_argument("--restart", action="store_true", help="check everything again")
    parser.add_argument(
        "--write-good", metavar="FILE", help="list of the videos that can be read; {split} in it becomes the split"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit code 3 if a video is damaged, unreadable or missing"
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from revvideo.cli.worker_count import checked_seconds, checked_workers
    from revvideo.data.check import BAD_STATUSES, CheckSpec
    from revvideo.errors import CheckFailed, InputError

    cfg = config_from_arguments(args) if args.cfg else None
    if cfg is not None and args.list:
        raise InputError("--cfg and --list are both given; the lists of a config are those that its DATA keys name")
    if args.split is not None and cfg is None:
        raise InputError("--split names lists of a config; it needs --cfg")
    if (args.resume or args.restart) and not args.csv:
        raise InputError("--resume and --restart concern the file that --csv names; it is missing")
    num_workers = checked_workers(args.num_workers)
    seconds = checked_seconds(TIMEOUTS[args.decode] if args.timeout is None else args.timeout)
    groups = _from_config(cfg, args.split) if cfg is not None else _from_lists(args) + _from_paths(args)
    separator = args.separator or (cfg.DATA.PATH_LABEL_SEPARATOR if cfg is not None else " ")
    _check_good_lists(args.write_good, groups, separator)
    spec = CheckSpec(args.decode)
    if cfg is not None:
        clip_seconds = cfg.DATA.NUM_FRAMES * cfg.DATA.SAMPLING_RATE / cfg.DATA.TARGET_FPS
        spec = CheckSpec(args.decode, clip_seconds, cfg.DATA.TARGET_FPS)
    checks = _scan(args, groups, spec, num_workers, seconds)
    _report(checks, groups)
    _write_good(args.write_good, groups, checks, separator)
    bad = sum(check.status in BAD_STATUSES for check in checks.values())
    if bad and args.strict:
        raise CheckFailed(f"{bad} of {len(checks)} videos are {', '.join(BAD_STATUSES[:-1])} or {BAD_STATUSES[-1]}")
    return 0


# Which videos


def _from_config(cfg, wanted: str | None) -> list[_Group]:
    from revvideo.build.data import build_manifest
    from revvideo.errors import InputError

    names = [name.strip() for name in wanted.split(",")] if wanted is not None else list(SPLITS)
    unknown = [name for name in names if name not in SPLITS]
    if unknown:
        raise InputError(f"--split names {unknown[0]!r}; expected some of {','.join(SPLITS)}")
    groups, refusals = [], []
    for name in dict.fromkeys(names):
        try:
            manifest = build_manifest(cfg, name)
        except InputError as error:
            if wanted is not None:
                raise
            logger.warning("the split %s is left out: %s", name, error)
            refusals.append(error)
            continue
        groups.append(_Group(name, manifest.paths, manifest.labels, manifest.kind))
    if not groups:
        raise refusals[0]
    return groups


def _from_lists(args: argparse.Namespace) -> list[_Group]:
    import os

    from revvideo.data.manifest import read_manifest

    groups = []
    for path in args.list:
        manifest = read_manifest(path, separator=args.separator or " ", prefix=args.prefix)
        labels = manifest.labels if manifest.labelled else (None,) * len(manifest)
        groups.append(_Group(os.path.splitext(os.path.basename(path))[0], manifest.paths, labels))
    return groups


def _from_paths(args: argparse.Namespace) -> list[_Group]:
    import os

    from revvideo.data.find_videos import find_videos
    from revvideo.errors import InputError

    paths: list[str] = []
    for word in [*(args.opts or []), *args.overrides]:
        paths += [os.path.join(word, name) for name in find_videos(word)] if os.path.isdir(word) else [word]
    if not paths and not args.list:
        raise InputError("nothing to check: name a config (--cfg), a list (--list), videos or folders")
    return [_Group("videos", tuple(paths), (None,) * len(paths))] if paths else []


# The scan


def _scan(args: argparse.Namespace, groups: list[_Group], spec, num_workers: int, seconds: float) -> dict:
    """path -> VideoCheck, each video once, in the order of the lists."""
    from revvideo.data.check import BAD_STATUSES, COLUMNS, check_videos
    from revvideo.data.row_file import RowFile
    from revvideo.engine.progress import Progress

    videos = list({path: group.kind for group in groups for path in group.paths}.items())
    checks: dict = dict.fromkeys(path for path, _ in videos)
    num_known = num_bad = 0
    with contextlib.ExitStack() as stack:
        rows = stack.enter_context(RowFile(args.csv, COLUMNS, "path", restart=args.restart)) if args.csv else None
        progress = stack.enter_context(
            Progress(len(videos), "check_data", log_period=max(10, len(videos) // 50), logger=logger)
        )
        results = check_videos(
            videos, spec, num_workers, timeout_seconds=seconds, known=rows.rows if rows is not None else None
        )
        stack.callback(results.close)
        for check, is_news in results:
            checks[check.path] = check
            num_known += not is_news
            num_bad += check.status in BAD_STATUSES
            if rows is not None and is_news:
                rows.append(check.row())
            progress.update(1, known=num_known, bad=num_bad)
    if num_known:
        logger.info("%d of %d videos are known from %s and have not changed", num_known, len(videos), args.csv)
    return checks


# What has been found


def _report(checks: dict, groups: list[_Group]) -> None:
    from revvideo.data.check import BAD_STATUSES, STATUSES, count_statuses

    columns = [(group.name, count_statuses(checks[path] for path in dict.fromkeys(group.paths))) for group in groups]
    columns.append(("all", count_statuses(checks.values())))
    columns = columns[-1:] if len(columns) == 2 else columns
    print(f"{'status':<10}" + "".join(f"  {name:>10}" for name, _ in columns))
    for status in STATUSES:
        print(f"{status:<10}" + "".join(f"  {counts[status]:>10}" for _, counts in columns))
    readable = [check for check in checks.values() if check.status not in BAD_STATUSES]
    hours, size = sum(check.seconds for check in readable) / 3600, sum(check.bytes for check in readable) / 2**20
    print(f"{len(readable)} of {len(checks)} videos can be used: {hours:.2f} hours, {size:.1f} MiB")
    for status in STATUSES[1:]:
        found = [check for check in checks.values() if check.status == status]
        if found:
            print(f"{status}:")
        for check in found[:EXAMPLES]:
            print(f"  {check.path}: {check.reason}")
        if len(found) > EXAMPLES:
            print(f"  and {len(found) - EXAMPLES} more")


def _check_good_lists(path: str | None, groups: list[_Group], separator: str) -> None:
    """Refuses what would fail after the scan."""
    from revvideo.data.check import check_names
    from revvideo.data.row_file import local_target
    from revvideo.errors import InputError

    if path is None:
        return
    names = [group.name for group in groups]
    if len(groups) > 1 and "{split}" not in path:
        raise InputError(
            f"--write-good is {path!r}, but there are {len(groups)} lists: {', '.join(names)}; "
            "expected {split} in the name, such as good/{split}.csv"
        )
    if len(set(names)) < len(names):
        raise InputError("--write-good needs lists with different names")
    for group in groups:
        local_target(path.replace("{split}", group.name))
        check_names(group.paths, separator)


def _write_good(path: str | None, groups: list[_Group], checks: dict, separator: str) -> None:
    from revvideo.data.check import BAD_STATUSES, write_list

    for group in groups if path is not None else ():
        rows = [
            (name, label) for name, label in zip(group.paths, group.labels) if checks[name].status not in BAD_STATUSES
        ]
        target = path.replace("{split}", group.name)
        write_list(target, rows, separator)
        print(f"{target}: {len(rows)} of {len(group.paths)} videos")
