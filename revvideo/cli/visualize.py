"""`revvideo visualize`: where a model finds the evidence for a class, as clips and contact sheets."""

import argparse
import logging

from revvideo.cli.argument_types import positive
from revvideo.cli.model_arguments import add_model_arguments, model_from_arguments

DESCRIPTION = "Show where a model looks: Grad-CAM over space and time, as an overlaid clip and a contact sheet."

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="file, folder of videos, or folder of frames")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a .png and, of a video, an .mp4 for each file")
    parser.add_argument(
        "--target",
        nargs="+",
        action="extend",
        default=[],
        metavar="CLASS",
        help="classes to explain, names or numbers; default: the one that is predicted",
    )
    parser.add_argument("--block", metavar="BLOCK", help="number (-1: the last) or name; default: the last that counts")
    parser.add_argument(
        "--views", type=positive, default=1, metavar="N", help="clips over time; 1: the middle one (default)"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 3 if a file cannot be read")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from revvideo.data.video_reader import VideoError
    from revvideo.errors import CheckFailed, InputError
    from revvideo.predict.sources import find_sources
    from revvideo.visualize.block_output import block_argument, choose_block
    from revvideo.visualize.explain import Explainer, write_explained

    loaded = model_from_arguments(args)
    block = choose_block(loaded.model, block_argument(args.block))
    explainer = Explainer(loaded, views=args.views, block=block)
    targets = [explainer.class_number(target) for target in args.target] or [None]
    sources = find_sources(args.videos, images=loaded.is_image)
    names = _file_names([source.path for source in sources])
    num_bad = 0
    for source, name in zip(sources, names):
        try:
            for target in targets:
                explained = explainer(source, target)
                suffix = "" if len(targets) == 1 else f"_class{target}"
                files = write_explained(explained, Path(args.out), name + suffix)
                shown = f"{explained.class_name}  {100 * explained.probability:.1f} %"
                print(f"{source.path}: {shown}: {', '.join(map(str, files))}")
        except VideoError as error:
            num_bad += 1
            logger.warning("%s: %s", source.path, error.reason)
    if num_bad:
        words = f"{num_bad} of {len(sources)} files could not be read"
        if args.strict:
            raise CheckFailed(words)
        if num_bad == len(sources):
            raise InputError(f"{words}; see the reasons above")
        logger.warning("%s", words)
    return 0


def _file_names(paths: list[str]) -> list[str]:
    """A name for the results of each file: its own without suffix; of several with the same one, with a number."""
    import os
    from collections import Counter

    stems = [os.path.splitext(os.path.basename(os.path.normpath(path)))[0] for path in paths]
    count: Counter[str] = Counter()
    names, taken = [], set(stems)
    for stem in stems:
        count[stem] += 1
        name = stem if count[stem] == 1 else f"{stem}_{count[stem]}"
        while name != stem and name in taken:
            count[stem] += 1
            name = f"{stem}_{count[stem]}"
        taken.add(name)
        names.append(name)
    return names
