"""`revvideo benchmark evaluation`: what one decode per video saves, against one per view."""

import argparse
import json
import shlex
from pathlib import Path

from revvideo.cli.argument_types import positive
from revvideo.config.arguments import add_config_arguments, config_from_arguments

DESCRIPTION = "Time to read and to evaluate the test set of a config: one decode per video against one per view."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--videos", type=positive, metavar="N", help="the first N readable videos of the list (all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")


def run(args: argparse.Namespace) -> int:
    import torch

    from revvideo.benchmark.evaluation import CONVENTIONS, format_evaluation_result, measure_evaluation
    from revvideo.benchmark.machine import describe_machine
    from revvideo.errors import InputError
    from revvideo.paths import replace_file

    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise InputError(f"--json {args.json} cannot be written: a folder, or in a folder that does not exist")
    torch.set_num_threads(1)
    cfg = config_from_arguments(args)
    result = {
        "header": {"command": command_line(args), "machine": describe_machine(torch.device("cpu"))},
        "conventions": CONVENTIONS,
        "index_cache": cfg.LOADER.INDEX_CACHE,
        **measure_evaluation(cfg, args.videos),
    }
    if args.json:
        text = json.dumps(result, indent=2) + "\n"
        replace_file(args.json, lambda temporary: temporary.write_text(text, "utf-8"))
    print(format_evaluation_result(result))
    return 0


def command_line(args: argparse.Namespace) -> str:
    """The command that measures the same again."""
    words = ["revvideo", "benchmark", "evaluation", "--cfg", *(args.cfg or [])]
    words += [str(word) for word in [*(args.opts or []), *args.overrides]]
    words += ["--videos", str(args.videos)] if args.videos else []
    return shlex.join(words)
