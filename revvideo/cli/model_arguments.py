"""Arguments of the commands that work with a trained model: which network, which weights, which classes."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from revvideo.predict.model_source import LoadedModel


def add_model_arguments(parser: argparse.ArgumentParser, *, device: bool = True) -> None:
    """--checkpoint, --model or --cfg, --opts, --classes, --ema, and --device; without the last, all is on the CPU."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="weights, or a run folder: its newest checkpoint. Those of revvideo and PySlowFast tell their config, too",
    )
    network = group.add_mutually_exclusive_group()
    network.add_argument("--model", metavar="NAME", help="the network, where the checkpoint does not tell it")
    network.add_argument("--cfg", metavar="FILE", help="the same by a config: a YAML file or the name of a shipped one")
    group.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="config keys that win over all others"
    )
    group.add_argument("--classes", metavar="FILE", help="names of the classes (default: those in the checkpoint)")
    group.add_argument("--ema", action="store_true", help="the averaged weights of the checkpoint")
    if device:
        group.add_argument("--device", help="such as cpu or cuda:1 (default: the first GPU, else the CPU)")
    else:
        parser.set_defaults(device="cpu")


def model_from_arguments(args: argparse.Namespace) -> "LoadedModel":
    """The model that parsed arguments name.

    Args:
        args: from a parser with `add_model_arguments`.

    Raises:
        InputError: see `load_predictor_model`.
    """
    from revvideo.predict.model_source import load_predictor_model

    return load_predictor_model(
        args.model or args.cfg,
        args.checkpoint,
        classes=args.classes,
        overrides=args.opts,
        device=args.device,
        averaged=args.ema,
    )
