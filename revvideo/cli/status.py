"""`revvideo status`: where a run is."""

import argparse
import json
from pathlib import Path

DESCRIPTION = "Show where a run is: state of its jobs, restarts and their reasons, epoch, time left, last figures."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder; of a sweep also that of one point")
    parser.add_argument("--point", type=int, metavar="I", help="of a sweep, only this point, in detail")
    parser.add_argument("--json", action="store_true", help="all that is known, as one JSON object")


def run(args: argparse.Namespace) -> int:
    from revvideo.launch.status import run_status
    from revvideo.launch.status_text import status_lines

    status = run_status(Path(args.run), args.point)
    print(json.dumps(status.as_dict(), indent=2) if args.json else "\n".join(status_lines(status)))
    return 0
