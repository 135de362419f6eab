"""`revvideo demo`: watch a reversible MViT learn from video files that it writes itself."""

import argparse
import sys
from pathlib import Path

DESCRIPTION = "Write a small video data set, train a reversible MViT on it and evaluate it (minutes on two cores)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the data and the training (default 0)")
    parser.add_argument("--root", type=Path, default=Path("runs/demo"), help="folder for data and runs (runs/demo)")
    parser.add_argument("--train-per-class", type=int, default=60, help="training videos of each of 8 classes (60)")
    parser.add_argument("--test-per-class", type=int, default=24, help="test videos of each class (24)")
    parser.add_argument("--strict", action="store_true", help="exit with code 3 when a figure is not as expected")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="config keys and values")


def run(args: argparse.Namespace) -> int:
    from revvideo.demo.run import run_demo
    from revvideo.errors import CheckFailed

    report = run_demo(
        args.root,
        seed=args.seed,
        train_per_class=args.train_per_class,
        test_per_class=args.test_per_class,
        overrides=tuple(args.overrides),
    )
    called_as = sys.argv[0] if Path(sys.argv[0]).name == "revvideo" else "revvideo"
    print(report.text(called_as))
    missed = [figure.name for figure in report.figures if not figure.holds]
    if args.strict and missed:
        raise CheckFailed(f"not as expected: {'; '.join(missed)}")
    return 0
