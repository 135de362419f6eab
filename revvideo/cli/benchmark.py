"""`revvideo benchmark WHAT ...`: measurements, one sub-command each."""

import argparse
from importlib import import_module

DESCRIPTION = "Measure training steps, decoding, loading and evaluation: time against peers, memory, shares."

# A sub-command is a module as `revvideo.cli.main` describes it.
SUBCOMMANDS = {
    "model": "revvideo.cli.benchmark_model",
    "decode": "revvideo.cli.benchmark_decode",
    "loader": "revvideo.cli.benchmark_loader",
    "evaluation": "revvideo.cli.benchmark_evaluation",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, module in SUBCOMMANDS.items():
        command = import_module(module)
        subparser = subparsers.add_parser(name, help=command.DESCRIPTION, description=command.DESCRIPTION)
        command.add_arguments(subparser)


def run(args: argparse.Namespace) -> int:
    return import_module(SUBCOMMANDS[args.what]).run(args)
