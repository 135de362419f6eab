"""`revvideo benchmark decode`: clips a second and core, of our reader and of every other library that is installed."""

import argparse
import contextlib
import json
import shlex
import tempfile
from pathlib import Path

from revvideo.cli.argument_types import names, natural, positive, positives

DESCRIPTION = "Decode clips with our reader and every other library on one core: CPU time, clips/s, ratios."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backends", type=names, default=["all"], metavar="NAME,NAME", help="libraries to compare with ours (all)")
    add("--source", nargs="+", type=Path, default=[], metavar="FILE", help="read these files, not generated ones")
    add("--rounds", type=positive, default=7, metavar="N", help="counted rounds (7)")
    add("--views", type=natural, default=10, metavar="N", help="views of a video in one open; 0: none (10)")
    add("--frames", type=positive, default=16, metavar="T", help="frames of a clip (16)")
    add("--stride", type=positive, default=4, metavar="N", help="between them (4)")
    add("--size", type=_size, default=None, metavar="native|SHORT", help="short side of the frames in pixels (native)")
    add("--prepared", action="store_true", help="also the same files re-encoded by `revvideo prepare_videos`")
    add("--seed", type=natural, default=0, metavar="N", help="of the content, the starts and the order (0)")
    add("--json", type=Path, metavar="FILE", help="write all figures; kept up to date while measuring")
    generated = parser.add_argument_group("generated videos: 340x256, 30 frames/s, x264 medium with 3 B-frames")
    add = generated.add_argument
    add("--gops", type=positives, default=[250, 30], metavar="N,N", help="largest distances of key frames (250,30)")
    add("--videos", type=positive, default=4, metavar="N", help="videos of each distance (4)")
    add("--seconds", type=positive, default=10, metavar="N", help="of a video (10)")
    add("--cuts", type=natural, default=1, metavar="N", help="scene cuts of every second video (1)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write generated and re-encoded videos here")


def run(args: argparse.Namespace) -> int:
    import torch

    from revvideo.benchmark.decode import DecodeBenchmark, Plan
    from revvideo.benchmark.decode_table import format_decode_result
    from revvideo.benchmark.decoders import load_decoders
    from revvideo.benchmark.machine import describe_machine
    from revvideo.errors import InputError
    from revvideo.paths import replace_file

    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise InputError(f"--json {args.json} cannot be written: a folder, or in a folder that does not exist")
    torch.set_num_threads(1)
    decoders, missing = load_decoders(args.backends)

    def save(result: dict) -> None:
        if args.json:
            text = json.dumps(result, indent=2) + "\n"
            replace_file(args.json, lambda temporary: temporary.write_text(text, "utf-8"))

    with contextlib.ExitStack() as stack:
        if args.keep:
            try:
                args.keep.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"--keep {args.keep} cannot be made a folder: {error.strerror}") from error
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="revvideo-decode-")))
        plan = Plan(
            groups=_groups(args, folder),
            decoders=decoders,
            missing=missing,
            rounds=args.rounds,
            views=args.views,
            num_frames=args.frames,
            stride=args.stride,
            short_side=args.size,
            seed=args.seed,
        )
        header = {"command": command_line(args), "machine": describe_machine(torch.device("cpu"))}
        result = DecodeBenchmark(plan, header=header, on_result=save).run()
    save(result)
    print(format_decode_result(result))
    return 0


def _groups(args: argparse.Namespace, folder: Path) -> list:
    """The files to read; the generated and the re-encoded ones are written into `folder`."""
    import logging

    from revvideo.benchmark.decode_files import generated_groups, groups_to_prepare, prepared_groups, source_groups
    from revvideo.benchmark.generated_video import Content, write_videos
    from revvideo.engine.progress import Progress

    logger = logging.getLogger(__name__)
    if args.source:
        groups = source_groups(args.source)
    else:
        content = Content(num_frames=30 * args.seconds, cuts=args.cuts)
        total = args.videos * len(args.gops)
        with Progress(total, "videos to generate", log_period=len(args.gops), logger=logger) as progress:
            videos = write_videos(
                folder, count=args.videos, gops=args.gops, content=content, seed=args.seed, on_video=progress.update
            )
        groups = generated_groups(videos)
    if args.prepared:
        originals = groups_to_prepare(groups)
        total = sum(len(group.paths) for group in originals)
        with Progress(total, "videos to re-encode", log_period=4, logger=logger) as progress:
            groups = groups + prepared_groups(originals, folder, on_file=progress.update)
    return groups


def command_line(args: argparse.Namespace) -> str:
    """The command that measures the same again, with every choice spelled out."""
    words = ["revvideo", "benchmark", "decode", "--backends", ",".join(args.backends)]
    for name in ("rounds", "views", "frames", "stride", "seed"):
        words += [f"--{name}", str(getattr(args, name))]
    words += ["--size", str(args.size or "native")]
    words += ["--prepared"] if args.prepared else []
    if args.source:
        return shlex.join([*words, "--source", *map(str, args.source)])
    words += ["--gops", ",".join(map(str, args.gops))]
    for name in ("videos", "seconds", "cuts"):
        words += [f"--{name}", str(getattr(args, name))]
    return shlex.join(words)


# Types of arguments: argparse shows their errors in one line and leaves with exit code 2.


def _size(text: str) -> int | None:
    """SHORT in pixels, or None for native."""
    return None if text == "native" else positive(text)
