"""`revvideo logs`: what the processes of a submitted run have written."""

import argparse
import os
import sys
from pathlib import Path

DESCRIPTION = "Show the log of a submitted run, of rank 0 or another, and follow it through its restarts."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder; of a sweep also that of one point")
    parser.add_argument("--follow", "-f", action="store_true", help="until the job is over, through its restarts")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="of this process (0)")
    parser.add_argument("--point", type=int, metavar="I", help="of a sweep, which point (0)")
    parser.add_argument("--lines", "-n", type=int, default=100, metavar="N", help="the last N lines (100); 0: all")


def run(args: argparse.Namespace) -> int:
    from revvideo.errors import InputError
    from revvideo.launch.find_run import find_submission
    from revvideo.launch.logs import follow_log, show_log

    submission, members = find_submission(Path(args.run), args.point)
    num_tasks = submission.resources.num_tasks
    if not 0 <= args.rank < num_tasks:
        raise InputError(f"--rank is {args.rank}; expected 0 .. {num_tasks - 1}: the run has {num_tasks} processes")
    if args.lines < 0:
        raise InputError(f"--lines is {args.lines}; expected a number of lines, or 0 for all")
    lines = args.lines or None
    try:
        if args.follow:
            follow_log(submission, members[0], args.rank, _write, _note, lines=lines)
        else:
            show_log(submission, members[0], args.rank, _write, lines=lines)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(text: str) -> None:
    print(f"revvideo: {text}", file=sys.stderr, flush=True)
