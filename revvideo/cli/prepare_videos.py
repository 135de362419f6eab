"""`revvideo prepare_videos`: re-encode a data set so that clips of it decode several times as fast."""

import argparse
import logging
import os

DESCRIPTION = (
    "Re-encode videos to a short side of 256 or 320 pixels and short key-frame groups; resumable, in parallel."
)

logger = logging.getLogger(__name__)
EXAMPLES = 5  # failures that are printed in full; the manifest has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="folders with videos, or videos")
    parser.add_argument(
        "output", metavar="OUTPUT", help="folder of the results; mirrors the source, holds manifest.csv"
    )
    parser.add_argument(
        "--short-side", type=int, default=256, metavar="PIXELS", help="256 (default), 320, ...; nothing is enlarged"
    )
    parser.add_argument("--gop", type=int, default=32, metavar="N", help="frames from key frame to key frame (32)")
    parser.add_argument("--crf", type=int, default=23, metavar="N", help="x264's quality, 0 best to 51 (23)")
    parser.add_argument("--preset", default="medium", choices=PRESETS, help="x264's effort (medium)")
    parser.add_argument("--num-workers", type=int, metavar="N", help="processes (one a core)")
    parser.add_argument(
        "--list", nargs="+", action="extend", default=[], metavar="FILE", help="lists to rewrite with the new paths"
    )
    parser.add_argument("--separator", default=" ", help="between path and label in the lists (a blank)")
    parser.add_argument("--prefix", default="", metavar="FOLDER", help="that paths of the lists are relative to")
    parser.add_argument("--drop-failed", action="store_true", help="leave videos that failed out of the new lists")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS", help="for one video (3600)")
    parser.add_argument("--restart", action="store_true", help="encode again what an earlier run has done")
    parser.add_argument("--strict", action="store_true", help="exit code 3 if a video failed")


PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


def run(args: argparse.Namespace) -> int:
    from revvideo.cli.worker_count import checked_seconds, checked_workers
    from revvideo.data.encode import EncodeSpec
    from revvideo.data.prepare import MANIFEST, plan_jobs
    from revvideo.data.prepared_lists import read_lists, rewrite_list
    from revvideo.errors import CheckFailed

    spec = EncodeSpec(args.short_side, args.gop, args.crf, args.preset)
    num_workers, seconds = checked_workers(args.num_workers), checked_seconds(args.timeout)
    jobs = plan_jobs(args.sources, args.output)
    lists = read_lists(args.list, jobs, separator=args.separator, prefix=args.prefix)
    results = _encode(args, jobs, spec, num_workers, seconds)
    failed = [result for result in results if result.outcome == "failed"]
    _report(results)
    by_source = {os.path.realpath(result.source): result for result in results}
    for manifest in lists:
        new = rewrite_list(manifest, by_source, args.output, separator=args.separator, drop_failed=args.drop_failed)
        print(
            f"{new.path}: {new.num_prepared} videos with new paths, {new.num_kept} with the old one, "
            f"{new.num_dropped} left out"
        )
    for result in failed[:EXAMPLES]:
        print(f"  failed: {result.source}: {result.reason}")
    if failed:
        message = f"{len(failed)} of {len(results)} videos failed and are not in {args.output}; see {MANIFEST} there"
        if args.strict:
            raise CheckFailed(message)
        logger.warning("%s", message)
    return 0


def _encode(args: argparse.Namespace, jobs: list, spec, num_workers: int, seconds: float) -> list:
    """One result a job, in the order in which they were ready."""
    from revvideo.data.prepare import prepare_videos
    from revvideo.engine.progress import Progress

    counts = {"done": 0, "known": 0, "failed": 0}
    results = []
    with Progress(len(jobs), "prepare_videos", log_period=max(10, len(jobs) // 50), logger=logger) as progress:
        for result in prepare_videos(
            jobs, args.output, spec, num_workers, timeout_seconds=seconds, restart=args.restart
        ):
            results.append(result)
            counts[result.outcome] += 1
            progress.update(1, **counts)
    return results


def _report(results: list) -> None:
    good = [result for result in results if result.outcome != "failed"]
    known = sum(result.outcome == "known" for result in good)
    before, after = (sum(sizes) / 2**20 for sizes in zip(*[(r.source_bytes, r.bytes) for r in good] or [(0, 0)]))
    print(
        f"{len(good) - known} videos encoded, {known} known from earlier runs, {len(results) - len(good)} failed; "
        f"{sum(result.frames_out for result in good)} frames, {before:.1f} MiB -> {after:.1f} MiB"
    )
