"""`revvideo report`: one page that shows a run, or several beside each other."""

import argparse
from pathlib import Path

DESCRIPTION = "Write one HTML file that shows a run: curves, classes, confusions, examples; several runs overlaid."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder (OUTPUT_DIR of a run)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html; of several ./report.html")


def run(args: argparse.Namespace) -> int:
    from revvideo.report.writer import write_report

    print(write_report(args.runs, args.out))
    return 0
