"""`revvideo cancel`: the end of a submitted run."""

import argparse
from pathlib import Path

DESCRIPTION = "Cancel the jobs of a submitted run, those that wait in a chain too; its checkpoints stay."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder; of a sweep also that of one point")
    parser.add_argument("--point", type=int, metavar="I", help="of a sweep, only this point")


def run(args: argparse.Namespace) -> int:
    from revvideo.launch.cancel import cancel_jobs
    from revvideo.launch.find_run import find_submission

    submission, members = find_submission(Path(args.run), args.point)
    print("\n".join(cancel_jobs(submission, members)))
    return 0
