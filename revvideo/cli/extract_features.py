"""`revvideo extract_features`: what a trained model computes of videos or pictures, one file a video."""

import argparse
import logging
import os
from typing import TYPE_CHECKING

from revvideo.cli.argument_types import natural, views
from revvideo.cli.model_arguments import add_model_arguments, model_from_arguments

if TYPE_CHECKING:
    from revvideo.data.manifest import Manifest
    from revvideo.predict.model_source import LoadedModel

DESCRIPTION = "Write the features of videos or pictures, pooled or token by token, one file a video; resumable."

logger = logging.getLogger(__name__)
EXAMPLES = 5  # of the videos that cannot be read, printed; index.csv has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="file, folder of files, or folder of frames")
    parser.add_argument("--list", metavar="FILE", help="list as of PySlowFast, 'path label' a line")
    parser.add_argument("--prefix", default="", metavar="FOLDER", help="that paths of --list are relative to")
    parser.add_argument("--split", choices=("train", "val", "test"), help="list of the config (test)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to; a second run goes on where one ended")
    parser.add_argument("--kind", choices=("pooled", "tokens"), default="pooled", help="a vector a view, or all cells")
    parser.add_argument("--block", metavar="BLOCK", help="number (-1: the last) or name; default: what the head reads")
    parser.add_argument(
        "--views", type=views, default=(1, 1), metavar="VxC", help="temporal views x crops, 1 or 3 (1x1)"
    )
    parser.add_argument("--format", choices=("npz", "safetensors"), default="npz", help="of the files (npz)")
    parser.add_argument("--half", action="store_true", help="float16 instead of float32")
    parser.add_argument("--num-workers", type=natural, metavar="N", help="processes that decode (as the config says)")
    parser.add_argument("--restart", action="store_true", help="begin again instead of going on")
    parser.add_argument("--strict", action="store_true", help="exit code 3 if a video cannot be read")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from revvideo.errors import CheckFailed, InputError
    from revvideo.visualize.block_output import block_argument
    from revvideo.visualize.feature_files import FeatureFolder
    from revvideo.visualize.features import FeatureExtractor, FeatureSpec

    if args.num_workers is not None:
        args.opts = [*args.opts, "DATA_LOADER.NUM_WORKERS", args.num_workers]
    loaded = model_from_arguments(args)
    manifest = _manifest(args, loaded)
    spec = FeatureSpec(args.kind, block_argument(args.block), *args.views, half=args.half)
    extractor = FeatureExtractor(loaded, spec)
    with FeatureFolder(
        args.out,
        format=args.format,
        identity=extractor.identity(),
        description=extractor.describe() | {"class_names": list(loaded.class_names or manifest.class_names)},
        restart=args.restart,
    ) as folder:
        extractor.extract(manifest, folder)
        together = folder.write_all(manifest.paths) if args.kind == "pooled" else None
        failed = folder.failed(manifest.paths)
    print(f"{args.out}: features of {len(manifest) - len(failed)} of {len(manifest)} videos")
    if together is not None:
        print(f"{together}: all of them, the mean over their views")
    if not failed:
        return 0
    print("not readable:")
    for path, reason in failed[:EXAMPLES]:
        print(f"  {path}: {reason}")
    if len(failed) > EXAMPLES:
        print(f"  and {len(failed) - EXAMPLES} more, in {os.path.join(args.out, 'index.csv')}")
    words = f"{len(failed)} of {len(manifest)} videos could not be read"
    if args.strict:
        raise CheckFailed(words)
    if len(failed) == len(manifest):
        raise InputError(words)
    return 0


def _manifest(args: argparse.Namespace, loaded: "LoadedModel") -> "Manifest":
    """The videos that the command line names, each once."""
    from revvideo import build
    from revvideo.data.manifest import read_manifest
    from revvideo.errors import InputError

    if (bool(args.videos), args.list is not None, args.split is not None).count(True) > 1:
        raise InputError("name videos, --list or --split; not two of them")
    if args.videos:
        return _of_paths(args.videos, images=loaded.is_image)
    if args.list is not None:
        cfg = loaded.cfg
        found = read_manifest(args.list, separator=cfg.DATA.PATH_LABEL_SEPARATOR, prefix=args.prefix)
        return _each_once(found, kind="image" if loaded.is_image else found.kind)
    if not loaded.cfg.DATA.PATH_TO_DATA_DIR:
        raise InputError(
            "no videos are named; expected files or folders, --list FILE, or the folder of a data set: "
            "--opts DATA.PATH_TO_DATA_DIR FOLDER"
        )
    found = build.build_manifest(loaded.cfg, args.split or "test")
    return _each_once(found, kind=found.kind)


def _of_paths(words: list[str], *, images: bool) -> "Manifest":
    from revvideo.data.manifest import Manifest
    from revvideo.errors import InputError
    from revvideo.predict.sources import find_sources

    sources = find_sources(words, images=images)
    kinds = {source.kind for source in sources}
    if len(kinds) > 1:
        raise InputError("video files and folders of frames are mixed; extract them one after the other")
    paths = tuple(dict.fromkeys(source.path for source in sources))
    return Manifest(paths, (0,) * len(paths), "the command line", kind=kinds.pop(), labelled=False)


def _each_once(manifest: "Manifest", *, kind: str) -> "Manifest":
    """A path that is listed several times counts once, with its first label."""
    import dataclasses

    labels = dict(zip(reversed(manifest.paths), reversed(manifest.labels)))
    paths = tuple(dict.fromkeys(manifest.paths))
    if len(paths) < len(manifest):
        logger.warning("%s lists %d paths more than once", manifest.source, len(manifest) - len(paths))
    return dataclasses.replace(manifest, paths=paths, labels=tuple(labels[path] for path in paths), kind=kind)
