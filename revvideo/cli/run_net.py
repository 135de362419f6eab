"""`revvideo run_net`: train and evaluate a config."""

import argparse

from revvideo.config.arguments import add_config_arguments, config_from_arguments

DESCRIPTION = "Train (TRAIN.ENABLE) and evaluate (TEST.ENABLE) the model of a YAML config."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    cfg = config_from_arguments(args)
    from revvideo import jobs

    jobs.run(cfg)
    return 0
