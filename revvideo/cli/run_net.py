"""`revvideo run_net`: train and evaluate a config."""

import argparse

from revvideo.config.arguments import add_config_arguments, config_from_arguments
from revvideo.distributed.before_torch import quieten_profiler
from revvideo.distributed.env import current_process

DESCRIPTION = "Train (TRAIN.ENABLE) and evaluate (TEST.ENABLE) the model of a YAML config."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--strict", action="store_true", help="exit with code 3 when the test could not read a video (EVAL.STRICT)"
    )


def run(args: argparse.Namespace) -> int:
    current_process()  # what is wrong with the environment is told before torch is imported
    cfg = config_from_arguments(args, {"EVAL.STRICT": True} if args.strict else {})
    if cfg.RUN.AUTO_BATCH_SIZE:
        quieten_profiler()
    from revvideo.jobs.processes import launch

    return launch(cfg)
